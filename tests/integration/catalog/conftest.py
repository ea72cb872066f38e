"""A catalog over a folder of its own, with real compiling, and who calls it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from clawbox.auth import Principal, PrincipalLimits
from clawbox.network_rules import NetworkRule
from clawbox.policy import ToolCeiling
from clawbox.wasm.catalog import Catalog
from clawbox.wasm.compiler import Compiler
from clawbox.wasm.manifest import Manifest
from clawbox.wasm.uploads import UploadStart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from clawbox.wasm.tool_entry import ToolEntry

ADMIN = Principal("root", frozenset({"*"}))
ALICE = Principal("alice", frozenset({"sandbox:execute", "sandbox:write"}))
BOB = Principal("bob", frozenset({"sandbox:execute", "sandbox:write"}))
CAROL = Principal(
    "carol",
    frozenset({"sandbox:write"}),
    PrincipalLimits(network=(NetworkRule("api.openai.com"),), credentials=frozenset()),
)
CEILING = ToolCeiling(
    default_timeout_ms=30_000,
    max_timeout_ms=120_000,
    default_memory_mb=256,
    max_memory_mb=1024,
    default_fuel=1000,
    max_fuel=10_000,
    network=(NetworkRule("*.github.com"), NetworkRule("api.openai.com")),
    credentials=frozenset({"github"}),
)
MAX_TOOL_BYTES = 256 << 10


def manifest(name: str, **sections: Any) -> dict[str, Any]:
    return {"tool": {"name": name, "description": f"The tool {name}."}, **sections}


async def in_pieces(data: bytes) -> AsyncIterator[bytes]:
    size = max(7, len(data) // 20)
    for start in range(0, len(data), size):
        yield data[start : start + size]


@dataclass
class World:
    """Where a catalog lives: it can be left and entered again, as a server restarts."""

    root: Path
    principals: dict[str, Principal] = field(
        default_factory=lambda: {who.name: who for who in (ADMIN, ALICE, BOB, CAROL)}
    )
    loads: list[str] = field(default_factory=list)
    compiler: Compiler = field(init=False)

    @property
    def tools(self) -> Path:
        return self.root / "tools"

    @property
    def builtin(self) -> Path:
        return self.root / "builtin"

    def put(self, name: str, module: bytes | None, described: object = None) -> None:
        self.tools.mkdir(exist_ok=True)
        if described is not None:
            (self.tools / f"{name}.json").write_text(json.dumps(described))
        if module is not None:
            (self.tools / f"{name}.wasm").write_bytes(module)

    def files(self) -> set[str]:
        """Everything in the folder, staging included, but the record of owners."""
        found = {str(path.relative_to(self.tools)) for path in self.tools.rglob("*") if path.is_file()}
        return found - {".clawbox/owners.json"}

    @contextlib.asynccontextmanager
    async def catalog(self, **options: Any) -> AsyncIterator[Catalog]:
        self.builtin.mkdir(exist_ok=True)
        async with (
            Compiler(self.root / "cache", timeout_ms=options.pop("compile_timeout_ms", 30_000)) as compiler,
            Catalog(
                self.tools,
                compiler,
                options.pop("ceiling", CEILING),
                max_tool_bytes=MAX_TOOL_BYTES,
                find_principal=self.principals.get,
                builtin_dir=self.builtin,
                on_load=lambda result, _: self.loads.append(result),
                watch=options.pop("watch", False),
            ) as catalog,
        ):
            self.compiler = compiler
            yield catalog


async def until(condition: Callable[[], object]) -> None:
    """Waits for something that the catalog does by itself."""
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)


def entry_of(catalog: Catalog, name: str) -> ToolEntry:
    return catalog.get(name, ADMIN)


def digest_of(catalog: Catalog, name: str) -> str:
    code = entry_of(catalog, name).code
    return "" if code is None else code.digest


async def upload(
    catalog: Catalog,
    name: str,
    module: bytes,
    principal: Principal = ALICE,
    described: dict[str, Any] | None = None,
    **options: Any,
) -> ToolEntry:
    options.setdefault("size_bytes", len(module))
    parsed = None if described is None else Manifest.from_value(described)
    return await catalog.upload(UploadStart(name, manifest=parsed, **options), in_pieces(module), principal)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
async def catalog(world: World) -> AsyncIterator[Catalog]:
    async with world.catalog() as catalog:
        yield catalog
