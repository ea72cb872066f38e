import os

import pytest

from clawbox.children.files.folder import KIND, KIND_OBJECT, FileLimits, Folder
from clawbox.children.kind import Place
from clawbox.children.launcher import Launcher

UID, GID = 913_000, 913_777
OUTSIDE = b"kept from it"


class Sandbox:
    """A folder of a sandbox on this machine, as its user has it, beside what is not its own."""

    def __init__(self, forker, base):
        self.forker = forker
        self.outside = base / "outside"
        self.root = base / "root"
        for path in (base, self.outside, self.root):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)  # so that nothing but the child's root keeps it in
        for name in ("secret", "new"):
            (self.outside / name).write_bytes(OUTSIDE)
            (self.outside / name).chmod(0o666)
        os.chown(self.root, UID, GID)
        self.descriptor = os.open(self.root, os.O_PATH | os.O_DIRECTORY)
        self.folder = self.limited()

    def limited(self, **limits):
        return Folder(self.forker, Place(self.descriptor, UID, GID), FileLimits(**limits))

    def make(self, name, content=b"content", mode=0o644):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        self.own(path)
        return path

    def own(self, path):
        while path != self.root:
            os.chown(path, UID, GID, follow_symlinks=False)
            path = path.parent

    def link(self, name, target):
        (self.root / name).symlink_to(target)

    def names(self):
        """Everything below the root."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*"))


async def put(folder, path, *chunks, **options):
    async with folder.write(path, **options) as writing:
        for chunk in chunks:
            await writing.write(chunk)
        return await writing.finish()


async def get(folder, path, **options):
    async with folder.read(path, **options) as reading:
        return b"".join([chunk async for chunk in reading])


@pytest.fixture
async def sandbox(tmp_path):
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    async with Launcher({KIND: KIND_OBJECT}, None) as launcher:
        made = Sandbox(launcher, tmp_path)
        yield made
        assert launcher.children == 0
        os.close(made.descriptor)
