"""A module on its way into the tool folder: received, compiled, and put in place wholly or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from clawbox.errors import ClawboxError, Reason, invalid_field
from clawbox.wasm.compiler import UPLOAD_TIMEOUT_MS, Compiler
from clawbox.wasm.owners import Owners, Ownership
from clawbox.wasm.tool_access import check_grantable, check_may_change, check_may_publish, sees
from clawbox.wasm.tool_files import NAME, StagedFile, ToolFolder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clawbox.auth import Principal
    from clawbox.policy import ToolCeiling
    from clawbox.wasm.cache import Artifact
    from clawbox.wasm.manifest import Manifest
    from clawbox.wasm.shelf import OnLoad, Shelf
    from clawbox.wasm.steps import Steps

log = structlog.get_logger("clawbox.wasm.uploads")

_MODULES_IN_MEMORY: Final = 2
"""Uploads that are in this process's memory at once, to be compiled; the others are on disk."""
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class UploadStart:
    """What an upload says about itself before its first byte."""

    name: str
    size_bytes: int
    manifest: Manifest | None = None
    sha256: str = ""
    """64 hexadecimal digits, or empty: not checked."""
    replace: bool = False
    published: bool | None = None
    """None: as it is; a new tool of an administrator is published, one of anybody else is not."""


class Uploads:
    """The uploads that are under way, one at most under each name."""

    def __init__(
        self,
        folder: ToolFolder,
        owners: Owners,
        shelf: Shelf,
        compiler: Compiler,
        *,
        ceiling: ToolCeiling,
        steps: Steps,
        max_tool_bytes: int,
        on_load: OnLoad,
    ) -> None:
        self._folder = folder
        self._owners = owners
        self._shelf = shelf
        self._compiler = compiler
        self._ceiling = ceiling
        self._steps = steps
        self._max_tool_bytes = max_tool_bytes
        self._on_load = on_load
        self._uploading: set[str] = set()
        self._in_memory = asyncio.Semaphore(_MODULES_IN_MEMORY)

    async def upload(self, start: UploadStart, chunks: AsyncIterator[bytes], principal: Principal) -> None:
        """Receive a module, compile it, and put it with its manifest in place.

        Cancelled before it is in place, it leaves nothing. Raises TOOL_EXISTS, SCOPE_MISSING, POLICY_DENIED,
        INVALID_FIELD, INVALID_UPLOAD, TOOL_TOO_LARGE, INVALID_MODULE and COMPILE_LIMIT.
        """
        self._check(start, principal)
        self._uploading.add(start.name)
        try:
            with self._folder.stage() as staged:
                started = time.monotonic()
                await self._receive(start, chunks, staged)
                try:
                    artifact = await self._compile(staged)
                except ClawboxError:
                    self._on_load("refused", time.monotonic() - started)
                    raise
                await self._steps.to_its_end(self._put(start, principal, staged, artifact))
                self._on_load("loaded", time.monotonic() - started)
        finally:
            self._uploading.discard(start.name)

    def _check(self, start: UploadStart, principal: Principal) -> None:
        if not NAME.fullmatch(start.name):
            raise invalid_field("start.name", "must be 1 to 64 letters, digits, - and _", "pattern")
        if start.manifest is not None and start.manifest.name != start.name:
            raise invalid_field("start.manifest.tool.name", f"differs from start.name, {start.name}", "equal")
        if start.sha256 and not _SHA256.fullmatch(start.sha256):
            raise invalid_field("start.sha256", "must be 64 hexadecimal digits", "pattern")
        if start.size_bytes < 1:
            raise invalid_field("start.size_bytes", "must be the size of the module in bytes", "minimum")
        if start.size_bytes > self._max_tool_bytes:
            raise _too_large(start.size_bytes, self._max_tool_bytes)
        check_may_publish(principal, start.published)
        self._check_free(start, principal)
        if start.name in self._uploading:
            raise _exists(start.name)
        if start.manifest is not None:
            tool = self._shelf.tools.get(start.name)
            replaced = None if tool is None or tool.entry.builtin else tool.entry
            terms = principal.limits if replaced is None else self._shelf.owner_terms(replaced)
            check_grantable(start.manifest, terms, self._ceiling)

    def _check_free(self, start: UploadStart, principal: Principal) -> None:
        tool = self._shelf.tools.get(start.name)
        if tool is None:
            return
        if not start.replace or not sees(principal, tool.entry):
            raise _exists(start.name)
        check_may_change(principal, tool.entry)

    async def _compile(self, staged: StagedFile) -> Artifact:
        async with self._in_memory:
            binary = await self._steps.to_its_end(asyncio.to_thread(staged.read))
            return await self._compiler.compile(binary, timeout_ms=UPLOAD_TIMEOUT_MS)

    async def _receive(self, start: UploadStart, chunks: AsyncIterator[bytes], staged: StagedFile) -> None:
        # Straight to disk: hundreds of callers may take minutes over their uploads.
        received, digest = 0, hashlib.sha256()
        async for chunk in chunks:
            if received + len(chunk) > start.size_bytes:
                raise ClawboxError(
                    Reason.INVALID_UPLOAD,
                    "the upload has more than the {size_bytes} bytes that it announced",
                    size_bytes=start.size_bytes,
                )
            received += len(chunk)
            digest.update(chunk)
            await self._steps.to_its_end(asyncio.to_thread(staged.write, chunk))
        if received != start.size_bytes:
            raise ClawboxError(
                Reason.INVALID_UPLOAD,
                "the upload ended after {received_bytes} of {size_bytes} bytes",
                received_bytes=received,
                size_bytes=start.size_bytes,
            )
        if start.sha256 and digest.hexdigest() != start.sha256.lower():
            raise ClawboxError(
                Reason.INVALID_UPLOAD,
                "the bytes received have the SHA-256 {received_sha256}, not {sha256}",
                received_sha256=digest.hexdigest(),
                sha256=start.sha256.lower(),
            )

    async def _put(
        self, start: UploadStart, principal: Principal, staged: StagedFile, artifact: Artifact
    ) -> None:
        name = start.name
        async with self._shelf.changing(name):
            # What was true when the upload began may not be now.
            self._check_free(start, principal)
            before = self._shelf.tools.get(name)
            if before is None and (await asyncio.to_thread(self._folder.sight, name)).module is not None:
                raise _exists(name)  # a file that was put there this instant
            new = before is None or before.entry.builtin
            recorded = self._owners.get(name)
            published = principal.is_admin if new else recorded.published
            ownership = Ownership(
                # To replace a tool, which an administrator may do, does not take it from its owner.
                owner=principal.name if new else recorded.owner,
                published=published if start.published is None else start.published,
            )
            manifest = None if start.manifest is None else start.manifest.to_json()
            # First the owner: a tool must never be seen as the operator's, not even for a moment.
            await asyncio.to_thread(self._owners.set, name, ownership)
            try:
                await asyncio.to_thread(self._folder.put, name, staged, manifest)
            except OSError:
                await asyncio.to_thread(self._owners.set, name, recorded)
                raise
            sighting = await asyncio.to_thread(self._folder.sight, name)
            self._shelf.publish(name, sighting, start.manifest, artifact)
        log.info("tool_uploaded", tool=name, principal=principal.name, digest=artifact.digest)


def _exists(name: str) -> ClawboxError:
    return ClawboxError(
        Reason.TOOL_EXISTS,
        "a tool named {tool} exists, or is being uploaded",
        resource=("tool", name),
        tool=name,
    )


def _too_large(size: int, most: int) -> ClawboxError:
    return ClawboxError(
        Reason.TOOL_TOO_LARGE,
        "the module has {size_bytes} bytes; the most is {max_tool_bytes}",
        size_bytes=size,
        max_tool_bytes=most,
    )
