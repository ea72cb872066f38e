"""The tools of many owners on one server. The numbers are those of docs/security.md."""

from __future__ import annotations

from clawbox.errors import Code, Reason
from clawbox.wasm.manifest import Manifest
from tests.integration.catalog.conftest import ADMIN, ALICE, BOB, manifest, upload
from tests.integration.catalog.test_changes import refusal
from tests.unit.compiler.conftest import COMMAND, command


async def test_rule_97_a_private_tool_is_its_owners_and_administrators_alone(catalog):
    await upload(catalog, "mine", COMMAND)
    assert [entry.name for entry in catalog.list(ALICE)] == ["mine"]
    assert [entry.name for entry in catalog.list(ADMIN)] == ["mine"]
    assert catalog.list(BOB) == ()
    described = Manifest.automatic("mine")
    for call in (
        catalog.ready("mine", BOB),
        catalog.delete("mine", BOB),
        catalog.register(described, BOB),
    ):
        error = await refusal(call)
        assert (error.reason, error.code) == (Reason.TOOL_NOT_FOUND, Code.NOT_FOUND)
    assert (await catalog.reload(BOB)).tools == ()


async def test_rule_97_what_an_administrator_publishes_all_see_and_only_the_owner_changes(catalog):
    await upload(catalog, "mine", COMMAND)
    described = Manifest.from_value(manifest("mine"))
    assert (await refusal(catalog.register(described, ALICE, published=True))).reason is Reason.SCOPE_MISSING
    entry, created = await catalog.register(described, ADMIN, published=True)
    assert (entry.published, entry.owner, created) == (True, "alice", True)
    assert (await catalog.ready("mine", BOB)).name == "mine"
    for call in (catalog.delete("mine", BOB), catalog.register(described, BOB)):
        error = await refusal(call)
        assert (error.reason, error.code) == (Reason.SCOPE_MISSING, Code.PERMISSION_DENIED)
    error = await refusal(upload(catalog, "mine", command(2), BOB, replace=True))
    assert error.reason is Reason.SCOPE_MISSING
    again, created = await catalog.register(described, ALICE)
    assert (again.published, created) == (True, False)
    hidden, _ = await catalog.register(described, ALICE, published=False)
    assert not hidden.published
