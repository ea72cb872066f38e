"""``clawbox token add|list|revoke``, and what they do to the settings file."""

import stat
import threading
import tomllib
from pathlib import Path

import pytest

from clawbox.auth import TokenTable, digest_of
from clawbox.config import Config, ConfigError
from clawbox.config.edit import EditError, ExistsError, NoSuchTokenError, add_token, remove_token

from .conftest import Clawbox


@pytest.fixture
def file(clawbox: Clawbox, home: Path) -> Path:
    assert clawbox("init").code == 0
    return home / ".clawbox" / "config.toml"


def test_add_prints_the_token_alone_on_stdout_and_stores_its_digest(clawbox: Clawbox, file: Path) -> None:
    ran = clawbox("token", "add", "ci", "--scope", "sandbox:execute", "--scope", "system:read")
    token = ran.out.removesuffix("\n")
    assert ran.code == 0
    assert "ci" in ran.err
    assert token not in ran.err
    assert token not in file.read_text()
    assert digest_of(token) in file.read_text()
    principal = TokenTable.of(Config.load(file)).authenticate(f"Bearer {token}")
    assert principal.name == "ci"
    assert sorted(principal.scopes) == ["sandbox:execute", "system:read"]


def test_add_with_limits(clawbox: Clawbox, file: Path) -> None:
    ran = clawbox(
        "token", "add", "n", "--scope", "*", "--network", "api.example.com", "--network", "*.example.org",
        "--credential", "github", "--max-sandboxes", 3, "--max-streams", 4, "--json",
    )  # fmt: skip
    principal = TokenTable.of(Config.load(file)).authenticate(f"Bearer {ran.json['token']}")
    assert [rule.host for rule in principal.limits.network or ()] == ["api.example.com", "*.example.org"]
    assert principal.limits.credentials == frozenset({"github"})
    assert (principal.limits.max_sandboxes, principal.limits.max_streams) == (3, 4)


def test_list_shows_everyone_and_no_digest(clawbox: Clawbox, file: Path) -> None:
    assert "no tokens" in clawbox("token", "list").out
    token = clawbox("token", "add", "one", "--scope", "sandbox:read").out.strip()
    clawbox("token", "add", "two", "--scope", "*", "--max-streams", 2)
    ran = clawbox("token", "list")
    assert [line.split("\t")[:2] for line in ran.out.splitlines()[1:]] == [
        ["one", "sandbox:read"],
        ["two", "*"],
    ]
    assert digest_of(token) not in ran.out
    listed = clawbox("token", "list", "--json").json
    assert [one["name"] for one in listed] == ["one", "two"]
    assert listed[1]["max_streams"] == 2
    assert "sha256" not in listed[0]


def test_revoke(clawbox: Clawbox, file: Path) -> None:
    before = file.read_text()
    clawbox("token", "add", "one", "--scope", "sandbox:read")
    assert clawbox("token", "revoke", "one").code == 0
    assert Config.load(file).auth.tokens == ()
    assert tomllib.loads(file.read_text()).get("auth", {}).get("tokens", []) == []
    assert file.read_text().startswith(before.rstrip())
    ran = clawbox("token", "revoke", "one")
    assert ran.code == 4
    assert "no token named one" in ran.err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["one", "--scope", "sandbox:red"], 2, "sandbox:execute"),
        (["one"], 2, "--scope"),
        (["a b", "--scope", "*"], 2, "1 to 64 of"),
        (["admin", "--scope", "*"], 2, "not admin"),
        (["one", "--scope", "*", "--network", "https://x"], 2, "network_allowlist"),
        (["taken", "--scope", "*"], 7, "revoke taken"),
    ],
)
def test_add_refuses(args: list[str], code: int, words: str, clawbox: Clawbox, file: Path) -> None:
    clawbox("token", "add", "taken", "--scope", "*")
    before = file.read_bytes()
    ran = clawbox("token", "add", *args)
    assert ran.code == code
    assert words in ran.err
    assert ran.out == ""
    assert file.read_bytes() == before
    assert sorted(path.name for path in file.parent.iterdir()) == ["audit", "config.toml", "token", "tools"]


def test_without_settings_it_says_how_to_make_them(clawbox: Clawbox) -> None:
    ran = clawbox("token", "add", "n", "--scope", "*")
    assert ran.code == 4
    assert "clawbox init" in ran.err


LAYOUTS = {
    "no tokens": "# top\n[server]\nport = 1 # one\n",
    "empty": "",
    "array of tables": "[[auth.tokens]] # first\nname = 'a' # a\nsha256 = '%s'\n\n# z\n[metrics]\nport = 2\n"
    % ("a" * 64),
    "inline list": "[auth]\n# mine\ntokens = [\n  {name = 'a', sha256 = '%s'}, # a\n]\n[metrics]\nport = 2\n"
    % ("a" * 64),
    "empty list": "[auth]\ntokens = [] # none\n[server]\nport = 3\n",
    "dotted key": "auth.tokens = [] # none\n[server]\nport = 3\n",
    "empty section": "[auth]\n# nobody\n\n[server]\nport = 3\n",
    "sections before and after": "[server]\nport = 1\n\n[auth]\n\n[[auth.tokens]]\nname='a'\nsha256='%s'\n"
    "network_allowlist = [{host = 'x.example.com', ports = [1]}]\n\n[sandbox]\nworkers = 1\n" % ("a" * 64),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_token_changes_whatever_the_layout(layout: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    text = LAYOUTS[layout]
    file.write_text(text)
    was = tomllib.loads(text)
    token = add_token(file, {"name": "new", "scopes": ["*"]})
    now = tomllib.loads(file.read_text())
    had = was.get("auth", {}).get("tokens", [])
    assert now["auth"]["tokens"] == [*had, {"name": "new", "sha256": digest_of(token), "scopes": ["*"]}]
    assert now | {"auth": was.get("auth")} == was | {"auth": was.get("auth")}
    remove_token(file, "new")
    for comment in [part.split("\n")[0] for part in text.split("#")[1:]]:
        assert f"#{comment}" in file.read_text()
    assert tomllib.loads(file.read_text()).get("auth", {}).get("tokens", []) == had


def test_the_file_stays_private_and_a_link_stays_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real" / "c.toml"
    real.parent.mkdir()
    real.write_text("")
    real.chmod(0o644)
    link = tmp_path / "link.toml"
    link.symlink_to(real)
    add_token(link, {"name": "n", "scopes": []})
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert len(Config.load(link).auth.tokens) == 1


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("")
    names = [f"n{number}" for number in range(12)]
    threads = [
        threading.Thread(target=add_token, args=(file, {"name": name, "scopes": []})) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(token.name for token in Config.load(file).auth.tokens) == sorted(names)
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


def test_a_fault_elsewhere_does_not_keep_a_token_from_being_revoked(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("")
    add_token(file, {"name": "n", "scopes": []})
    file.write_text(f"[server]\nport = -1\n{file.read_text()}")
    remove_token(file, "n")
    assert tomllib.loads(file.read_text()) == {"server": {"port": -1}}


def test_errors_of_the_library(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    with pytest.raises(ConfigError, match="No such file"):
        add_token(file, {"name": "n", "scopes": []})
    file.write_text("auth = 3\n")
    with pytest.raises(EditError, match="`auth` is no table"):
        add_token(file, {"name": "n", "scopes": []})
    file.write_text("[auth]\ntokens = 'x'\n")
    with pytest.raises(EditError, match=r"`auth\.tokens` is no list"):
        remove_token(file, "n")
    file.write_text("")
    with pytest.raises(NoSuchTokenError):
        remove_token(file, "n")
    add_token(file, {"name": "n", "scopes": []})
    with pytest.raises(ExistsError):
        add_token(file, {"name": "n", "scopes": []})
