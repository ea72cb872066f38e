"""``clawbox cp``: files and folders into a container, and out of one."""

import contextlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from clawbox.cli.connection import Server, takes_server
from clawbox.cli.container_ids import resolve
from clawbox.cli.errors import CliError, ExitCode
from clawbox.cli.options import JsonOption
from clawbox.cli.output import ByteRelay, escape, print_error, print_json
from clawbox.cli.received import ReceivedTree, entry_name, is_folder

if TYPE_CHECKING:
    from clawbox_client import FileInfo, SyncClient

_STDIO = "-"
_REMOTE = re.compile(r"((?:clawbox-)?[0-9A-Fa-f-]{1,36}):(/.*)", re.DOTALL)
_LIKE_REMOTE = re.compile(r"[^/.:][^/:]*:(.*)", re.DOTALL)


@dataclass
class _Report:
    """What was copied, and what was not."""

    show: Callable[[int], None]
    files: int = 0
    copied_bytes: int = 0
    skipped: int = 0

    def add(self, count: int) -> None:
        """Counts bytes."""
        self.copied_bytes += count
        self.show(self.copied_bytes)

    def skip(self, path: bytes, why: str) -> None:
        """Says that something is not copied."""
        self.skipped += 1
        print_error(escape(f"clawbox: {os.fsdecode(path)} is not copied: it is {why}.", keep=""))


def mount(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(name="cp")(takes_server(copy))


def copy(
    server: Server,
    *,
    source: Annotated[
        str,
        typer.Argument(help="ID:/PATH, a local path, or - for stdin.", metavar="SOURCE", show_default=False),
    ],
    destination: Annotated[
        str,
        typer.Argument(
            help="ID:/PATH, a local path, or - for stdout.", metavar="DESTINATION", show_default=False
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Copy a file or a folder into a container, or out of one. Permissions are kept.

    Below a destination that is a folder it keeps its name; SOURCE/. is what is in a folder. A file is there
    wholly or as it was before. Links and special files are not copied: each is named, and the exit code is 1.
    A local path with a colon in it is written ./PATH.
    """
    here, there = _REMOTE.fullmatch(source), _REMOTE.fullmatch(destination)
    if (here is None) == (there is None):
        raise CliError(
            "one of the two must be in a container, as ID:/PATH, and one here",
            hint=_why_not_remote(source, destination),
        )
    with server.connect() as client, _progress(quiet=_STDIO in {source, destination}) as show:
        report = _Report(show)
        if there is not None:
            container_id = resolve(client, there[1])
            _Upload(client, container_id, report).run(source, os.fsencode(there[2]))
        elif here is not None:
            container_id = resolve(client, here[1])
            _Download(client, container_id, report).run(os.fsencode(here[2]), destination)
    if json and destination != _STDIO:
        print_json({"files": report.files, "bytes": report.copied_bytes, "skipped": report.skipped})
    if report.skipped:
        raise typer.Exit(ExitCode.FAILED)


def _why_not_remote(*arguments: str) -> str:
    """What is missing in an argument that was meant to be in a container."""
    for argument in arguments:
        match = _LIKE_REMOTE.fullmatch(argument)
        if match and not _REMOTE.fullmatch(argument):
            if match[1].startswith("/"):
                return (
                    f"{argument.partition(':')[0]!r} is not the id of a container; `clawbox ps -a` shows them"
                )
            return f"In {argument!r} the path does not begin with /"
    return ""


class _Upload:
    """From here into a container."""

    def __init__(self, client: "SyncClient", container_id: str, report: _Report) -> None:
        self._client = client
        self._container_id = container_id
        self._report = report

    def run(self, source: str, target: bytes) -> None:
        """Copies a file, a folder or stdin."""
        if source == _STDIO:
            self._file(iter(lambda: os.read(sys.stdin.fileno(), 64 << 10), b""), target, None, None)
            return
        path = os.fsencode(source)
        about = os.stat(path)  # noqa: PTH116 - paths are bytes; what the user named may be a link
        contents = source.endswith(("/.", "/..")) or source in {".", ".."}
        name = os.path.basename(os.path.abspath(path))  # noqa: PTH100, PTH119 - as above
        target = self._place(target, name, contents=contents)
        if stat.S_ISDIR(about.st_mode):
            self._folder(path, target, about)
        elif stat.S_ISREG(about.st_mode):
            self._local_file(path, target)
        else:
            raise CliError(f"{source} is neither a file nor a folder", hint="- copies stdin")

    def _place(self, target: bytes, name: bytes, *, contents: bool) -> bytes:
        """Where it goes: into a folder that is there, else to that very path."""
        from clawbox_client import NotFound  # noqa: PLC0415 - loaded by connect

        wanted = target.rstrip(b"/") or b"/"
        if contents:
            return wanted
        try:
            known = self._client.stat_file(self._container_id, wanted)
        except NotFound:
            if target.endswith(b"/"):
                raise CliError(
                    f"there is no folder {os.fsdecode(wanted)} in the container", code=ExitCode.NOT_FOUND
                ) from None
            return wanted
        return wanted + b"/" + name if known.type == "directory" else wanted

    def _folder(self, path: bytes, target: bytes, about: os.stat_result) -> None:
        waiting = [(path, target, about.st_mode)]
        while waiting:
            path, target, mode = waiting.pop()
            # Its own user must be able to fill it; there is no changing of modes afterwards.
            self._client.make_directory(
                self._container_id, target, mode=stat.S_IMODE(mode) & 0o777 | 0o700, make_parents=True
            )
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                inside = target + b"/" + entry.name
                if entry.is_symlink():
                    self._report.skip(entry.path, "a link")
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, inside, entry.stat(follow_symlinks=False).st_mode))
                elif entry.is_file(follow_symlinks=False):
                    self._local_file(entry.path, inside, os.O_NOFOLLOW)
                else:
                    self._report.skip(entry.path, "no regular file")

    def _local_file(self, path: bytes, target: bytes, flags: int = 0) -> None:
        # Without O_NONBLOCK a pipe that took the file's place would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                self._report.skip(path, "no regular file")
                return
            pieces = iter(lambda: file.read(64 << 10), b"")
            self._file(pieces, target, stat.S_IMODE(about.st_mode) & 0o777, about.st_size)

    def _file(self, pieces: Iterator[bytes], target: bytes, mode: int | None, size: int | None) -> None:
        def counted() -> Iterator[bytes]:
            for piece in pieces:
                yield piece
                self._report.add(len(piece))

        self._client.write_file(self._container_id, target, counted(), mode=mode, size_bytes=size)
        self._report.files += 1


class _Download:
    """Out of a container to here. What the other side calls things is believed by nobody."""

    def __init__(self, client: "SyncClient", container_id: str, report: _Report) -> None:
        self._client = client
        self._container_id = container_id
        self._report = report

    def run(self, source: bytes, destination: str) -> None:
        """Copies a file or a folder, or a file to stdout."""
        contents = source.endswith(b"/.")
        path = source.removesuffix(b"/.").rstrip(b"/") or b"/"
        if destination == _STDIO:
            relay = ByteRelay(sys.stdout)
            for chunk in self._chunks(path):
                relay.feed(chunk)
            relay.feed(b"", final=True)
            return
        target = os.fsencode(destination)
        about = self._client.stat_file(self._container_id, path)
        if about.type == "symlink":
            raise CliError(f"{os.fsdecode(path)} is a link", hint="Name what it points to")
        name = os.path.basename(path)  # noqa: PTH119 - paths are bytes
        folder, name = self._place(target, name, is_contents=contents)
        with ReceivedTree(folder) as tree:
            if about.type == "directory":
                if name:
                    tree.make_folder((name,), about.mode)
                self._folder(tree, path, (name,) if name else ())
            elif about.type == "regular":
                if not name:
                    raise CliError(f"{os.fsdecode(path)} is a file, with nothing in it to copy")
                self._file(tree, path, (name,), about)
            else:
                raise CliError(f"{os.fsdecode(path)} is neither a file nor a folder")
            tree.finish()

    @staticmethod
    def _place(target: bytes, name: bytes, *, is_contents: bool) -> tuple[bytes, bytes]:
        """The local folder that is there, and the name in it; no name for the contents of a folder."""
        if is_folder(target):
            if not is_contents and name in {b"", b".", b".."}:
                raise CliError("what is copied has no name", hint="Name the destination")
            return target, b"" if is_contents else name
        if target.endswith(b"/"):
            raise CliError(f"there is no folder {os.fsdecode(target)}", code=ExitCode.NOT_FOUND)
        folder, own_name = os.path.split(target)
        if own_name in {b".", b".."}:
            raise CliError(f"there is no folder {os.fsdecode(target)}", code=ExitCode.NOT_FOUND)
        return folder or b".", own_name

    def _folder(self, tree: ReceivedTree, path: bytes, names: tuple[bytes, ...]) -> None:
        waiting = [(path, names)]
        while waiting:
            path, names = waiting.pop()
            for one in self._client.list_files(self._container_id, path, page_size=1000):
                inside = (*names, entry_name(one.path, path))
                if one.type == "directory":
                    tree.make_folder(inside, one.mode)
                    waiting.append((one.path, inside))
                elif one.type == "regular":
                    self._file(tree, one.path, inside, one)
                else:
                    self._report.skip(one.path, "a link" if one.type == "symlink" else "no regular file")

    def _file(self, tree: ReceivedTree, path: bytes, names: tuple[bytes, ...], about: "FileInfo") -> None:
        tree.write_file(names, self._chunks(path), about.mode)
        self._report.files += 1

    def _chunks(self, path: bytes) -> Iterator[bytes]:
        complete = False
        with self._client.open_file(self._container_id, path) as parts:
            for part in parts:
                complete = True
                if isinstance(part, bytes):
                    self._report.add(len(part))
                    yield part
        if not complete:
            raise CliError(f"the server sent nothing for {os.fsdecode(path)}", code=ExitCode.UNAVAILABLE)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A count of bytes on a terminal's stderr."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - only for a bar
    from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (TextColumn("copying"), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done: bar.update(task, completed=done)
