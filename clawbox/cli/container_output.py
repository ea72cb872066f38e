"""What containers write, on this terminal as it comes, and how their ends become exit codes."""

from __future__ import annotations

import codecs
import sys
import time
from typing import TYPE_CHECKING

from clawbox.cli.errors import ExitCode
from clawbox.cli.output import ByteRelay, escape, jsonable, print_error, print_json_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from clawbox_client import Container, Gap, LogChunk, SyncClient


class StreamPrinter:
    """Passes stdout and stderr of a container on to those of this process, or as JSON lines to stdout."""

    def __init__(self, *, as_json: bool = False, timestamps: bool = False) -> None:
        self._as_json = as_json
        self._relays = {"stdout": ByteRelay(sys.stdout), "stderr": ByteRelay(sys.stderr)}
        self._line_begins = {"stdout": True, "stderr": True}
        self._timestamps = timestamps
        self._texts: dict[str, codecs.IncrementalDecoder] = {}

    def feed(self, stream: str, data: bytes, offset: int, at: datetime | None = None) -> None:
        """Shows bytes. Raises ReaderGoneError."""
        if self._as_json:
            self.event(stream, data=self._decoder(stream).decode(data), offset=offset, time=at)
            return
        relay = self._relays.get(stream, self._relays["stdout"])
        relay.feed(self._stamped(stream, data, at) if self._timestamps else data)

    def event(self, name: str, **fields: object) -> None:
        """Writes a JSON line."""
        shown = {key: jsonable(value) for key, value in fields.items() if value is not None}
        print_json_line({"event": name, **shown})

    def gap(self, gap: Gap) -> None:
        """Says what is missing."""
        if self._as_json:
            self.event("gap", stream=gap.stream, offset=gap.offset, length=gap.length)
            return
        # A length of 0 says that nobody knows how much it was.
        missing = f"{gap.length} bytes of {gap.stream} are" if gap.length else f"some of {gap.stream} is"
        print_error(escape(f"clawbox: {missing} no longer kept.", keep=""))

    def finish(self) -> None:
        """Shows what was held back of a character that never became whole."""
        if not self._as_json:
            for relay in self._relays.values():
                relay.feed(b"", final=True)

    def _decoder(self, stream: str) -> codecs.IncrementalDecoder:
        if stream not in self._texts:
            self._texts[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        return self._texts[stream]

    def _stamped(self, stream: str, data: bytes, at: datetime | None) -> bytes:
        stamp = f"{at.isoformat(timespec='milliseconds') if at else '-'} ".encode()
        lines = data.splitlines(keepends=True) if b"\n" not in data else data.split(b"\n")
        if b"\n" in data:
            lines = [line + b"\n" for line in lines[:-1]] + [lines[-1]]
        shown = b""
        for line in lines:
            if line:
                shown += (stamp if self._line_begins[stream] else b"") + line
                self._line_begins[stream] = line.endswith(b"\n")
        return shown


def follow(
    client: SyncClient,
    container_id: str,
    *,
    follow: bool,
    streams: Sequence[str] = (),
    tail: int | None = None,
    since: datetime | None = None,
) -> Iterator[LogChunk | Gap]:
    """What a container writes; goes on where it was when the connection breaks. Raises ClawboxError."""
    from clawbox_client import Gap, Unavailable  # noqa: PLC0415 - brings gRPC
    from clawbox_client.execs import RECONNECT_SECONDS, Patience  # noqa: PLC0415

    patience = Patience(RECONNECT_SECONDS)
    seen: dict[str, int] = {}
    while True:
        try:
            offsets = (seen.get("stdout", 0), seen.get("stderr", 0)) if seen else None
            with client.logs(
                container_id,
                streams=streams,
                offsets=offsets,
                follow=follow,
                tail=None if seen else tail,
                since=None if seen else since,
            ) as events:
                for event in events:
                    patience.connected()
                    length = event.length if isinstance(event, Gap) else len(event.data)
                    # The other stream, too, is told from here on: offsets name both.
                    seen[event.stream] = event.offset + length
                    yield event
        except Unavailable as error:
            # With one stream's place alone the other could be told twice: then the error is the answer.
            whole = (tail is None and since is None) or len(streams) == 1 or len(seen) in {0, 2}
            resumable = follow and whole
            pause = patience.pause(error) if resumable else None
            if pause is None:
                raise
            time.sleep(pause)
        else:
            return


def exit_code(container: Container) -> int:
    """What a command that waited for a container exits with: the program's own code, or FAILED."""
    if container.exit_code is None:
        return ExitCode.FAILED
    if container.exit_code == 0 and container.state.name not in {"COMPLETED", "UNKNOWN"}:
        return ExitCode.FAILED  # a time limit or somebody ended it, however well it took that
    return container.exit_code & 0xFF


def explain_end(container: Container, say: Callable[[str], None] = print_error) -> None:
    """Says why a program ended otherwise than by itself."""
    if container.state.name in {"COMPLETED", "UNKNOWN"}:
        return
    by_itself = (
        container.state.name == "FAILED" and container.exit_code is not None and not container.oom_killed
    )
    if by_itself:
        return
    why = f": {container.state_reason}" if container.state_reason else ""
    say(escape(f"clawbox: {container.state.name}{why}", keep=""))
