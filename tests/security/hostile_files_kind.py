"""A files child that somebody has taken over: it says to control what it likes."""

import os
import threading

from clawbox.children.channel import encode_frame
from clawbox.children.files.child import FilesKind
from clawbox.children.files.messages import Chunk, Entries, FileInfo, Found, Listed, Type

_INFO = FileInfo(path=b"x", type=Type.REGULAR, size=1, mode=0o644, modified_ns=0, uid=0, gid=0)


class HostileFilesKind(FilesKind):
    name = "hostile-files"

    def main(self, channel, descriptors):
        asked = os.read(channel, 65536)
        sayings: dict[bytes, bytes | bytearray] = {
            b"garbage": b"\x00\x00\x00\x05\xffabcd",
            b"huge": b"\x7f\xff\xff\xff",
            b"half": b"\x00\x00\x00\x05\xff",
            b"entries": encode_frame(Entries((_INFO,) * 300)) * 300,
            b"other": encode_frame(Listed(more=False)),
            b"chunks": encode_frame(Found(_INFO)) + encode_frame(Chunk(b"x")) + encode_frame(Found(_INFO)),
        }
        for name, said in sayings.items():
            if name in asked:
                os.write(channel, bytes(said))
        while b"stays" in asked:
            threading.Event().wait()  # whatever happens to its channel


KIND = HostileFilesKind()
