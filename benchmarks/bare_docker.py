"""What is measured against: the engine, asked for the same by somebody who does nothing else.

One connection that is kept, no checks, no sidecar, no state. Its containers have the hardening of clawbox's
own: what an engine says of one that clawbox made is what it is asked for again, without the gate.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from clawbox.containers.gate import HOLD_PATH
from tests.engine import EngineApi, ImageMaker, PrivateEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_URL = "unix:///var/run/docker.sock"
LABEL = "clawbox.benchmark"
PIECE_BYTES = 1 << 20


@contextmanager
def engine() -> Iterator[str]:
    """Where an engine answers: where ``DOCKER_HOST`` says, at the usual place, or one that goes again.

    Raises EngineMissingError.
    """
    for url in (os.environ.get("DOCKER_HOST", ""), DEFAULT_URL):
        if url.startswith("unix://") and EngineApi(url, timeout=10).answers():
            yield url
            return
    with PrivateEngine() as own:
        yield own.url


@contextmanager
def image(url: str) -> Iterator[str]:
    """An image of busybox, which goes again."""
    maker = ImageMaker(EngineApi(url))
    with ExitStack() as stack:
        stack.callback(maker.remove)
        yield maker()


class BareDocker:
    """One client of the engine. Its calls block; a thread has one of its own."""

    def __init__(self, url: str) -> None:
        self._path = url.removeprefix("unix://")
        self._connection = _UnixConnection(self._path)

    def close(self) -> None:
        """Let go of its connection."""
        self._connection.close()

    def like(self, container: str) -> dict[str, Any]:
        """What makes a container with the values of another, whose program is clawbox's ``hold``."""
        known = self._json("GET", f"/containers/{container}/json")
        body: dict[str, Any] = known["Config"]
        body["Entrypoint"], body["Cmd"] = None, [HOLD_PATH]
        body["Labels"] = {LABEL: "1"}  # else it would be removed as nobody's
        body.pop("Hostname", None)
        body["HostConfig"] = known["HostConfig"]
        return body

    def spawn(self, body: dict[str, Any]) -> str:
        """Make one and start it; returns its id."""
        name = f"clawbox-bench-{secrets.token_hex(6)}"
        made = self._json("POST", f"/containers/create?name={name}", body)
        self._json("POST", f"/containers/{made['Id']}/start")
        return str(made["Id"])

    def remove(self, container: str) -> None:
        """Kill it, and leave nothing."""
        self._json("DELETE", f"/containers/{container}?force=1&v=1")

    def remove_all(self) -> None:
        """Remove what was made for this."""
        filters = json.dumps({"label": [LABEL]})
        for one in self._json("GET", f"/containers/json?{urlencode({'all': 1, 'filters': filters})}"):
            self.remove(one["Id"])

    def run(self, container: str, command: list[str], user: str) -> int:
        """Run a process to its end, all its output read; returns its exit code."""
        asked = {"AttachStdout": True, "AttachStderr": True, "Cmd": command, "User": user}
        exec_id = self._json("POST", f"/containers/{container}/exec", asked)["Id"]
        connection = _UnixConnection(self._path)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"/exec/{exec_id}/start", json.dumps({"Detach": False}), headers)
            connection.getresponse().read()
        finally:
            connection.close()
        return int(self._json("GET", f"/exec/{exec_id}/json")["ExitCode"])

    def put_archive(self, container: str, folder: str, archive: bytes) -> None:
        """Unpack an archive, as ``docker cp`` does."""
        path = f"/containers/{container}/archive?{urlencode({'path': folder})}"
        self._call("PUT", path, archive, "application/x-tar").read()

    def get_archive(self, container: str, path: str) -> int:
        """Read a file's archive, and drop it; returns how many bytes came."""
        answer = self._call("GET", f"/containers/{container}/archive?{urlencode({'path': path})}")
        received = 0
        while data := answer.read(PIECE_BYTES):
            received += len(data)
        return received

    def _json(self, method: str, path: str, body: object = None) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        said = self._call(method, path, raw, "application/json").read()
        return json.loads(said) if said else None

    def _call(
        self, method: str, path: str, body: bytes | None = None, kind: str = ""
    ) -> http.client.HTTPResponse:
        self._connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = self._connection.getresponse()
        if answer.status >= 400:
            raise RuntimeError(f"the engine answers {answer.status}: {answer.read()!r}")
        return answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
