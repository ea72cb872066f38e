"""The fixtures of the areas whose properties are tested here by their numbers in docs/security.md."""

from tests.integration.catalog.conftest import catalog, world
from tests.integration.pool.conftest import execute, forge, observer, pool, uids
from tests.integration.rpc.conftest import running
from tests.unit.children.conftest import family, launcher, probe
from tests.unit.compiler.conftest import compiler

__all__ = [
    "catalog",
    "compiler",
    "execute",
    "family",
    "forge",
    "launcher",
    "observer",
    "pool",
    "probe",
    "running",
    "uids",
    "world",
]
