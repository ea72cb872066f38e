"""The tools that there are. The folder is the truth; this follows it, and changes it for whoever may.

A file that does not load keeps the version before it in service. Nothing here holds the server up: a tool
that is being compiled is COMPILING, and only who wants to run it waits. What a principal may not see is
TOOL_NOT_FOUND; the one thing that tells it from what does not exist is an upload under a name that is taken:
TOOL_EXISTS.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import json
import re
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import WeakValueDictionary

import structlog
from watchfiles import awatch

from clawbox.errors import ClawboxError, FieldViolation, Reason, invalid_field
from clawbox.policy import NOTHING, PrincipalTerms, ToolCeiling, manifest_excess
from clawbox.wasm.compiler import UPLOAD_TIMEOUT_MS, Compiler
from clawbox.wasm.manifest import Manifest
from clawbox.wasm.model import Abi, ToolCode
from clawbox.wasm.owners import Owners, Ownership
from clawbox.wasm.tool_files import (
    NAME,
    FileChangedError,
    Sighting,
    StagedFile,
    ToolFileError,
    ToolFiles,
    ToolFolder,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path
    from types import TracebackType

    from clawbox.auth import Principal
    from clawbox.wasm.cache import Artifact

log = structlog.get_logger("clawbox.wasm.catalog")

T = TypeVar("T")

LOOK_AGAIN_MS = 2000
"""How long a change can go unseen where the kernel tells of none (network file systems, replaced folders)."""
_SETTLE_SECONDS = 0.1
"""A file that changed less than this ago may still be being written."""
_READS_AT_ONCE = 4
_COMPILES_AT_ONCE = 2
_TABLE_ELEMENTS = {Abi.COMMAND_MODULE: 10_000, Abi.COMPONENT: 100_000, Abi.COMMAND_COMPONENT: 100_000}
"""Table elements of a run: the Rust clawbox's for modules; interpreters need tens of thousands."""
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class ToolState(enum.Enum):
    """Whether a tool can be run."""

    READY = "ready"
    COMPILING = "compiling"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ToolEntry:
    """One tool, as it was when it was asked for; a run keeps the entry that it began with."""

    name: str
    manifest: Manifest
    has_manifest: bool
    """False: ``manifest`` is what a module without one gets."""
    owner: str
    """The principal that uploaded it; empty: the operator, who put it into the folder."""
    published: bool
    """Whether principals other than its owner see and run it."""
    state: ToolState
    load_error: str
    """Why the newest file is not in service; empty when it is."""
    warnings: tuple[str, ...]
    """What the manifest asks beyond what the server and the owner's token allow. It is never granted."""
    code: ToolCode | None
    """What is in service, perhaps of an older file; None when nothing is."""
    size_bytes: int
    """Size of the module in service."""
    update_time: datetime
    """When what is in service was put there."""
    builtin: bool
    """The module ships with clawbox."""


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


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A file that is not in service."""

    name: str
    error: str
    previous_in_service: bool


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload found."""

    reloaded: int
    """How many tools were read anew."""
    tools: tuple[str, ...]
    """Every tool that can be run, by name."""
    failures: tuple[LoadFailure, ...]


@dataclass(slots=True)
class _Tool:
    """What the catalog keeps about one name."""

    entry: ToolEntry
    seen: Sighting | None = None
    """The version that ``entry`` tells of, whether it loaded or not."""
    refresh: asyncio.Task[None] | None = None
    again: bool = False
    """Something changed while a refresh was under way."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the first version loaded or failed, or the tool is gone."""


class Catalog:
    """The tools of one server. An async context manager.

    ``find_principal`` gives a tool's owner as its token stands now. ``on_load`` is told ``loaded`` or
    ``refused``, and the seconds that it took, for each version of each tool.
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
        on_load: Callable[[str, float], None] = lambda _result, _seconds: None,
    ) -> None:
        self._folder = ToolFolder(tool_dir, builtin_dir, max_tool_bytes)
        self._owners = Owners(self._folder.owners_path)
        self._compiler = compiler
        self._ceiling = ceiling
        self._max_tool_bytes = max_tool_bytes
        self._find_principal = find_principal
        self._watching = watch
        self._on_load = on_load
        self._tools: dict[str, _Tool] = {}
        self._odd: dict[str, str] = {}
        self._uploading: set[str] = set()
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._scanning = asyncio.Lock()
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)
        self._compiles = asyncio.Semaphore(_COMPILES_AT_ONCE)
        self._group = asyncio.TaskGroup()
        self._following: set[asyncio.Task[None]] = set()
        self._steps: set[asyncio.Future[Any]] = set()
        self._stop_watching = asyncio.Event()

    async def __aenter__(self) -> Self:
        """List the folder and begin to load what is in it; raises ToolFileError when it cannot be used."""
        try:
            await asyncio.to_thread(self._folder.prepare)
            await asyncio.to_thread(self._owners.open)
        except OSError as error:
            raise ToolFileError(
                f"the tool folder {self._folder.path} cannot be used: {error.strerror}"
            ) from error
        await self._group.__aenter__()
        await self._rescan()
        if self._watching:
            self._spawn(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching and loading; a change that has begun is carried to its end."""
        self._stop_watching.set()
        for task in tuple(self._following):
            task.cancel()
        await self._group.__aexit__(None, None, None)
        if self._steps:
            await asyncio.wait(self._steps)

    # Reading

    def get(self, name: str, principal: Principal) -> ToolEntry:
        """A tool that the principal may see; raises TOOL_NOT_FOUND."""
        tool = self._tools.get(name)
        if tool is None or not _sees(principal, tool.entry):
            raise _not_found(name)
        return tool.entry

    async def ready(self, name: str, principal: Principal) -> ToolEntry:
        """A tool with code to run, once it has some.

        Raises TOOL_NOT_FOUND, and TOOL_NOT_READY when it failed to load.
        """
        entry = self.get(name, principal)
        while entry.state is ToolState.COMPILING:
            await self._tools[name].settled.wait()
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
        names = sorted(name for name in self._tools if name > after and name.startswith(name_prefix))
        entries = (self._tools[name].entry for name in names)
        return tuple(entry for entry in entries if _sees(principal, entry))[:limit]

    def runnable(self) -> int:
        """How many tools can be run."""
        return sum(tool.entry.code is not None for tool in self._tools.values())

    def owner_terms(self, entry: ToolEntry) -> PrincipalTerms | None:
        """What the owner's token allows its tools now; None: the operator's, whom the server alone bounds."""
        if not entry.owner:
            return None
        owner = self._find_principal(entry.owner)
        return NOTHING if owner is None else owner.limits

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
        _check_may_change(principal, entry)
        _check_may_publish(principal, published)
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
                binary = await self._receive(start, chunks, staged)
                try:
                    artifact = await self._compiler.compile(binary, timeout_ms=UPLOAD_TIMEOUT_MS)
                except ClawboxError:
                    self._on_load("refused", time.monotonic() - started)
                    raise
                del binary
                await self._to_its_end(self._put(start, principal, staged, artifact))
                self._on_load("loaded", time.monotonic() - started)
        finally:
            self._uploading.discard(start.name)
        return self.get(start.name, principal)

    async def delete(self, name: str, principal: Principal) -> None:
        """Delete a tool's files. Runs under way keep what they began with.

        Raises TOOL_NOT_FOUND, SCOPE_MISSING for another's tool, and WRONG_STATE for one that ships.
        """
        entry = self.get(name, principal)
        _check_may_change(principal, entry)
        if entry.builtin:
            raise ClawboxError(
                Reason.WRONG_STATE,
                "the tool {tool} ships with clawbox and is not in the tool folder; see sandbox.builtin_tools",
                precondition=("TOOL_IN_FOLDER", name),
                tool=name,
            )
        await self._to_its_end(self._remove_files(name))

    async def reload(self, principal: Principal) -> ReloadReport:
        """Read the folder again, and what failed once more; the report holds what the principal may see."""
        before = {name: tool.seen for name, tool in self._tools.items() if not tool.entry.load_error}
        for tool in self._tools.values():
            if tool.entry.load_error and tool.refresh is None:
                tool.seen = None
        await self._rescan()
        pending = [tool.refresh for tool in self._tools.values() if tool.refresh is not None]
        if pending:
            await asyncio.wait(pending)
        visible = {name: tool for name, tool in self._tools.items() if _sees(principal, tool.entry)}
        failures = [
            LoadFailure(name, tool.entry.load_error, tool.entry.code is not None)
            for name, tool in visible.items()
            if tool.entry.load_error
        ]
        if principal.is_admin:
            failures += [LoadFailure(name, why, previous_in_service=False) for name, why in self._odd.items()]
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
        _check_may_publish(principal, start.published)
        self._check_free(start, principal)
        if start.name in self._uploading:
            raise _exists(start.name)
        if start.manifest is not None:
            tool = self._tools.get(start.name)
            new = tool is None or tool.entry.builtin
            self._check_excess(
                start.manifest, principal.limits if tool is None or new else self.owner_terms(tool.entry)
            )

    def _check_free(self, start: UploadStart, principal: Principal) -> None:
        tool = self._tools.get(start.name)
        if tool is None:
            return
        if not start.replace or not _sees(principal, tool.entry):
            raise _exists(start.name)
        _check_may_change(principal, tool.entry)

    async def _receive(self, start: UploadStart, chunks: AsyncIterator[bytes], staged: StagedFile) -> bytes:
        received, digest = bytearray(), hashlib.sha256()
        async for chunk in chunks:
            if len(received) + len(chunk) > start.size_bytes:
                raise ClawboxError(
                    Reason.INVALID_UPLOAD,
                    "the upload has more than the {size_bytes} bytes that it announced",
                    size_bytes=start.size_bytes,
                )
            received += chunk
            digest.update(chunk)
            await self._to_its_end(asyncio.to_thread(staged.write, chunk))
        if len(received) != start.size_bytes:
            raise ClawboxError(
                Reason.INVALID_UPLOAD,
                "the upload ended after {received_bytes} of {size_bytes} bytes",
                received_bytes=len(received),
                size_bytes=start.size_bytes,
            )
        if start.sha256 and digest.hexdigest() != start.sha256.lower():
            raise ClawboxError(
                Reason.INVALID_UPLOAD,
                "the bytes received have the SHA-256 {received_sha256}, not {sha256}",
                received_sha256=digest.hexdigest(),
                sha256=start.sha256.lower(),
            )
        return bytes(received)

    async def _put(
        self, start: UploadStart, principal: Principal, staged: StagedFile, artifact: Artifact
    ) -> None:
        name = start.name
        async with self._changing_of(name):
            # What was true when the upload began may not be now.
            self._check_free(start, principal)
            before = self._tools.get(name)
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
            self._publish(name, sighting, start.manifest, artifact)
        log.info("tool_uploaded", tool=name, principal=principal.name, digest=artifact.digest)

    # Manifests and deletion

    async def _write_manifest(
        self, name: str, manifest: Manifest, principal: Principal, *, published: bool | None
    ) -> None:
        async with self._changing_of(name):
            entry = self.get(name, principal)  # it may have gone
            await asyncio.to_thread(self._folder.put, name, None, manifest.to_json())
            if published is not None:
                await asyncio.to_thread(self._owners.set, name, Ownership(entry.owner, published))
        log.info("tool_registered", tool=name, principal=principal.name)
        await self._refreshed(name)

    async def _remove_files(self, name: str) -> None:
        async with self._changing_of(name):
            await asyncio.to_thread(self._folder.remove, name)
            await asyncio.to_thread(self._owners.forget, name)
            sighting = await asyncio.to_thread(self._folder.sight, name)
            if sighting.module is None:
                self._drop(name)
        log.info("tool_deleted", tool=name)
        if sighting.module is not None:
            await self._refreshed(name)  # the one that ships comes out from behind it

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

    # Following the folder

    async def _watch(self) -> None:
        while not self._stop_watching.is_set():
            try:
                # Every event means: look at everything. The content of an event is never trusted to be complete.
                async for _ in awatch(
                    self._folder.path,
                    watch_filter=None,
                    debounce=200,
                    step=20,
                    recursive=False,
                    rust_timeout=LOOK_AGAIN_MS,
                    yield_on_timeout=True,
                    stop_event=self._stop_watching,
                ):
                    await self._rescan()
            except Exception:  # a folder that cannot be watched for now must not stop the server
                log.warning("tool_folder_watch_failed", folder=str(self._folder.path), exc_info=True)
                await asyncio.sleep(LOOK_AGAIN_MS / 1000)
                with contextlib.suppress(OSError):
                    await self._rescan()

    async def _rescan(self) -> dict[str, Sighting]:
        """Look at the whole folder, and begin to read anew what is not as it was."""
        async with self._scanning:
            found, odd = await asyncio.to_thread(self._folder.scan)
            for name, why in odd.items():
                if self._odd.get(name) != why:
                    log.warning("tool_file_ignored", tool=name, why=why)
            self._odd = odd
            for name in found.keys() | self._tools.keys():
                tool = self._tools.get(name)
                if tool is None or tool.seen != found.get(name):
                    self._refresh(name)
            return found

    def _refresh(self, name: str) -> asyncio.Task[None]:
        tool = self._tools.get(name)
        if tool is None:
            tool = self._tools[name] = _Tool(self._blank_entry(name))
        if tool.refresh is None:
            tool.refresh = self._spawn(self._follow(name, tool))
        else:
            tool.again = True
        return tool.refresh

    async def _refreshed(self, name: str) -> None:
        await asyncio.wait([self._refresh(name)])

    async def _follow(self, name: str, tool: _Tool) -> None:
        """Bring one tool to what the folder holds, however often that changes meanwhile."""
        try:
            while self._tools.get(name) is tool:
                tool.again = False
                sighting = await self._settled_sighting(name)
                if sighting.module is None:
                    # Whose it was stays recorded: should the file come back, it must not be everyone's.
                    if await self._confirm(name, sighting, partial(self._drop, name)):
                        return
                    continue
                if sighting == tool.seen and not tool.again:
                    return
                await self._load(name, tool, sighting)
                if not tool.again and tool.seen == sighting:
                    return
        except OSError as error:
            log.warning("tool_refresh_failed", tool=name, why=str(error))
            self._refuse(name, tool, tool.seen, f"cannot be read: {error.strerror}")
        finally:
            tool.refresh = None

    async def _settled_sighting(self, name: str) -> Sighting:
        while True:
            sighting = await asyncio.to_thread(self._folder.sight, name)
            age = time.time() - sighting.changed_ns / 1e9
            if not 0 <= age < _SETTLE_SECONDS:
                return sighting
            await asyncio.sleep(_SETTLE_SECONDS - age)

    async def _load(self, name: str, tool: _Tool, sighting: Sighting) -> None:
        started = time.monotonic()
        try:
            async with self._reads:
                files = await asyncio.to_thread(self._folder.read, name, sighting)
                manifest = await asyncio.to_thread(self._parse, name, files)
                artifact = await self._compiler.find(files.module)
                del files
            if artifact is None:
                # Read again: hundreds of modules that wait for their turn are not kept in memory.
                async with self._compiles:
                    files = await asyncio.to_thread(self._folder.read, name, sighting)
                    artifact = await self._compiler.compile(files.module, trusted=sighting.builtin)
        except FileChangedError:
            await asyncio.sleep(_SETTLE_SECONDS)
            tool.again = True
            return
        except (ClawboxError, ToolFileError, OSError) as error:
            why = str(error)
        except Exception:  # one bad file never stops the server
            log.exception("tool_load_broke", tool=name)
            why = "clawbox could not load it; the log says more"
        else:
            done = await self._confirm(
                name, sighting, partial(self._publish, name, sighting, manifest, artifact)
            )
            if done:
                self._on_load("loaded", time.monotonic() - started)
            return
        if await self._confirm(name, sighting, partial(self._refuse, name, tool, sighting, why)):
            self._on_load("refused", time.monotonic() - started)

    def _parse(self, name: str, files: ToolFiles) -> Manifest | None:
        if files.manifest is None:
            return None
        try:
            manifest = Manifest.parse(files.manifest, any_host=self._ceiling.any_host)
        except ClawboxError as error:
            raise ToolFileError(f"{name}.json: {error.message}") from None
        if manifest.name != name:
            raise ToolFileError(f"{name}.json: tool.name is {manifest.name}, not {name}")
        return manifest

    async def _confirm(self, name: str, sighting: Sighting, act: Callable[[], None]) -> bool:
        """Act on what was sighted if that is still what is there; nobody else changes it in between."""
        async with self._changing_of(name):
            if await asyncio.to_thread(self._folder.sight, name) != sighting:
                return False
            act()
            return True

    # What is in service

    def _publish(self, name: str, sighting: Sighting, manifest: Manifest | None, artifact: Artifact) -> None:
        ownership = self._owners.get(name, builtin=sighting.builtin)
        in_force = manifest or Manifest.automatic(name)
        entry = ToolEntry(
            name=name,
            manifest=in_force,
            has_manifest=manifest is not None,
            owner=ownership.owner,
            published=ownership.published,
            state=ToolState.READY,
            load_error="",
            warnings=(),
            code=ToolCode(
                name=name,
                digest=artifact.digest,
                abi=artifact.abi,
                artifact=str(artifact.path),
                input_schema=_schema(in_force.input_schema),
                output_schema=_schema(in_force.output_schema),
                table_elements=_TABLE_ELEMENTS[artifact.abi],
            ),
            size_bytes=artifact.wasm_bytes,
            update_time=datetime.now(UTC),
            builtin=sighting.builtin,
        )
        excess = manifest_excess(in_force, self.owner_terms(entry), self._ceiling)
        entry = replace(entry, warnings=tuple(f"{v.field}: {v.description}" for v in excess))
        for warning in entry.warnings:
            log.warning("manifest_not_granted", tool=name, what=warning)
        tool = self._tools.setdefault(name, _Tool(entry))
        tool.entry, tool.seen = entry, sighting
        tool.settled.set()
        log.info("tool_in_service", tool=name, digest=artifact.digest, abi=artifact.abi.value)

    def _refuse(self, name: str, tool: _Tool, sighting: Sighting | None, why: str) -> None:
        in_service = tool.entry.code is not None
        state = ToolState.READY if in_service else ToolState.FAILED
        tool.entry = replace(tool.entry, state=state, load_error=why)
        tool.seen = sighting
        tool.settled.set()
        log.warning("tool_refused", tool=name, why=why, previous_in_service=in_service)

    def _drop(self, name: str) -> None:
        tool = self._tools.pop(name, None)
        if tool is not None:
            tool.settled.set()
            log.info("tool_gone", tool=name)

    def _blank_entry(self, name: str) -> ToolEntry:
        ownership = self._owners.get(name)
        return ToolEntry(
            name=name,
            manifest=Manifest.automatic(name),
            has_manifest=False,
            owner=ownership.owner,
            published=ownership.published,
            state=ToolState.COMPILING,
            load_error="",
            warnings=(),
            code=None,
            size_bytes=0,
            update_time=datetime.now(UTC),
            builtin=False,
        )

    # Tasks and locks

    def _changing_of(self, name: str) -> asyncio.Lock:
        return self._changing.setdefault(name, asyncio.Lock())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._group.create_task(work)
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        return task

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


def _schema(value: dict[str, Any] | None) -> bytes | None:
    return None if value is None else json.dumps(value, ensure_ascii=False).encode()


def _sees(principal: Principal, entry: ToolEntry) -> bool:
    return entry.published or principal.is_admin or (entry.owner != "" and entry.owner == principal.name)


def _check_may_change(principal: Principal, entry: ToolEntry) -> None:
    if not principal.is_admin and not (entry.owner and entry.owner == principal.name):
        raise ClawboxError(
            Reason.SCOPE_MISSING,
            "only its owner or an administrator (scope {scope}) may change the tool {tool}",
            scope="*",
            tool=entry.name,
        )


def _check_may_publish(principal: Principal, published: bool | None) -> None:  # noqa: FBT001
    if published and not principal.is_admin:
        raise ClawboxError(
            Reason.SCOPE_MISSING, "only an administrator (scope {scope}) may publish a tool", scope="*"
        )


def _not_found(name: str) -> ClawboxError:
    return ClawboxError(
        Reason.TOOL_NOT_FOUND, "there is no tool {tool}", resource=("tool", name[:64]), tool=name[:64]
    )


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
