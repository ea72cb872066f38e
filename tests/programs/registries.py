"""A package index and a package registry, each with one package that is made here."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import zipfile
from typing import TYPE_CHECKING

from tests.egress_world import Exchange, Handler, answers
from tests.programs.world import SECRET

if TYPE_CHECKING:
    from tests.programs.world import World

AUTHORIZATION = "Basic " + base64.b64encode(f"robot:{SECRET}".encode()).decode()
WHEEL = "tiny_wheel-1.0-py3-none-any.whl"


def serve_index(world: World) -> None:
    """``/simple/`` with the package ``tiny-wheel`` (PEP 503)."""
    page = f'<!doctype html><a href="/files/{WHEEL}">{WHEEL}</a>'.encode()
    world.route("/simple/tiny-wheel/", _for_robot(answers.body(page, content_type="text/html")))
    wheel = answers.body(_wheel(), content_type="application/octet-stream")
    world.route(f"/files/{WHEEL}", _for_robot(wheel))


def serve_registry(world: World, url: str) -> None:
    """The package ``tiny-package``, for npm; ``url`` is where programs find what is served here."""
    tarball = _tarball()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    version = {
        "name": "tiny-package",
        "version": "1.0.0",
        "dist": {"tarball": f"{url}/tiny-package-1.0.0.tgz", "integrity": integrity},
    }
    document = {"name": "tiny-package", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    described = answers.body(json.dumps(document).encode(), content_type="application/json")
    world.route("/tiny-package", _for_robot(described))
    archive = answers.body(tarball, content_type="application/octet-stream")
    world.route("/tiny-package-1.0.0.tgz", _for_robot(archive))


def _for_robot(handler: Handler) -> Handler:
    async def checked(exchange: Exchange) -> None:
        if exchange.request.header("authorization") == AUTHORIZATION:
            await handler(exchange)
        else:
            await exchange.answer(b"who are you?", status=401)

    return checked


def _wheel() -> bytes:
    files = {
        "tiny_wheel.py": "ANSWER = 42\n",
        "tiny_wheel-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n",
        "tiny_wheel-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_wheel-1.0.dist-info/RECORD": "",
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return data.getvalue()


def _tarball() -> bytes:
    files = {
        "package/package.json": '{"name": "tiny-package", "version": "1.0.0", "main": "index.js"}',
        "package/index.js": "module.exports = 42\n",
    }
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return data.getvalue()
