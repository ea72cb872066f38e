"""Which version of each tool is in service: follows the tool folder, and keeps the last one that loaded.

A file that does not load keeps the version before it in service. Nothing here holds the server up, and one
bad file never stops it: a tool that is being compiled is COMPILING, and only who wants to run it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakValueDictionary

import structlog
from watchfiles import awatch

from clawbox.errors import ClawboxError
from clawbox.policy import NOTHING, PrincipalTerms, ToolCeiling, manifest_excess
from clawbox.wasm.manifest import Manifest
from clawbox.wasm.model import Abi, ToolCode
from clawbox.wasm.tool_entry import ToolEntry, ToolState
from clawbox.wasm.tool_files import FileChangedError, Sighting, ToolFileError, ToolFiles, ToolFolder

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from types import TracebackType

    from clawbox.auth import Principal
    from clawbox.wasm.cache import Artifact
    from clawbox.wasm.compiler import Compiler
    from clawbox.wasm.owners import Owners

log = structlog.get_logger("clawbox.wasm.shelf")

LOOK_AGAIN_MS = 2000
"""How long a change can go unseen where the kernel tells of none (network file systems, replaced folders)."""
_SETTLE_SECONDS = 0.1
"""A file that changed less than this ago may still be being written."""
_READS_AT_ONCE = 4
_COMPILES_AT_ONCE = 2
_TABLE_ELEMENTS = {Abi.COMMAND_MODULE: 10_000, Abi.COMPONENT: 100_000, Abi.COMMAND_COMPONENT: 100_000}
"""Table elements of a run: the Rust clawbox's for modules; interpreters need tens of thousands."""

OnLoad = Callable[[str, float], None]
"""Told ``loaded`` or ``refused``, and the seconds that it took, for each version of each tool."""

Preload = Callable[[ToolCode], Awaitable[None]]
"""Makes a tool known to those who will run it, so that its first call need not wait."""


@dataclass(slots=True)
class Shelved:
    """What the shelf keeps about one name."""

    entry: ToolEntry
    seen: Sighting | None = None
    """The version that ``entry`` tells of, whether it loaded or not."""
    refresh: asyncio.Task[None] | None = None
    again: bool = False
    """Something changed while a refresh was under way."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the first version loaded or failed, or the tool is gone."""


class Shelf:
    """Every tool by name. An async context manager: inside it, the folder is followed."""

    def __init__(
        self,
        folder: ToolFolder,
        owners: Owners,
        compiler: Compiler,
        ceiling: ToolCeiling,
        *,
        find_principal: Callable[[str], Principal | None],
        watch: bool,
        on_load: OnLoad,
        preload: Preload | None,
    ) -> None:
        self._preload = preload
        self._folder = folder
        self._owners = owners
        self._compiler = compiler
        self._ceiling = ceiling
        self._find_principal = find_principal
        self._watching = watch
        self._on_load = on_load
        self._tools: dict[str, Shelved] = {}
        self._odd: dict[str, str] = {}
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._scanning = asyncio.Lock()
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)
        self._compiles = asyncio.Semaphore(_COMPILES_AT_ONCE)
        self._group = asyncio.TaskGroup()
        self._following: set[asyncio.Task[None]] = set()
        self._stop_watching = asyncio.Event()

    async def __aenter__(self) -> Self:
        """List the folder and begin to load what is in it; raises OSError when it cannot be read."""
        await self._group.__aenter__()
        try:
            await self.rescan()
        except OSError:
            await self.__aexit__(None, None, None)
            raise
        if self._watching:
            self._spawn(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching and loading."""
        self._stop_watching.set()
        for task in tuple(self._following):
            task.cancel()
        await self._group.__aexit__(None, None, None)

    @property
    def tools(self) -> Mapping[str, Shelved]:
        """What there is, by name."""
        return self._tools

    @property
    def odd(self) -> Mapping[str, str]:
        """Files that can be no tool, by name, with what is wrong with them."""
        return self._odd

    def owner_terms(self, entry: ToolEntry) -> PrincipalTerms | None:
        """What the owner's token allows its tools now; None: the operator's, whom the server alone bounds."""
        if not entry.owner:
            return None
        owner = self._find_principal(entry.owner)
        return NOTHING if owner is None else owner.limits

    def changing(self, name: str) -> asyncio.Lock:
        """Held by whoever changes a tool's files, or puts into service what it read of them."""
        return self._changing.setdefault(name, asyncio.Lock())

    async def refreshed(self, name: str) -> None:
        """Bring one tool to what the folder holds."""
        await asyncio.wait([self._refresh(name)])

    async def reread(self) -> None:
        """Bring every tool to what the folder holds, and try once more what failed; raises OSError."""
        for tool in self._tools.values():
            if tool.entry.load_error and tool.refresh is None:
                tool.seen = None
        await self.rescan()
        pending = [tool.refresh for tool in self._tools.values() if tool.refresh is not None]
        if pending:
            await asyncio.wait(pending)

    async def _watch(self) -> None:
        while not self._stop_watching.is_set():
            try:
                # Whatever an event says, look at everything: what was merged or lost does no harm.
                async for _ in awatch(
                    self._folder.path,
                    watch_filter=None,
                    debounce=50,
                    step=20,
                    recursive=False,
                    rust_timeout=LOOK_AGAIN_MS,
                    yield_on_timeout=True,
                    stop_event=self._stop_watching,
                ):
                    await self.rescan()
            except Exception:  # a folder that cannot be watched for now must not stop the server
                log.warning("tool_folder_watch_failed", folder=str(self._folder.path), exc_info=True)
                await asyncio.sleep(LOOK_AGAIN_MS / 1000)
                with contextlib.suppress(OSError):
                    await self.rescan()

    async def rescan(self) -> None:
        """Look at the whole folder, and begin to read anew what is not as it was; raises OSError."""
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

    def _refresh(self, name: str) -> asyncio.Task[None]:
        tool = self._tools.get(name)
        if tool is None:
            tool = self._tools[name] = Shelved(self._blank_entry(name))
        if tool.refresh is None:
            tool.refresh = self._spawn(self._follow(name, tool))
        else:
            tool.again = True
        return tool.refresh

    async def _follow(self, name: str, tool: Shelved) -> None:
        """Bring one tool to what the folder holds, however often that changes meanwhile."""
        try:
            while self._tools.get(name) is tool:
                tool.again = False
                sighting = await self._settled_sighting(name)
                if sighting.module is None:
                    # Whose it was stays recorded: should the file come back, it must not be everyone's.
                    if await self._confirm(name, sighting, partial(self.drop, name)):
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

    async def _load(self, name: str, tool: Shelved, sighting: Sighting) -> None:
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
                name, sighting, partial(self.publish, name, sighting, manifest, artifact)
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
        async with self.changing(name):
            if await asyncio.to_thread(self._folder.sight, name) != sighting:
                return False
            act()
            return True

    # What is in service

    def publish(self, name: str, sighting: Sighting, manifest: Manifest | None, artifact: Artifact) -> None:
        """Put a version into service; ``sighting`` is the files that it was made of."""
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
        tool = self._tools.setdefault(name, Shelved(entry))
        tool.entry, tool.seen = entry, sighting
        tool.settled.set()
        log.info("tool_in_service", tool=name, digest=artifact.digest, abi=artifact.abi.value)
        if self._preload is not None and entry.code is not None:
            self._spawn(self._make_known(self._preload, entry.code))

    async def _make_known(self, preload: Preload, code: ToolCode) -> None:
        try:
            await preload(code)
        except ClawboxError as error:  # then the first call says so, or goes better
            log.warning("tool_not_preloaded", tool=code.name, why=str(error))

    def _refuse(self, name: str, tool: Shelved, sighting: Sighting | None, why: str) -> None:
        in_service = tool.entry.code is not None
        state = ToolState.READY if in_service else ToolState.FAILED
        tool.entry = replace(tool.entry, state=state, load_error=why)
        tool.seen = sighting
        tool.settled.set()
        log.warning("tool_refused", tool=name, why=why, previous_in_service=in_service)

    def drop(self, name: str) -> None:
        """The tool is gone."""
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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._group.create_task(work)
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        return task


def _schema(value: dict[str, Any] | None) -> bytes | None:
    return None if value is None else json.dumps(value, ensure_ascii=False).encode()
