"""``clawbox config check|show``, and the reference in docs/."""

from pathlib import Path

import pytest

from clawbox.config import reference
from clawbox.config.schema import all_keys

from .conftest import Clawbox

SECRET = "hunter2-hunter2"


def test_check_of_good_settings(clawbox: Clawbox, home: Path) -> None:
    clawbox("init")
    ran = clawbox("config", "check")
    assert ran.code == 0
    assert ran.out == f"{home / '.clawbox' / 'config.toml'}: good\n"
    assert clawbox("config", "check", "--json").json["ok"] is True


def test_check_says_everything_that_is_wrong(clawbox: Clawbox, home: Path) -> None:
    file = home / "c.toml"
    file.write_text("[server]\nprot = 1\nport = 'x'\n")
    ran = clawbox("config", "check", "--config", file)
    assert ran.code == 1
    assert ran.out.splitlines() == [
        f'{file}: server.port: found "x"; accepted: 0 (any free port) to 65535',
        f"{file}: server.prot: found an unknown key; accepted: server.port",
    ]
    answer = clawbox("config", "check", "--config", file, "--json").json
    assert [problem["key"] for problem in answer["problems"]] == ["server.port", "server.prot"]


def test_check_looks_at_the_token_file_too(clawbox: Clawbox, home: Path) -> None:
    clawbox("init")
    (home / ".clawbox" / "token").chmod(0o644)
    ran = clawbox("config", "check")
    assert ran.code == 1
    assert "chmod 600" in ran.out


def test_check_looks_at_engine_and_images_as_the_server_will(clawbox: Clawbox, home: Path) -> None:
    clawbox("init")
    file = home / ".clawbox" / "config.toml"
    file.write_text("""
[containers]
docker_url = "/var/run/docker.sock"
[images]
allowed = ["alpine", "debian:12", "ghcr.io/me/"]
default = "Alpine"
[images.templates.web]
image = "foo bar"
""")
    ran = clawbox("config", "check")
    assert ran.code == 1
    assert [line.removeprefix(f"{file}: ").partition(": ")[0] for line in ran.out.splitlines()] == [
        "containers.docker_url",
        "images.allowed[1]",
        "images.default",
        "images.templates.web.image",
    ]
    assert ran.out.splitlines()[1].endswith(
        "found a fault: 'debian:12' names a tag or digest; a repository is allowed with all of them; "
        "accepted: a repository such as alpine, or a prefix that ends with /"
    )

    file.write_text(f"{file.read_text()}\n[images.templates.web.resources]\nmemory_mb = 'x'")
    assert "images.templates.web.resources.memory_mb" in clawbox("config", "check").out


def test_check_names_what_a_template_has_beyond_what_any_container_may(clawbox: Clawbox, home: Path) -> None:
    clawbox("init")
    file = home / ".clawbox" / "config.toml"
    template = """
[containers]
enabled = {enabled}
max_lifetime_ms = 60000
[container_policy]
network_allowlist = ["api.example.com"]
allowed_credentials = ["one"]
[images.templates.web]
image = "alpine"
network_allowlist = ["*.example.com", "pypi.org"]
credentials = ["one", "two"]
max_lifetime_ms = 70000
[images.templates.web.resources]
memory_mb = 5000
pids = 1024
"""
    file.write_text(template.format(enabled="true"))
    ran = clawbox("config", "check")
    assert ran.code == 1
    assert ran.out.splitlines() == [
        (
            f'{file}: images.templates.web.network_allowlist[1]: found "pypi.org"; '
            "accepted: what container_policy.network_allowlist covers"
        ),
        (
            f'{file}: images.templates.web.credentials[1]: found "two"; '
            "accepted: one of container_policy.allowed_credentials"
        ),
        (
            f"{file}: images.templates.web.resources.memory_mb: found 5000; "
            "accepted: at most containers.max_memory_mb, which is 4096"
        ),
        (
            f"{file}: images.templates.web.max_lifetime_ms: found 70000; "
            "accepted: at most containers.max_lifetime_ms, which is 60000"
        ),
    ]

    file.write_text(template.format(enabled="false"))
    assert clawbox("config", "check").code == 0


def test_check_of_a_file_that_is_not_there(clawbox: Clawbox) -> None:
    ran = clawbox("config", "check", "--config", "/nowhere/c.toml")
    assert ran.code == 1
    assert "No such file" in ran.out


def test_show_says_every_key_its_value_and_where_it_comes_from(
    clawbox: Clawbox, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clawbox("init")
    monkeypatch.setenv("CLAWBOX_PORT", "5")
    file = str(home / ".clawbox" / "config.toml")
    rows = {row["key"]: row for row in clawbox("config", "show", "--json").json}
    assert list(rows) == list(all_keys())
    assert rows["server.port"] == {"key": "server.port", "value": 5, "source": "environment CLAWBOX_PORT"}
    assert rows["sandbox.tool_dir"] == {
        "key": "sandbox.tool_dir",
        "value": str(home / ".clawbox" / "tools"),
        "source": file,
    }
    assert rows["metrics.port"]["source"] == "defaults"
    text = clawbox("config", "show", "--changed").out.splitlines()
    assert "server.port\t5\tenvironment CLAWBOX_PORT" in text
    assert not any(line.startswith("metrics.port") for line in text)


def test_show_masks_secrets(clawbox: Clawbox, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = "a1" * 32
    (home / "c.toml").write_text(
        f"""
[server]
auth_token = "{SECRET}"
[state]
url = "postgresql://u:{SECRET}@db/x"
[[auth.tokens]]
name = "n"
sha256 = "{digest}"
network_allowlist = ["a.example.com", {{host = "b.example.com", ports = [1]}}]
"""
    )
    monkeypatch.setenv("CLAWBOX_MASTER_KEY", SECRET)
    for args in ([], ["--json"]):
        ran = clawbox("config", "show", "--config", "c.toml", *args)
        assert ran.code == 0
        assert SECRET not in ran.out
        assert digest not in ran.out
        assert "********" in ran.out
        assert "b.example.com" in ran.out
    rows = {row["key"]: row for row in clawbox("config", "show", "--config", "c.toml", "--json").json}
    assert rows["server.auth_token"]["value"] == "********"
    assert rows["credentials.master_key_file"]["value"] is None


def test_show_of_settings_that_cannot_be_used(clawbox: Clawbox, home: Path) -> None:
    (home / "c.toml").write_text("[server]\nport = -1\n")
    ran = clawbox("config", "show", "--config", "c.toml")
    assert ran.code == 2
    assert "server.port" in ran.err


def test_the_reference_in_docs_is_up_to_date() -> None:
    root = Path(reference.__file__).parents[2]
    assert (root / reference.DEFAULT_FILE).read_text() == reference.reference()


def test_the_reference_names_every_key() -> None:
    page = reference.reference()
    for key in all_keys():
        section, _, name = key.partition(".")
        part = page.partition(f"## [{section}]\n")[2].partition("\n## ")[0]
        assert f"| `{name}`" in part or f"[{key}" in part, key


def test_check_of_the_reference_notices_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "docs" / "settings.md"
    assert reference.main(["--check", str(page)]) == 1
    assert reference.main([str(page)]) == 0
    assert reference.main(["--check", str(page)]) == 0
    page.write_text(page.read_text() + "x")
    assert reference.main(["--check", str(page)]) == 1
    assert "out of date" in capsys.readouterr().err
