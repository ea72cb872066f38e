"""A Java to be added to the agent image: the distribution's package, unpacked and not installed.

The libraries that it needs are in the image, for others.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from pathlib import Path

from clawbox.wasm.build.commands import BuildError, run_command
from clawbox.wasm.build.node import cache_folder, digest_of, locked
from tools.agent_base import SOURCE

_SECONDS = 300.0


def layer() -> bytes:
    """An archive with ``usr/lib/jvm`` and ``usr/local/bin/java``; made once. Raises BuildError."""
    with locked("agent-java"):
        path = cache_folder("agent-java") / f"{digest_of([Path(__file__), SOURCE / 'packages'])[:16]}.tar"
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as made:
                folder = Path(made)
                _build(folder)
                (folder / "layer.tar").replace(path)
    return path.read_bytes()


def _build(folder: Path) -> None:
    said = _run(["apt-cache", "depends", "default-jre-headless"], folder)
    found = re.search(r"openjdk-\d+-jre-headless", said)
    if found is None:
        raise BuildError("apt knows no Java here")
    # apt has nobody's rights while it downloads, and could not write here otherwise.
    folder.chmod(0o777)
    _run(["apt-get", "-qq", "download", found[0]], folder)
    root = folder / "root"
    [package] = folder.glob("*.deb")
    _run(["dpkg-deb", "--extract", str(package), str(root)], folder)
    [program] = (root / "usr/lib/jvm").glob("java-[0-9][0-9]-openjdk-*/bin/java")
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "usr/local/bin/java").symlink_to(Path("/", program.relative_to(root)))
    with tarfile.open(folder / "layer.tar", "w") as tar:
        for name in ("usr/lib/jvm", "usr/local/bin/java", "etc"):
            tar.add(root / name, name)


def _run(command: list[str], folder: Path) -> str:
    return run_command(command, what=command[0], folder=folder, timeout=_SECONDS)
