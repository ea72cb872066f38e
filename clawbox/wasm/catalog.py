"""The tools that there are: who sees them, who runs them, who changes them. The folder is the truth.

What a principal may not see is TOOL_NOT_FOUND; the one thing that tells it from what does not exist is an
upload under a name that is taken, TOOL_EXISTS. Which version is in service is for
:class:`~clawbox.wasm.shelf.Shelf` to say; :class:`~clawbox.wasm.uploads.Uploads` brings in new ones.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

import structlog

from clawbox.errors import ClawboxError, Reason
from clawbox.wasm.owners import Owners, Ownership
from clawbox.wasm.shelf import OnLoad, Preload, Shelf
from clawbox.wasm.steps import Steps
from clawbox.wasm.tool_access import check_grantable, check_may_change, check_may_publish, not_found, sees
from clawbox.wasm.tool_entry import LoadFailure, ReloadReport, ToolEntry, ToolState
from clawbox.wasm.tool_files import ToolFileError, ToolFolder
from clawbox.wasm.uploads import Uploads, UploadStart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from types import TracebackType

    from clawbox.auth import Principal
    from clawbox.policy import PrincipalTerms, ToolCeiling
    from clawbox.wasm.compiler import Compiler
    from clawbox.wasm.manifest import Manifest

log = structlog.get_logger("clawbox.wasm.catalog")


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
        self._ceiling = ceiling
        self._steps = Steps()
        self._uploads = Uploads(
            self._folder,
            self._owners,
            self._shelf,
            compiler,
            ceiling=ceiling,
            steps=self._steps,
            max_tool_bytes=max_tool_bytes,
            on_load=on_load,
        )

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
        await self._steps.all_done()
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
        check_grantable(manifest, self.owner_terms(entry), self._ceiling)
        await self._steps.to_its_end(self._write_manifest(name, manifest, principal, published=published))
        return self.get(name, principal), not entry.has_manifest

    async def upload(
        self, start: UploadStart, chunks: AsyncIterator[bytes], principal: Principal
    ) -> ToolEntry:
        """Receive a module and put it in service; raises what :meth:`Uploads.upload` raises."""
        await self._uploads.upload(start, chunks, principal)
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
        await self._steps.to_its_end(self._remove_files(name))

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
