"""stdout and stderr of a run: written through to WASI line by line, and kept for the answer."""

import io
from builtins import bytes, len, super  # names of this module's own, whatever user code makes of the others


class Recorder(io.FileIO):
    """A WASI stream that remembers what was written to it.

    Only what the host took is kept, so the answer never holds more than the host's limit on the stream.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._chunks: list[bytes] = []
        self._live = False

    def begin(self) -> None:
        """Forget what was written, and from now on write through: the build must not touch WASI's streams."""
        self._chunks.clear()
        self._live = True

    def write(self, data) -> int:  # noqa: ANN001 - any buffer
        data = bytes(data)
        sent = 0
        while sent < len(data):
            rest = data[sent:] if sent else data
            count = super().write(rest) if self._live else len(rest)
            if not count:
                break
            self._chunks.append(data[sent : sent + count] if count < len(data) else data)
            sent += count
        return sent

    def text(self) -> str:
        return b"".join(self._chunks).decode("utf-8", "replace")


def open_text(recorder: Recorder) -> io.TextIOWrapper:
    """A text stream that hands each line to the recorder as soon as it is complete."""
    return io.TextIOWrapper(
        recorder, encoding="utf-8", errors="backslashreplace", newline="\n", line_buffering=True
    )
