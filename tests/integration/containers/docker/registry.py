"""A registry of images: what an engine asks for when it pulls (OCI distribution spec, "Pull")."""

from __future__ import annotations

import gzip
import hashlib
import json
import select
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """``with Registry() as registry``: serves at ``registry.host`` what was pushed, to anybody."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._manifests: dict[tuple[str, str], bytes] = {}
        self.pulled: list[str] = []
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        self.cut: set[str] = set()
        """Digests of blobs whose connection breaks half-way."""
        self.held = threading.Event()
        """While not set, blobs wait half-way."""
        self.held.set()
        self.reached = threading.Event()
        """A blob waits half-way."""
        self.left = threading.Event()
        """Who had asked for a blob left while that waited."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry._answer(self)

            do_HEAD = do_GET  # noqa: N815 - the base class's name

            def log_message(self, *_: object) -> None:
                """Not said."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.held.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def push(
        self, name: str, tag: str, layers: Sequence[bytes], config: Mapping[str, Any]
    ) -> tuple[str, list[str]]:
        """Layers are tars. Returns the digest of the manifest and those of the layers."""
        packed = [gzip.compress(layer, 1, mtime=0) for layer in layers]
        image = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        raw = json.dumps(image).encode()
        for blob in (raw, *packed):
            self._blobs[digest_of(blob)] = blob

        def described(blob: bytes, media: str) -> dict[str, Any]:
            return {"mediaType": media, "size": len(blob), "digest": digest_of(blob)}

        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": described(raw, _CONFIG),
                "layers": [described(blob, _LAYER) for blob in packed],
            }
        ).encode()
        self._manifests[name, tag] = self._manifests[name, digest_of(manifest)] = manifest
        return digest_of(manifest), [digest_of(blob) for blob in packed]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append((request.path, dict(request.headers.items())))
        parts = request.path.removeprefix("/v2/").split("/")
        if parts == [""]:
            self._send(request, b"{}", "application/json")
            return
        kind, reference = parts[-2:]
        if kind == "manifests":
            manifest = self._manifests.get(("/".join(parts[:-2]), reference))
            if manifest is None:
                error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
                self._send(request, json.dumps(error).encode(), "application/json", 404)
            else:
                self._send(request, manifest, _MANIFEST)
        elif kind == "blobs" and reference in self._blobs:
            self._send(request, self._blobs[reference], "application/octet-stream", cut=reference in self.cut)
        else:
            self._send(request, b"{}", "application/json", 404)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        data: bytes,
        media: str,
        status: int = 200,
        *,
        cut: bool = False,
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Type", media)
        request.send_header("Content-Length", str(len(data)))
        request.send_header("Docker-Content-Digest", digest_of(data))
        request.end_headers()
        if request.command == "HEAD":
            return
        try:
            if len(data) > 1 << 16:
                request.wfile.write(data[: len(data) // 2])
                request.wfile.flush()
                data = self._hold(request, data[len(data) // 2 :])
                if cut:
                    request.close_connection = True
                    return
            request.wfile.write(data)
        except OSError:
            request.close_connection = True

    def _hold(self, request: BaseHTTPRequestHandler, rest: bytes) -> bytes:
        """What is still to be sent once a blob is held no more. Raises OSError when who asked left."""
        until = time.monotonic() + 60
        self.reached.set()
        sent = 0
        while not self.held.wait(0.02) and time.monotonic() < until:
            try:
                # An engine that gave up a pull leaves only when something comes.
                request.wfile.write(rest[sent : sent + 1])
                sent += 1
                if select.select([request.connection], [], [], 0)[0]:
                    raise ConnectionResetError  # it has no more to ask
            except OSError:
                self.left.set()
                raise
        return rest[sent:]
