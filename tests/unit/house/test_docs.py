"""What the documents point to is there."""

import re
import subprocess

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
        r"^\| (\d+) \|.*\| (.*) \| (.*) \|$", (root / "docs/security.md").read_text(), re.MULTILINE
    )
    return {int(number): re.findall("`([^`]+/[^`]+)`", f"{held} {tests}") for number, held, tests in rows}


def test_what_security_properties_name_is_there(root, properties):
    assert [name for names in properties.values() for name in names if not (root / name).exists()] == []


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
