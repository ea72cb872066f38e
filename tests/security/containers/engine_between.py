"""Stands between a server and its engine, to do something at the moment of a certain request."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


class EngineBetween:
    """``with EngineBetween(url, path, {b"/containers/create": act})`` calls ``act`` before it passes that on.

    An engine at a Unix socket alone; every byte is passed on as it is.
    """

    def __init__(self, engine_url: str, path: Path, before: Mapping[bytes, Callable[[], object]]) -> None:
        self.url = f"unix://{path}"
        self._engine = engine_url.removeprefix("unix://")
        self._before = before
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._over, self._tell = socket.socketpair()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tell.close()
        for thread in self._threads:
            thread.join()
        self._listener.close()
        self._over.close()

    def _accept(self) -> None:
        while True:
            readable, _, _ = select.select([self._listener, self._over], [], [])
            if self._over in readable:
                return
            connection, _ = self._listener.accept()
            thread = threading.Thread(target=self._pass_on, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, server: socket.socket) -> None:
        with server, socket.socket(socket.AF_UNIX) as engine, contextlib.suppress(OSError):
            engine.connect(self._engine)
            others = {server: engine, engine: server}
            while others:
                readable, _, _ = select.select([*others, self._over], [], [])
                if self._over in readable:
                    return
                for sock in readable:
                    data = sock.recv(1 << 16)
                    if not data:
                        # Whoever has no more to say may still have something to hear.
                        others.pop(sock).shutdown(socket.SHUT_WR)
                        continue
                    if sock is server:
                        for part, act in self._before.items():
                            if part in data.split(b"\r\n", 1)[0]:
                                act()
                    others[sock].sendall(data)
