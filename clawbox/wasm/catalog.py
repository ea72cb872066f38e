"""The tools that there are: who sees them, who runs them, who changes them. The folder is the truth.

What a principal may not see is TOOL_NOT_FOUND; the one thing that tells it from what does not exist is an
upload under a name that is taken, TOOL_EXISTS. Which version is in service is for
:class:`~clawbox.wasm.shelf.Shelf` to say.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import structlog

from clawbox.errors import ClawboxError, FieldViolation, Reason, invalid_field
from clawbox.policy import PrincipalTerms, ToolCeiling, manifest_excess
from clawbox.wasm.compiler import UPLOAD_TIMEOUT_MS, Compiler
from clawbox.wasm.owners import Owners, Ownership
from clawbox.wasm.shelf import OnLoad, Preload, Shelf
from clawbox.wasm.tool_access import check_may_change, check_may_publish, not_found, sees
from clawbox.wasm.tool_entry import LoadFailure, ReloadReport, ToolEntry, ToolState
from clawbox.wasm.tool_files import NAME, StagedFile, ToolFileError, ToolFolder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path
    from types import TracebackType

    from clawbox.auth import Principal
    from clawbox.wasm.cache import Artifact
    from clawbox.wasm.manifest import Manifest

__all__ = ["Catalog", "LoadFailure", "ReloadReport", "ToolEntry", "ToolState", "UploadStart"]

log = structlog.get_logger("clawbox.wasm.catalog")

T = TypeVar("T")

_MODULES_IN_MEMORY = 2
"""Uploads that are in this process's memory at once, to be compiled; the others are on disk."""
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


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


def _unheard(_result: str, _seconds: float) -> None:
    """Nobody counts."""


class Catalog:
    """The tools of one server. An async context manager.

    ``find_principal`` gives a tool's owner as its token stands now. ``on_load`` is told ``loaded`` or
    ``refused``, and the seconds that it took, for each version of each tool. ``preload`` is given each
    version that comes into service.
    """

    def __init__(
        self,
        tool_dir: Path,
        compiler: Compiler,
        ceiling: ToolCeiling,
        *,
        max_tool_bytes: int,
        find_principal: Callable[[str], Principal | None],
        builtin_dir: Path | None = None,
        watch: bool = True,
        on_load: OnLoad = _unheard,
        preload: Preload | None = None,
    ) -> None:
        self._folder = ToolFolder(tool_dir, builtin_dir, max_tool_bytes)
        self._owners = Owners(self._folder.owners_path)
        self._shelf = Shelf(
            self._folder,
            self._owners,
            compiler,
            ceiling,
            find_principal=find_principal,
            watch=watch,
            on_load=on_load,
            preload=preload,
        )
        self._compiler = compiler
        self._ceiling = ceiling
        self._max_tool_bytes = max_tool_bytes
        self._on_load = on_load
        self._uploading: set[str] = set()
        self._in_memory = asyncio.Semaphore(_MODULES_IN_MEMORY)
        self._steps: set[asyncio.Future[Any]] = set()

    async def __aenter__(self) -> Self:
        """List the folder and begin to load what is in it; raises ToolFileError when it cannot be used."""
        try:
            await asyncio.to_thread(self._folder.prepare)
            await asyncio.to_thread(self._owners.open)
            await self._shelf.__aenter__()
        except OSError as error:
            raise ToolFileError(
                f"the tool folder {self._folder.path} cannot be used: {error.strerror}"
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching and loading; a change that has begun is carried to its end."""
        if self._steps:
            await asyncio.wait(tuple(self._steps))
        await self._shelf.__aexit__(kind, error, trace)

    # Reading

    def get(self, name: str, principal: Principal) -> ToolEntry:
        """A tool that the principal may see; raises TOOL_NOT_FOUND."""
        tool = self._shelf.tools.get(name)
        if tool is None or not sees(principal, tool.entry):
            raise not_found(name)
        return tool.entry

    async def ready(self, name: str, principal: Principal) -> ToolEntry:
        """A tool with code to run, once it has some.

        Raises TOOL_NOT_FOUND, and TOOL_NOT_READY when it failed to load.
        """
        entry = self.get(name, principal)
        while entry.state is ToolState.COMPILING:
            await self._shelf.tools[name].settled.wait()
            entry = self.get(name, principal)
        if entry.code is None:
            raise ClawboxError(
                Reason.TOOL_NOT_READY,
                "the tool {tool} did not load: {load_error}",
                precondition=("TOOL_LOADED", name),
                tool=name,
                load_error=entry.load_error,
            )
        return entry

    def list(
        self, principal: Principal, *, name_prefix: str = "", after: str = "", limit: int = 100
    ) -> tuple[ToolEntry, ...]:
        """At most ``limit`` tools that the principal may see, by name, whose names come after ``after``."""
        names = sorted(name for name in self._shelf.tools if name > after and name.startswith(name_prefix))
        entries = (self._shelf.tools[name].entry for name in names)
        return tuple(entry for entry in entries if sees(principal, entry))[:limit]

    def runnable(self) -> int:
        """How many tools can be run."""
        return sum(tool.entry.code is not None for tool in self._shelf.tools.values())

    def owner_terms(self, entry: ToolEntry) -> PrincipalTerms | None:
        """What the owner's token allows its tools now; None: the operator's, whom the server alone bounds."""
        return self._shelf.owner_terms(entry)

    # Changing

    async def register(
        self,
        manifest: Manifest,
        principal: Principal,
        published: bool | None = None,  # noqa: FBT001
    ) -> tuple[ToolEntry, bool]:
        """Set the manifest of a tool whose module is there; the tool, and whether it had none before.

        Raises TOOL_NOT_FOUND, SCOPE_MISSING for another's tool or for publishing, and POLICY_DENIED when the
        manifest asks for more than the owner or the server allows.
        """
        name = manifest.name
        entry = self.get(name, principal)
        check_may_change(principal, entry)
        check_may_publish(principal, published)
        self._check_excess(manifest, self.owner_terms(entry))
        await self._to_its_end(self._write_manifest(name, manifest, principal, published=published))
        return self.get(name, principal), not entry.has_manifest

    async def upload(
        self, start: UploadStart, chunks: AsyncIterator[bytes], principal: Principal
    ) -> ToolEntry:
        """Receive a module, compile it, and put it with its manifest in place, wholly or not at all.

        Cancelled before it is in place, it leaves nothing. Raises TOOL_EXISTS, SCOPE_MISSING, POLICY_DENIED,
        INVALID_FIELD, INVALID_UPLOAD, TOOL_TOO_LARGE, INVALID_MODULE and COMPILE_LIMIT.
        """
        self._check_upload(start, principal)
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
                await self._to_its_end(self._put(start, principal, staged, artifact))
                self._on_load("loaded", time.monotonic() - started)
        finally:
            self._uploading.discard(start.name)
        return self.get(start.name, principal)

    async def delete(self, name: str, principal: Principal) -> None:
        """Delete a tool's files. Runs under way keep what they began with.

        Of a tool that ships, that is what the folder has over it, a manifest for one; without any it stays.
        Raises TOOL_NOT_FOUND, SCOPE_MISSING for another's tool, and WRONG_STATE for what ships.
        """
        entry = self.get(name, principal)
        check_may_change(principal, entry)
        seen = self._shelf.tools[name].seen
        if entry.builtin and (seen is None or seen.manifest is None or seen.builtin_manifest):
            raise ClawboxError(
                Reason.WRONG_STATE,
                "the tool {tool} ships with clawbox and is not in the tool folder; see sandbox.builtin_tools",
                precondition=("TOOL_IN_FOLDER", name),
                tool=name,
            )
        await self._to_its_end(self._remove_files(name))

    async def reload(self, principal: Principal) -> ReloadReport:
        """Read the folder again, and what failed once more; the report holds what the principal may see."""
        before = {name: tool.seen for name, tool in self._shelf.tools.items() if not tool.entry.load_error}
        await self._shelf.reread()
        visible = {name: tool for name, tool in self._shelf.tools.items() if sees(principal, tool.entry)}
        failures = [
            LoadFailure(name, tool.entry.load_error, tool.entry.code is not None)
            for name, tool in visible.items()
            if tool.entry.load_error
        ]
        if principal.is_admin:
            failures += [
                LoadFailure(name, why, previous_in_service=False) for name, why in self._shelf.odd.items()
            ]
        return ReloadReport(
            reloaded=sum(before.get(name) != tool.seen for name, tool in visible.items()),
            tools=tuple(sorted(name for name, tool in visible.items() if tool.entry.code is not None)),
            failures=tuple(sorted(failures, key=lambda failure: failure.name)),
        )

    # Uploads, step by step

    def _check_upload(self, start: UploadStart, principal: Principal) -> None:
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
            new = tool is None or tool.entry.builtin
            self._check_excess(
                start.manifest, principal.limits if tool is None or new else self.owner_terms(tool.entry)
            )

    def _check_free(self, start: UploadStart, principal: Principal) -> None:
        tool = self._shelf.tools.get(start.name)
        if tool is None:
            return
        if not start.replace or not sees(principal, tool.entry):
            raise _exists(start.name)
        check_may_change(principal, tool.entry)

    async def _compile(self, staged: StagedFile) -> Artifact:
        async with self._in_memory:
            binary = await self._to_its_end(asyncio.to_thread(staged.read))
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
            await self._to_its_end(asyncio.to_thread(staged.write, chunk))
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

    # Manifests and deletion

    async def _write_manifest(
        self, name: str, manifest: Manifest, principal: Principal, *, published: bool | None
    ) -> None:
        async with self._shelf.changing(name):
            entry = self.get(name, principal)  # it may have gone
            await asyncio.to_thread(self._folder.put, name, None, manifest.to_json())
            if published is not None:
                await asyncio.to_thread(self._owners.set, name, Ownership(entry.owner, published))
        log.info("tool_registered", tool=name, principal=principal.name)
        await self._shelf.refreshed(name)

    async def _remove_files(self, name: str) -> None:
        async with self._shelf.changing(name):
            await asyncio.to_thread(self._folder.remove, name)
            await asyncio.to_thread(self._owners.forget, name)
            sighting = await asyncio.to_thread(self._folder.sight, name)
            if sighting.module is None:
                self._shelf.drop(name)
        log.info("tool_deleted", tool=name)
        if sighting.module is not None:
            await self._shelf.refreshed(name)  # the one that ships comes out from behind it

    def _check_excess(self, manifest: Manifest, owner: PrincipalTerms | None) -> None:
        excess = manifest_excess(manifest, owner, self._ceiling)
        if excess:
            raise ClawboxError(
                Reason.POLICY_DENIED,
                "manifest.{field}: {description}",
                violations=[FieldViolation(f"manifest.{v.field}", v.description, v.rule) for v in excess],
                field=excess[0].field,
                description=excess[0].description,
            )

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what must not stop half-way, even when whoever asked for it goes away meanwhile."""
        task = asyncio.ensure_future(work)
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise


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
