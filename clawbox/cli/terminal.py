"""This terminal, lent to a process elsewhere: raw mode, its size, its keys and its signals."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import threading
import tty as tty_module
from typing import TYPE_CHECKING

from clawbox.cli.output import ReaderGoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from clawbox_client import SyncExec

_CHUNK_BYTES = 64 << 10
_PATIENCE = 3
"""Ctrl-C pressed so often gives up, whatever the process does with the signal."""


class _EndedBySignal(SystemExit):
    """SIGTERM or SIGHUP: unwinds, so that the terminal is given back, and exits as a shell says it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """The terminal in raw mode: every key goes inside, Ctrl-C too. Afterwards it is as before."""
    before = termios.tcgetattr(descriptor)
    try:
        tty_module.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def forwarded_signals(process: SyncExec, *, tty: bool, size: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """While it lasts, signals of this process go to the other: INT, and with a terminal the window's size."""
    pressed = 0

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed += 1
        if pressed >= _PATIENCE:
            raise KeyboardInterrupt
        process.signal("INT")

    def resize(_number: int, _frame: FrameType | None) -> None:
        process.resize(*size())

    def end(number: int, _frame: FrameType | None) -> None:
        raise _EndedBySignal(number)

    handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {
        signal.SIGTERM: end,
        signal.SIGHUP: end,
        signal.SIGINT: interrupt,
    }
    if tty:
        handlers[signal.SIGWINCH] = resize
    if threading.current_thread() is not threading.main_thread():
        yield  # embedded: signals are somebody else's
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        if tty:
            resize(signal.SIGWINCH, None)  # it may have changed since the process was asked for
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Keyboard:
    """Where a process's stdin comes from, and the size of the terminal that it is shown on."""

    def __init__(self, *, tty: bool, interactive: bool) -> None:
        self._tty = tty
        self._interactive = interactive
        self.term = os.environ.get("TERM", "")

    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        for stream in (sys.stdout, sys.stdin, sys.stderr):
            try:
                columns, rows = os.get_terminal_size(stream.fileno())
            except (OSError, ValueError):
                continue
            if rows and columns:
                return rows, columns
        fallback = shutil.get_terminal_size()
        return fallback.lines, fallback.columns

    @contextlib.contextmanager
    def feeding(self, process: SyncExec) -> Iterator[None]:
        """Passes stdin on while it lasts; without --interactive the process finds it at its end."""
        if not self._interactive:
            if not self._tty:
                process.close_stdin()
            yield
            return
        wake, waker = os.pipe()
        thread = threading.Thread(target=_feed, args=(process, sys.stdin.fileno(), wake), daemon=True)
        thread.start()
        try:
            yield
        finally:
            process.close()  # frees a writer that waits
            os.close(waker)
            thread.join()
            os.close(wake)


def _feed(process: SyncExec, descriptor: int, wake: int) -> None:
    """Reads stdin until its end, or until the other end of ``wake`` is closed."""
    with contextlib.suppress(BrokenPipeError):
        while True:
            ready, _, _ = select.select([descriptor, wake], [], [])
            if wake in ready:
                return
            try:
                data = os.read(descriptor, _CHUNK_BYTES)
            except OSError:  # a terminal that hung up
                data = b""
            if not data:
                process.close_stdin()
                return
            process.write(data)


def write_raw(data: bytes) -> None:
    """Writes what a process draws, as it is. Raises ReaderGoneError."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ReaderGoneError from None
