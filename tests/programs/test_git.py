"""git over https: clone, fetch and push."""

from __future__ import annotations

import random
import subprocess

from tests.programs.git_server import git_server
from tests.programs.world import REFUSED, need

GIT_HOST = "git.example.test"
ME = {"GIT_AUTHOR_NAME": "me", "GIT_AUTHOR_EMAIL": "me@example.test", "GIT_TERMINAL_PROMPT": "0"}
ME |= {"GIT_COMMITTER_NAME": "me", "GIT_COMMITTER_EMAIL": "me@example.test"}


def test_clone_push_and_fetch(world, tmp_path):
    git = need("git")
    served = tmp_path / "served"
    subprocess.run(
        [git, "init", "--quiet", "--bare", "--initial-branch=main", served / "repo.git"], check=True
    )
    world.upstream.default = git_server(served)
    url, mark = world.url("/repo.git", GIT_HOST), world.mark()

    def run(*args, cwd=None, fails=False):
        return world.run(git, *args, cwd=cwd, env=ME, fails=fails)

    run("clone", "--quiet", url, tmp_path / "one")
    # More than git keeps in memory: it is sent in chunks, after a first small request.
    (tmp_path / "one/large").write_bytes(random.Random(4).randbytes(3 << 20))
    run("add", "large", cwd=tmp_path / "one")
    run("commit", "--quiet", "--message=large", cwd=tmp_path / "one")
    run("push", "--quiet", "origin", "HEAD:main", cwd=tmp_path / "one")
    run("clone", "--quiet", url, tmp_path / "two")
    assert (tmp_path / "two/large").read_bytes() == (tmp_path / "one/large").read_bytes()
    for number in range(40):  # so many that what git says of its own commits in a fetch is compressed
        run("commit", "--quiet", "--allow-empty", f"--message={number}", cwd=tmp_path / "two")
    run("commit", "--quiet", "--allow-empty", "--message=last", cwd=tmp_path / "one")
    run("push", "--quiet", "origin", "HEAD:main", cwd=tmp_path / "one")
    run("fetch", "--quiet", "origin", cwd=tmp_path / "two")
    assert "last" in run("log", "--oneline", "origin/main", cwd=tmp_path / "two").out

    assert any(seen.header("transfer-encoding") for seen in world.seen("/repo.git/git-receive-pack"))
    assert any(seen.header("content-encoding") == "gzip" for seen in world.seen("/repo.git/git-upload-pack"))
    refused = run("ls-remote", world.url("/repo.git", REFUSED), fails=True)
    assert "403" in refused.err
    assert world.told(mark) == {(GIT_HOST, "allowed", "git"), (REFUSED, "denied", None)}
