"""The same programs in a container, with what clawbox sets there and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from clawbox_client import SyncClient

from clawbox.egress.credentials import BasicAttachment, Credential, HeaderAttachment, Secret
from clawbox.egress.vault import MasterKey, Vault
from tests.containers_world.server import settings, wait_for_containers
from tests.egress_world import TestCa, Upstream, answers
from tests.live import init, running
from tests.programs.git_server import git_server
from tests.programs.registries import serve_index, serve_registry
from tests.programs.world import ALLOWED, CLIENTS, KEY, REFUSED, SECRET, Done, Loop, World, need, with_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox.egress.credentials import Attachment
    from tests.live import LiveServer

API, GIT, PACKAGES = ALLOWED
MORE = """
[container_policy]
network_allowlist = [{rules}]
allowed_credentials = ["api", "git", "packages"]
[egress]
trusted_networks = ["127.0.0.0/8"]
upstream_ca = ["{home}/upstream.pem"]
"""


class InContainers(World):
    """The servers that may be reached and the one that may not, and a clawbox server with containers."""

    def __init__(self, server: LiveServer, upstream: Upstream, loop: Loop, client: SyncClient) -> None:
        said = {"sockets": ["/run/clawbox/proxy.sock"], "addresses": ["http://127.0.0.1:3128"]}
        super().__init__(server.home, upstream, loop, server.process, said)
        self.client = client
        self.container_id = ""

    def box(self, image: str) -> str:
        """A container that may reach those hosts, with their credentials."""
        return self.client.spawn(
            "programs",
            image=image,
            hold=True,
            memory_mb=1024,
            network=[f"{host}:{self.upstream.port}" for host in ALLOWED],
            credentials=["api", "git", "packages"],
        ).container_id

    def inside(self, script: str, *, fails: bool = False, box: str = "", **variables: str) -> Done:
        """A shell script in the container, to its end. The secret is nowhere in what it prints."""
        done = self.client.run_command(
            box or self.container_id,
            ["sh", "-euc", script],
            env=variables,
            timeout_ms=90_000,
            deadline=100,
        )
        found = Done(done.exit_code or 0, done.stdout, done.stderr)
        assert done.exit_code is not None, done
        assert SECRET not in found.out + found.err
        # Had it been there, it would have been taken out on the way.
        assert not {found.pattern for found in done.findings} & {"api", "git", "packages"}, done.findings
        assert (found.code != 0) is fails, found
        return found

    def put(self, path: str, data: bytes, box: str = "") -> None:
        """A file in the container."""
        self.client.write_file(box or self.container_id, path, data, make_parents=True)


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: Any, engine_url: str, agent_image: str) -> Iterator[InContainers]:
    home = tmp_path_factory.mktemp("boxed") / "clawbox"
    with contextlib.ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.close)
        ca = TestCa()
        upstream = Upstream(tls=ca.server_context(*ALLOWED, REFUSED))
        loop.run(upstream.__aenter__())
        stack.callback(lambda: loop.run(upstream.__aexit__(None, None, None)))
        rules = ", ".join(f'{{ host = "{host}", ports = [{upstream.port}] }}' for host in ALLOWED)
        init(home, settings(home, engine_url, more=MORE.format(home=home, rules=rules)))
        (home / "upstream.pem").write_text(ca.pem)
        attachments: list[Attachment] = [
            HeaderAttachment(),
            BasicAttachment("robot"),
            BasicAttachment("robot"),
        ]
        vault = Vault(home / "credentials.enc", MasterKey(KEY))
        for host, attachment in zip(ALLOWED, attachments, strict=True):
            name = host.split(".")[0]
            vault.put(Credential(name, Secret(SECRET), (host,), attachment, ports=(upstream.port,)))
        names = tmp_path_factory.mktemp("names")
        server = stack.enter_context(running(home, wrapper=with_hosts(names), CLAWBOX_MASTER_KEY=KEY))
        wait_for_containers(server)
        client = stack.enter_context(SyncClient(server.address, token=server.token))
        made = InContainers(server, upstream, loop, client)
        made.container_id = made.box(agent_image)
        yield made
        client.remove_container(made.container_id, force=True)


_PIPS_REQUESTS = """
import runpy, sys
from pip._vendor import requests
sys.modules["requests"], sys.argv = requests, sys.argv[1:]
runpy.run_path(sys.argv[0])
"""
FETCHES = {
    "curl": "curl --silent --show-error --fail",
    "wget": "wget --no-verbose --tries=1 --output-document=-",
    "urllib": "python3 /workspace/clients/fetch_urllib.py",
    # The one that pip brings along.
    "requests": f"python3 -c {shlex.quote(_PIPS_REQUESTS)} /workspace/clients/fetch_requests.py",
    "node": "node /workspace/clients/fetch.mjs",
    "curl at the Unix socket": (
        "curl --silent --show-error --fail --unix-socket $CLAWBOX_PROXY_SOCKET"
        ' --header "Proxy-Authorization: Bearer $CLAWBOX_PROXY_TOKEN"'
    ),
}


def fetch(boxed: InContainers, name: str, command: str, box: str = "") -> None:
    path, mark = f"/in-a-box/{name.replace(' ', '-')}", boxed.mark()
    boxed.route(path, answers.echo)
    prefix = "http://localhost/" if "socket" in name else ""

    done = boxed.inside(f"{command} {prefix}{boxed.url(path)}", box=box)

    assert '"method": "GET"' in done.out
    (seen,) = boxed.seen(path)
    assert seen.header("authorization") == f"Bearer {SECRET}"
    refused = boxed.inside(f"{command} {prefix}{boxed.url(path, REFUSED)}", box=box, fails=True)
    said = refused.out + refused.err
    assert "403" in said or "Forbidden" in said, refused
    assert boxed.told(mark) == {(API, "allowed", "api"), (REFUSED, "denied", None)}


@pytest.mark.parametrize("name", FETCHES)
def test_a_program_gets_its_answer_and_no_other_host(boxed, name):
    for client in ("fetch_urllib.py", "fetch_requests.py", "fetch.mjs"):
        boxed.put(f"/workspace/clients/{client}", (CLIENTS / client).read_bytes())
    fetch(boxed, name, FETCHES[name])


def test_busyboxs_wget_gets_its_answer_and_no_other_host(boxed, busybox_image):
    """It ends its half of the connection behind an https request, as Alpine's does."""
    box = boxed.box(busybox_image)
    try:
        fetch(boxed, "busybox wget", "wget -q -O -", box=box)
    finally:
        boxed.client.remove_container(box, force=True)


def test_why_a_host_was_refused_is_readable(boxed):
    told = boxed.inside(f"curl -sS -o /dev/null -v {boxed.url('/', REFUSED)}", fails=True).err
    assert "X-Clawbox-Error: host_not_allowed" in told


def test_git_clones_and_pushes(boxed, tmp_path):
    subprocess.run(
        [need("git"), "init", "--quiet", "--bare", "--initial-branch=main", tmp_path / "served/repo.git"],
        check=True,
    )
    boxed.upstream.default = git_server(tmp_path / "served")
    url, mark = boxed.url("/repo.git", GIT), boxed.mark()
    boxed.put("/workspace/large", random.Random(4).randbytes(2 << 20))
    me = {"GIT_AUTHOR_NAME": "me", "GIT_AUTHOR_EMAIL": "me@example.test", "GIT_TERMINAL_PROMPT": "0"}
    me |= {"GIT_COMMITTER_NAME": "me", "GIT_COMMITTER_EMAIL": "me@example.test"}

    boxed.inside(
        f"git clone --quiet {url} one && cp large one/ && cd one && git add large"
        " && git commit --quiet --message=large && git push --quiet origin HEAD:main"
        f" && git clone --quiet {url} ../two && cmp large ../two/large",
        **me,
    )

    assert "403" in boxed.inside(f"git ls-remote {boxed.url('/repo.git', REFUSED)}", fails=True, **me).err
    assert boxed.told(mark) == {(GIT, "allowed", "git"), (REFUSED, "denied", None)}


def test_pip_installs(boxed):
    serve_index(boxed)
    mark = boxed.mark()
    install = "pip install --no-cache-dir --retries=0 --target=/workspace/wheels tiny-wheel --index-url="
    check = "PYTHONPATH=/workspace/wheels python3 -c 'import tiny_wheel; print(tiny_wheel.ANSWER)'"
    assert boxed.inside(f"{install}{boxed.url('/simple/', PACKAGES)} >&2; {check}").out == "42\n"
    boxed.inside(f"{install}{boxed.url('/simple/', REFUSED)} --upgrade", fails=True)
    assert boxed.told(mark) == {(PACKAGES, "allowed", "packages"), (REFUSED, "denied", None)}


def test_npm_installs(boxed):
    serve_registry(boxed, boxed.url("", PACKAGES))
    mark = boxed.mark()
    install = "npm install --no-audit --no-fund --fetch-retries=0 --registry="
    found = boxed.inside(
        "mkdir -p node && cd node && echo '{}' > package.json &&"
        f" {install}{boxed.url('/', PACKAGES)} tiny-package >&2 && node --print 'require(`tiny-package`)'"
    )
    assert found.out == "42\n"
    refused = boxed.inside(f"cd node && {install}{boxed.url('/', REFUSED)} another-package", fails=True)
    assert "403" in refused.err
    assert boxed.told(mark) == {(PACKAGES, "allowed", "packages"), (REFUSED, "denied", None)}


def test_apt_updates_with_its_state_in_the_workspace(boxed: InContainers) -> None:
    listed = (
        b"Package: tiny\nVersion: 1\nArchitecture: all\nFilename: ./tiny.deb\nSize: 1\nDescription: tiny\n\n"
    )
    digest = hashlib.sha256(listed).hexdigest()
    release = f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {digest} {len(listed)} Packages\n".encode()
    boxed.route("/debian/./Release", answers.body(release))
    boxed.route("/debian/Release", answers.body(release))
    boxed.route("/debian/./Packages", answers.body(listed))
    boxed.route("/debian/Packages", answers.body(listed))
    mark = boxed.mark()

    def update(host: str, fails: bool) -> Done:
        boxed.put("/workspace/apt/sources", f"deb [trusted=yes] {boxed.url('/debian', host)} ./\n".encode())
        options = shlex.join(
            f"-o{name}"
            for name in (
                "Dir::State=/workspace/apt/state",
                "Dir::State::status=/var/lib/dpkg/status",
                "Dir::Cache=/workspace/apt/cache",
                "Dir::Etc::sourcelist=/workspace/apt/sources",
                "Dir::Etc::sourceparts=-",
                "Acquire::Retries=0",
                "APT::Update::Error-Mode=any",
            )
        )
        make = "mkdir -p apt/state/lists/partial apt/cache/archives/partial"
        show = f"apt-cache {options} show tiny"
        return boxed.inside(f"{make}; apt-get {options} update; {show}", fails=fails)

    assert "Package: tiny" in update(PACKAGES, False).out
    assert "403" in update(REFUSED, True).err
    assert boxed.told(mark) == {(PACKAGES, "allowed", "packages"), (REFUSED, "denied", None)}


def test_java_gets_its_answer_and_no_other_host(boxed, java_image, tmp_path):
    subprocess.run([need("javac"), "--release", "17", "-d", tmp_path, CLIENTS / "Fetch.java"], check=True)
    box = boxed.box(java_image)
    try:
        for file in tmp_path.glob("*.class"):
            boxed.put(f"/workspace/{file.name}", file.read_bytes(), box)
        path = "/in-a-box/java"
        boxed.route(path, answers.echo)
        # It prints JAVA_TOOL_OPTIONS, in which there is no token.
        assert '"method": "GET"' in boxed.inside(f"java Fetch {boxed.url(path)}", box=box).out
        assert boxed.seen(path)[0].header("authorization") == f"Bearer {SECRET}"
        assert "403" in boxed.inside(f"java Fetch {boxed.url(path, REFUSED)}", box=box, fails=True).err
    finally:
        boxed.client.remove_container(box, force=True)


# It is given backwards, and only where it was found is printed: else it would be taken out on the way.
_LOOK = """
import os, sys
wanted = sys.argv[1][::-1].encode()
for root in ("/workspace", "/run/clawbox", "/tmp", "/etc", "/proc"):
    for folder, names, files in os.walk(root):
        for name in files:
            path = os.path.join(folder, name)
            if root == "/proc" and name not in ("environ", "cmdline", "maps", "mountinfo"):
                continue
            if os.path.isfile(path):
                try:
                    with open(path, "rb") as file:
                        if wanted in file.read():
                            print(path)
                except OSError:
                    pass
"""


def test_the_secret_is_nowhere_inside(boxed):
    """In no file that a program there can read, and in the environment of none of its processes."""
    boxed.put("/workspace/found", SECRET.encode())
    look = f"python3 -c {shlex.quote(_LOOK)}"
    try:
        assert boxed.inside(f"{look} {SECRET[::-1]}").out == "/workspace/found\n"
    finally:
        boxed.client.remove_file(boxed.container_id, "/workspace/found")
    assert boxed.inside(f"{look} {SECRET[::-1]}").out == ""
