"""What the documents point to is there."""

import ast
import re
import subprocess
from functools import cache

import pytest

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def tracked(root, *patterns):
    """The files of the source tree that match, committed or about to be."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return [root / name for name in done.stdout.splitlines() if (root / name).is_file()]


def test_every_link_between_documents_resolves(root):
    missing = [
        f"{page.relative_to(root)} -> {target}"
        for page in tracked(root, "*.md")
        for target in LINK.findall(page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]

    assert missing == []


def test_every_page_is_in_the_index(root):
    index = (root / "docs/README.md").read_text()
    pages = {page.name for page in (root / "docs").glob("*.md")} - {"README.md"}

    assert {page for page in pages if f"({page})" not in index} == set()


def test_the_first_page_and_migration_name_the_same_routes(root):
    first, migration = (
        set(re.findall(r"`((?:GET|POST|DELETE) /[^`]*)`", (root / page).read_text()))
        for page in ("README.md", "docs/migration.md")
    )

    assert first == migration


def test_every_decision_is_in_the_index(root):
    index = (root / "docs/README.md").read_text()

    for page in (root / "docs/decisions").glob("*.md"):
        [(number, title)] = re.findall(r"\A# (\d+): (.+)", page.read_text())
        assert page.name.startswith(f"{number}-")
        assert f"| [{number}](decisions/{page.name}) |" in index, title


@pytest.fixture(scope="module")
def properties(root):
    """What docs/security.md says of each property: number, and the names in its last two columns."""
    rows = re.findall(
        r"^\| (\d+) \| .* \| (.*) \| (.*) \|$", (root / "docs/security.md").read_text(), re.MULTILINE
    )
    assert len({number for number, _, _ in rows}) == len(rows)
    return {
        int(number): (re.findall("`(.+?)`", tests), re.findall("`(.+?)`", code))
        for number, tests, code in rows
    }


@cache
def functions(path):
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_each_property_names_code_and_tests_that_are_there(root, properties):
    for number, (tests, code) in properties.items():
        assert [path for path in code if not (root / path).is_file()] == [], number
        assert code, number
        for name in tests:
            path, _, function = name.partition("::")
            assert function in functions(root / path), name


def test_each_property_has_a_test_of_its_number_and_each_such_test_is_named(root, properties):
    numbered: dict[int, set[str]] = {}
    for path in tracked(root, "tests/**.py"):
        for function in functions(path):
            for number in re.findall(r"^test_rule_(\d+)_", function):
                numbered.setdefault(int(number), set()).add(f"{path.relative_to(root)}::{function}")

    named = {
        number: {name for name in tests if f"::test_rule_{number}_" in name}
        for number, (tests, _) in properties.items()
    }
    assert named == numbered


def test_pages_that_the_code_names_are_there(root):
    cited = {
        (page, number)
        for source in tracked(root, "clawbox/**.py", "tests/**.py", "clients/**.py", "tools/**.py")
        for page, number in re.findall(r"([\w./-]+\.md)(,\s+\d+)?", source.read_text())
        if number or page.startswith("docs/")
    }

    assert {page for page, number in cited if number} == {"docs/security.md"}
    assert [page for page, _ in cited if not (root / page).is_file()] == []


def test_numbers_in_comments_are_properties(root, properties):
    cited = {
        int(number)
        for source in tracked(root, "clawbox/**.py", "tests/**.py", "clients/**.py")
        for numbers in re.findall(r"docs/security\.md,\s+((?:\d+(?:, | and )?)+)", source.read_text())
        for number in re.findall(r"\d+", numbers)
    }

    assert cited - properties.keys() == set()


def test_the_route_table_has_the_17_routes_and_names_methods_that_exist(root):
    page = (root / "docs/migration.md").read_text()
    protos = "".join(path.read_text() for path in sorted((root / "protos/clawbox/v1").glob("*.proto")))

    routes = re.findall(r"^\| `(?:GET|POST|DELETE) (/\S*)` \|", page, re.MULTILINE)
    assert len(routes) == 17
    for service, method in re.findall(r"`(Sandbox|Containers|Agents|System)/(\w+)`", page):
        [body] = re.findall(rf"^service {service} {{(.*?)^}}", protos, re.MULTILINE | re.DOTALL)
        assert f"rpc {method}(" in body, f"{service}/{method}"
