"""Package managers, each with a registry that wants a credential."""

from __future__ import annotations

import os
import shutil
import sys

from tests.egress_world import answers
from tests.programs.registries import WHEEL, serve_index, serve_registry
from tests.programs.world import REFUSED, node, not_run

HOST = "packages.example.test"


BOTH = {(HOST, "allowed", "packages"), (REFUSED, "denied", None)}


def test_pip_installs(world, tmp_path):
    serve_index(world)
    mark = world.mark()
    pip = [sys.executable, "-m", "pip", "--no-cache-dir", "--disable-pip-version-check"]
    install = [*pip, "install", "--retries=0", f"--target={tmp_path}", "tiny-wheel"]
    own = {"PIP_CONFIG_FILE": os.devnull}

    world.run(*install, f"--index-url={world.url('/simple/', HOST)}", env=own)

    assert (tmp_path / "tiny_wheel.py").read_text() == "ANSWER = 42\n"
    assert len(world.seen(f"/files/{WHEEL}")) == 1
    world.run(*install, f"--index-url={world.url('/simple/', REFUSED)}", "--upgrade", env=own, fails=True)
    assert world.told(mark) == BOTH


def test_npm_installs(world, tmp_path):
    serve_registry(world, world.url("", HOST))
    mark = world.mark()
    program, npm = node()
    install = [*npm, "install", "--no-audit", "--no-fund", "--fetch-retries=0", f"--cache={tmp_path}/cache"]
    (tmp_path / "package.json").write_text("{}")

    world.run(*install, f"--registry={world.url('/', HOST)}", "tiny-package", cwd=tmp_path)

    assert world.run(program, "--print", "require('tiny-package')", cwd=tmp_path).out == "42\n"
    refused = [*install, f"--registry={world.url('/', REFUSED)}", "another-package"]
    assert "403" in world.run(*refused, cwd=tmp_path, fails=True).err
    assert world.told(mark) == BOTH


def test_apt_downloads(world, tmp_path):
    helper = shutil.which("/usr/lib/apt/apt-helper")
    if helper is None:
        not_run("apt is not on this machine")
    world.route("/pool/tiny.deb", answers.body(b"a package"))
    mark, file = world.mark(), tmp_path / "tiny.deb"
    # As root it would become another user, who may not write here.
    download = [helper, "-o=APT::Sandbox::User=", "-o=Acquire::Retries=0", "download-file"]

    world.run(*download, world.url("/pool/tiny.deb", HOST), file)

    assert file.read_bytes() == b"a package"
    world.run(*download, world.url("/pool/tiny.deb", REFUSED), tmp_path / "other.deb", fails=True)
    assert world.told(mark) == BOTH
