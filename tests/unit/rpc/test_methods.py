"""The table of methods says what the protos say, and covers everything that is served."""

import re
from pathlib import Path

import pytest

from clawbox.rpc.methods import REFLECTION_SERVICES, Access, method_table

_PROTOS = Path(__file__).parents[3] / "protos" / "clawbox" / "v1"


def _documented_scopes() -> dict[str, set[str]]:
    """Method → the scopes in its comment: ``Scope: `sandbox:read` or `sandbox:execute```."""
    found: dict[str, set[str]] = {}
    for file in _PROTOS.glob("*.proto"):
        service = ""
        comment: list[str] = []
        for line in file.read_text().splitlines():
            text = line.strip()
            if match := re.match(r"service (\w+) \{", text):
                service = match[1]
            elif text.startswith("//"):
                comment.append(text.removeprefix("//").strip())
                continue
            elif match := re.match(r"rpc (\w+)\(", text):
                sentence = re.search(r"Scope: ([^.;]*)", " ".join(comment))
                assert sentence, f"{service}.{match[1]} does not say its scope"
                found[f"/clawbox.v1.{service}/{match[1]}"] = set(re.findall(r"`([^`]+)`", sentence[1]))
            comment = []
    return found


def test_each_method_of_the_contract_asks_for_the_scopes_that_its_comment_names() -> None:
    table = method_table()
    documented = _documented_scopes()
    assert documented
    assert {name: set(table[name].scopes) for name in documented} == documented


def test_only_health_and_open_reflection_are_public() -> None:
    public = {name.split("/")[1] for name, row in method_table().items() if row.access is Access.PUBLIC}
    assert public == {"grpc.health.v1.Health", *REFLECTION_SERVICES}


def test_a_method_with_scopes_never_has_an_empty_list_of_them() -> None:
    assert all(row.scopes for row in method_table().values() if row.access is Access.SCOPES)


def test_executions_are_the_runs_of_tools_and_nothing_else() -> None:
    executions = {name for name, row in method_table().items() if row.execution}
    assert executions == {"/clawbox.v1.Sandbox/Execute", "/clawbox.v1.Sandbox/ExecuteStream"}


@pytest.mark.parametrize(("setting", "access"), [("open", Access.PUBLIC), ("token", Access.TOKEN)])
def test_reflection_follows_its_setting(setting, access) -> None:
    table = method_table(setting)
    assert {table[f"/{service}/ServerReflectionInfo"].access for service in REFLECTION_SERVICES} == {access}


def test_reflection_that_is_off_has_no_row() -> None:
    assert not [name for name in method_table("off") if "reflection" in name]
