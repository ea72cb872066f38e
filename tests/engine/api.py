"""The few calls of an engine's HTTP API that tests make beside clawbox; blocking."""

from __future__ import annotations

import http.client
import json
import socket
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class EngineError(Exception):
    """The engine refused a call: ``status`` says how."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("engine", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class EngineApi:
    """An engine at ``unix:///path`` or ``tcp://host:port``. Every call has a connection of its own."""

    def __init__(self, url: str, timeout: float = 120) -> None:
        self.url = url
        self._timeout = timeout

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | Sequence[str]] | None = None,
        *,
        body: bytes | IO[bytes] | None = None,
        as_json: object = None,
    ) -> bytes:
        """What it answers. Raises EngineError for a status from 400 on, OSError when nobody answers."""
        headers = {}
        if as_json is not None:
            body, headers = json.dumps(as_json).encode(), {"Content-Type": "application/json"}
        elif body is not None:
            headers = {"Content-Type": "application/x-tar"}
        connection = self._connection()
        try:
            target = f"{path}?{urlencode(query, doseq=True)}" if query else path
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            status, said = answer.status, answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"the engine at {self.url} gave half an answer") from error
        finally:
            connection.close()
        if status >= 400:
            raise EngineError(status, said.decode(errors="replace").strip())
        return said

    def answers(self) -> bool:
        """Whether there is an engine that says it is well."""
        try:
            return self.call("GET", "/_ping") == b"OK"
        except (OSError, EngineError):
            return False

    def info(self) -> Any:
        """What it says of itself."""
        return json.loads(self.call("GET", "/info"))

    def import_image(self, reference: str, tar: bytes | IO[bytes], changes: Sequence[str] = ()) -> str:
        """Make an image of one layer with instructions of a Dockerfile; returns its id, ``sha256:…``."""
        repository, _, tag = reference.rpartition(":")
        query = {"fromSrc": "-", "repo": repository, "tag": tag, "changes": list(changes)}
        said = self.call("POST", "/images/create", query, body=tar)
        lines = [json.loads(line) for line in said.splitlines()]
        for line in lines:
            if "error" in line:
                raise EngineError(500, line["error"])
        return str(lines[-1]["status"])

    def add_layer(self, image: str, tar: bytes | IO[bytes], reference: str) -> str:
        """Make an image of another and the files of an archive besides; returns its id."""
        container = self.create(image, ["true"])
        try:
            self.call("PUT", f"/containers/{container}/archive", {"path": "/"}, body=tar)
            repository, _, tag = reference.rpartition(":")
            query = {"container": container, "repo": repository, "tag": tag}
            config = self.image(image)["Config"]
            return str(json.loads(self.call("POST", "/commit", query, as_json=config))["Id"])
        finally:
            self.remove_container(container)

    def image(self, reference: str) -> Any:
        """What it says of an image."""
        return json.loads(self.call("GET", f"/images/{quote(reference)}/json"))

    def image_ids(self) -> set[str]:
        """Of all images, ``sha256:…``."""
        return {image["Id"] for image in json.loads(self.call("GET", "/images/json", {"all": "1"}))}

    def remove_image(self, reference: str) -> None:
        """With all its names; nothing when there is none."""
        try:
            self.call("DELETE", f"/images/{quote(reference)}", {"force": "1"})
        except EngineError as error:
            if error.status != 404:
                raise

    def container_ids(self, **filters: str) -> set[str]:
        """Of all containers, or of those that a filter finds: ``ancestor=``, ``label=``, ``name=``."""
        query = {"all": "1", "filters": json.dumps({key: [value] for key, value in filters.items()})}
        return {container["Id"] for container in json.loads(self.call("GET", "/containers/json", query))}

    def create(
        self,
        image: str,
        command: Sequence[str],
        *,
        name: str = "",
        host: Mapping[str, object] | None = None,
        **config: object,
    ) -> str:
        """A container with ``network=none`` that is not started yet; returns its id.

        ``host`` is its HostConfig, ``config`` the rest, both as the API calls them.
        """
        asked = {"Image": image, "Cmd": list(command), **config}
        asked["HostConfig"] = {"NetworkMode": "none", **(host or {})}
        query = {"name": name} if name else None
        return str(json.loads(self.call("POST", "/containers/create", query, as_json=asked))["Id"])

    def start(self, container: str) -> None:
        """Start what :meth:`create` made."""
        self.call("POST", f"/containers/{container}/start")

    def wait(self, container: str) -> int:
        """The exit status, when it has one."""
        return int(json.loads(self.call("POST", f"/containers/{container}/wait"))["StatusCode"])

    def container(self, container: str) -> Any:
        """What it says of a container."""
        return json.loads(self.call("GET", f"/containers/{container}/json"))

    def remove_container(self, container: str) -> None:
        """Kill and remove, with its volumes; nothing when there is none."""
        try:
            self.call("DELETE", f"/containers/{container}", {"force": "1", "v": "1"})
        except EngineError as error:
            # 409: somebody else is removing it this moment.
            if error.status not in (404, 409):
                raise

    def run(
        self, image: str, command: Sequence[str], *, user: str = "", host: Mapping[str, object] | None = None
    ) -> tuple[int, str]:
        """Exit status and output, both streams together, of a container that is removed again."""
        container = self.create(image, command, host=host, User=user, Tty=True)
        try:
            self.start(container)
            status = self.wait(container)
            out = self.call("GET", f"/containers/{container}/logs", {"stdout": "1", "stderr": "1"})
            return status, out.decode(errors="replace").replace("\r\n", "\n")
        finally:
            self.remove_container(container)

    def _connection(self) -> http.client.HTTPConnection:
        url = urlsplit(self.url)
        if url.scheme == "unix":
            return _UnixConnection(url.path, self._timeout)
        return http.client.HTTPConnection(url.hostname or "", url.port or 2375, timeout=self._timeout)
