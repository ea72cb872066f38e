"""Tools: what a server knows of one, its manifest as JSON, and where the bytes of an upload come from."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from google.protobuf import json_format

from clawbox_client.results import Json, whole_numbers, word
from clawbox_client.v1 import capabilities_pb2, sandbox_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    from google.protobuf.timestamp_pb2 import Timestamp

CHUNK_BYTES = 64 << 10
"""Bytes of a module in one message of an upload."""

Manifest: TypeAlias = "Mapping[str, Json] | sandbox_pb2.ToolManifest"
"""A manifest: as in a NAME.json file, or as the message."""

BlockingSource: TypeAlias = "str | os.PathLike[str] | bytes | Iterable[bytes]"
"""A module: the path of its file, its bytes, or its bytes in pieces of any size (with ``size_bytes``)."""

UploadSource: TypeAlias = "BlockingSource | AsyncIterator[bytes]"
"""The same for the asyncio client, which takes asynchronous pieces too."""

Progress: TypeAlias = "Callable[[int, int], None]"
"""Told after each chunk how many bytes of how many were sent; by the blocking client in another thread."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a server has."""

    name: str
    description: str
    version: str
    abi: str
    """``command_module``, ``component``, ``command_component``, or ``unknown`` when it never loaded."""
    state: str
    """``ready``, ``compiling`` or ``failed``."""
    load_error: str
    """Why the newest file is not in service, when it is not."""
    warnings: tuple[str, ...]
    """What its manifest asks for and the server does not grant, one sentence each."""
    owner: str
    """Empty when the operator put it into the tool folder."""
    published: bool
    """Whether principals other than its owner see and run it."""
    digest: str
    """SHA-256 of the module in service as 64 hexadecimal digits."""
    size_bytes: int
    update_time: datetime | None
    manifest: Mapping[str, Json] = field(repr=False)
    """As in a NAME.json file, with defaults filled in."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A tool with the manifest that it was given, and whether it had none before."""

    tool: Tool
    created: bool


@dataclass(frozen=True, slots=True)
class ToolFailure:
    """A file in the tool folder that could not be loaded, and whether the version before still serves."""

    name: str
    error: str
    previous_in_service: bool


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What reading the tool folder again gave: how many were read anew, all that can be run, what failed."""

    reloaded: int
    tools: tuple[str, ...]
    failures: tuple[ToolFailure, ...]


def tool(message: sandbox_pb2.Tool) -> Tool:
    """Reads a Tool message."""
    return Tool(
        name=message.name,
        description=message.description,
        version=message.version,
        abi=word(sandbox_pb2.ToolAbi.DESCRIPTOR, message.abi),
        state=word(sandbox_pb2.ToolState.DESCRIPTOR, message.state),
        load_error=message.load_error,
        warnings=tuple(message.warnings),
        owner=message.owner,
        published=message.published,
        digest=message.digest,
        size_bytes=message.size_bytes,
        update_time=timestamp(message.update_time) if message.HasField("update_time") else None,
        manifest=manifest_to_json(message.manifest),
    )


def reload_report(message: sandbox_pb2.ReloadToolsResponse) -> ReloadReport:
    """Reads the reply of ReloadTools."""
    return ReloadReport(
        reloaded=message.reloaded,
        tools=tuple(message.tools),
        failures=tuple(ToolFailure(one.name, one.error, one.previous_in_service) for one in message.failures),
    )


def manifest_from_json(manifest: Manifest) -> sandbox_pb2.ToolManifest:
    """The message for a manifest. A network rule may be a string: the host.

    Raises ValueError that names the key when one is unknown or has a wrong type.
    """
    if isinstance(manifest, sandbox_pb2.ToolManifest):
        return manifest
    for key, section in manifest.items():
        if section is not None and not isinstance(section, dict):
            raise ValueError(f"the manifest is not one: {key} must be an object")
    network = manifest.get("network")
    if isinstance(network, dict) and isinstance(rules := network.get("allowlist"), list):
        manifest = {
            **manifest,
            "network": {**network, "allowlist": [_rule_to_message(rule) for rule in rules]},
        }
    try:
        return json_format.ParseDict(dict(manifest), sandbox_pb2.ToolManifest())
    except json_format.ParseError as error:
        raise ValueError(f"the manifest is not one: {error}") from None


def manifest_to_json(message: sandbox_pb2.ToolManifest) -> dict[str, Json]:
    """A manifest as in a NAME.json file, the reverse of :func:`manifest_from_json`."""
    manifest: dict[str, Json] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    # ProtoJSON writes 64-bit integers as strings; a manifest has numbers.
    resources = manifest.get("resources")
    if isinstance(resources, dict):
        manifest["resources"] = {key: int(str(value)) for key, value in resources.items()}
    network = manifest.get("network")
    if isinstance(network, dict) and isinstance(rules := network.get("allowlist"), list):
        network["allowlist"] = [_rule_from_message(rule) for rule in rules]
    for key in ("input_schema", "output_schema"):
        if key in manifest:
            manifest[key] = whole_numbers(manifest[key])
    return manifest


_ENUM_PREFIXES = {"tls_mode": "TLS_MODE_", "on_shape": "SHAPE_ACTION_"}


def _rule_to_message(rule: Json) -> Json:
    if isinstance(rule, str):
        return {"host": rule}
    if not isinstance(rule, dict):
        return rule
    return {
        key: f"{_ENUM_PREFIXES[key]}{value.upper()}"
        if key in _ENUM_PREFIXES and isinstance(value, str)
        else value
        for key, value in rule.items()
    }


def _rule_from_message(rule: Json) -> Json:
    if not isinstance(rule, dict):
        return rule
    if set(rule) == {"host"}:
        return rule["host"]
    return {
        key: str(value).removeprefix(_ENUM_PREFIXES[key]).lower() if key in _ENUM_PREFIXES else value
        for key, value in rule.items()
    }


def network_rule(rule: str | capabilities_pb2.NetworkRule) -> capabilities_pb2.NetworkRule:
    """A rule: itself, or for a string the host (``api.example``, ``*.example``) with, if given, its port.

    Raises ValueError.
    """
    if isinstance(rule, capabilities_pb2.NetworkRule):
        return rule
    if "/" in rule:
        raise ValueError(f"{rule!r} has a scheme or path; give a host, or host:port")
    host, colon, port = rule.rpartition(":")
    if not colon or host.endswith(":") or (":" in host.strip("[]") and not host.startswith("[")):
        return capabilities_pb2.NetworkRule(host=rule.strip("[]"))  # no port, or an IPv6 address
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{rule!r}: {port!r} is not a port")
    return capabilities_pb2.NetworkRule(host=host.strip("[]"), ports=[int(port)])


def timestamp(message: Timestamp) -> datetime:
    """A point in time, in UTC."""
    return message.ToDatetime(tzinfo=UTC)


class Upload:
    """The bytes of one upload: opened, measured and hashed before the first message is sent.

    Raises OSError when a file cannot be read, ValueError when pieces come without ``size_bytes``.
    """

    def __init__(self, source: BlockingSource, size_bytes: int | None) -> None:
        self.sha256 = ""
        self._pieces: Iterable[bytes]
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            with path.open("rb") as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self.size_bytes = file.tell()
            self._pieces = _read(path)
        elif isinstance(source, bytes):
            self.sha256 = hashlib.sha256(source).hexdigest()
            self.size_bytes = len(source)
            self._pieces = (source,)
        else:
            if size_bytes is None:
                raise ValueError("say with size_bytes how many bytes the pieces are together")
            self.size_bytes = size_bytes
            self._pieces = source
        self.failure: Exception | None = None
        """What the source, or ``progress``, raised while the messages were made."""

    def messages(
        self, start: sandbox_pb2.UploadToolRequest, progress: Progress | None
    ) -> Iterator[sandbox_pb2.UploadToolRequest]:
        """The messages of the call.

        gRPC asks for them in a thread of its own, where it would log an exception and tell the caller nothing
        of it. Ending the stream early instead makes the server refuse the upload, and ``failure`` says why.
        """
        try:
            yield start
            sent = 0
            for piece in self._pieces:
                for first in range(0, len(piece), CHUNK_BYTES):
                    chunk = piece[first : first + CHUNK_BYTES]
                    yield sandbox_pb2.UploadToolRequest(chunk=chunk)
                    sent += len(chunk)
                    if progress is not None:
                        progress(sent, self.size_bytes)
        except Exception as error:  # noqa: BLE001 - whatever the source raises
            self.failure = error


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece
