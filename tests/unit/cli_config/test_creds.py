"""``clawbox creds add|list|remove|test``: values come on stdin, and are never shown."""

import io
import sys

import pytest

from clawbox.egress.credentials import BasicAttachment, Budget, HeaderAttachment, QueryAttachment
from clawbox.egress.vault import MasterKey, Vault

from .conftest import Clawbox

HEX_KEY = "ab" * 32
VALUE = "s3cret-VALUE-that-nobody-may-see"


@pytest.fixture
def creds(clawbox: Clawbox, home, monkeypatch):
    monkeypatch.setenv("CLAWBOX_MASTER_KEY", HEX_KEY)

    def run(*arguments, value=VALUE + "\n", code=0):
        stdin = io.TextIOWrapper(io.BytesIO(value if isinstance(value, bytes) else value.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        ran = clawbox("creds", *arguments)
        assert ran.code == code, ran
        assert VALUE not in ran.out + ran.err
        assert HEX_KEY not in ran.out + ran.err
        return ran

    return run


@pytest.fixture
def stored(home):
    return lambda: Vault(home / ".clawbox" / "credentials.enc", MasterKey(HEX_KEY)).load()


def test_add_takes_the_flags_of_the_rust_clawbox(creds, stored):
    assert "added" in creds("add", "--name", "gh", "--domain", "API.github.com").out
    creds(
        "add", "--name", "b", "--domain", "b.test", "--header", "X-Token", "--prefix", "", value=f" {VALUE} "
    )
    gh, b = stored().credentials
    assert (gh.hosts, gh.attachment, gh.ports) == (("api.github.com",), HeaderAttachment(), (443,))
    assert b.attachment == HeaderAttachment("X-Token", "")
    assert gh.value.reveal() == b.value.reveal() == VALUE
    assert "replaced" in creds("add", "--name", "gh", "--domain", "a.test", value="another-value-0123").out
    assert stored().get("gh").value.reveal() == "another-value-0123"


def test_add_takes_everything_that_a_credential_can_have(creds, stored):
    creds(
        "add", "--name", "n", "--domain", "a.test", "--domain", "b.test", "--basic", "git", "--port", 8443,
        "--method", "GET", "--path", "/repos", "--plain-http", "--max-requests", 5, "--window", 60,
        "--env", "GIT_TOKEN",
    )  # fmt: skip
    one = stored().get("n")
    assert one.scope.hosts == ("a.test", "b.test")
    assert (one.attachment, one.ports, one.methods) == (BasicAttachment("git"), (8443,), ("GET",))
    assert (one.path_prefixes, one.plain_http, one.env) == (("/repos",), True, "GIT_TOKEN")
    assert one.budget == Budget(5, None, 60)
    creds("add", "--name", "q", "--domain", "a.test", "--query", "token")
    assert stored().get("q").attachment == QueryAttachment("token")


@pytest.mark.parametrize(
    ("arguments", "value", "words"),
    [
        (("--domain", "a.test"), "short", "shorter than 16"),
        (("--domain", "a.test"), "", "empty"),
        (("--domain", "a.test"), f"{VALUE}\nsecond line\n", "line end"),
        (("--domain", "a.test"), f"{VALUE}\r\nX-Evil: 1", "line end"),
        (("--domain", "a.test"), b"\xff" * 20, "UTF-8"),
        (("--domain", "*.a.test"), VALUE, "--domain"),
        (("--domain", "a.test", "--header", "Host"), VALUE, "header"),
        (("--domain", "a.test", "--basic", "u", "--query", "q"), VALUE, "exclude"),
        (("--domain", "a.test", "--path", "no-slash"), VALUE, "path_prefixes"),
        (("--domain", "a.test", "--port", "0"), VALUE, "ports"),
    ],
)
def test_rule_40_what_cannot_be_a_credential_is_refused_in_words(creds, stored, arguments, value, words):
    ran = creds("add", "--name", "x", *arguments, value=value, code=2)
    assert words in ran.err
    assert stored().credentials == ()


def test_rule_68_a_short_secret_is_taken_when_insisted_on(creds, stored):
    assert "--force" in creds("add", "--name", "x", "--domain", "a.test", value="1234567", code=2).err
    creds("add", "--name", "x", "--domain", "a.test", "--force", value="1234567")
    assert stored().get("x").short


def test_list_shows_what_credentials_are_for(creds):
    assert "no credentials" in creds("list").out
    creds("add", "--name", "gh", "--domain", "api.github.com")
    creds("add", "--name", "q", "--domain", "a.test", "--query", "token", "--method", "GET")
    creds("add", "--name", "b", "--domain", "a.test", "--basic", "git")
    rows = [line.split("\t") for line in creds("list").out.splitlines()]
    assert rows[1:] == [
        ["gh", "api.github.com", "443", "Authorization: Bearer …", "any", "any", "-"],
        ["q", "a.test", "443", "?token=…", "GET", "any", "-"],
        ["b", "a.test", "443", "basic git:…", "any", "any", "-"],
    ]
    listed = creds("list", "--json").json
    assert [one["name"] for one in listed["credentials"]] == ["gh", "q", "b"]
    assert listed["broken"] == []


def test_remove(creds, stored):
    creds("add", "--name", "gh", "--domain", "api.github.com")
    assert "is removed" in creds("remove", "--name", "gh").out
    assert "was not there" in creds("remove", "--name", "gh").out
    assert stored().credentials == ()


def test_test_says_whether_a_credential_goes_with_a_request(creds):
    creds("add", "--name", "gh", "--domain", "api.github.com", "--method", "GET")
    assert "can be used" in creds("test", "--name", "gh").out
    assert "would go" in creds("test", "--name", "gh", "https://api.github.com/x?secret=1").out
    for refused in (("http://api.github.com/x",), ("https://api.github.com/x", "--method", "post")):
        assert "is not for" in creds("test", "--name", "gh", *refused, code=1).out
    creds("test", "--name", "gh", "https://a b/", code=2)
    creds("test", "--name", "none", code=4)


def test_rule_42_a_file_that_cannot_be_read_is_said_to_be_so(creds, home, monkeypatch):
    creds("add", "--name", "gh", "--domain", "api.github.com")
    file = home / ".clawbox" / "credentials.enc"
    file.chmod(0o644)
    for command in (("list",), ("add", "--name", "x", "--domain", "a.test"), ("remove", "--name", "gh")):
        assert "chmod 600" in creds(*command, code=7).err
    file.chmod(0o600)
    monkeypatch.setenv("CLAWBOX_MASTER_KEY", "cd" * 32)
    assert "another key" in creds("list", code=7).err
    monkeypatch.delenv("CLAWBOX_MASTER_KEY")
    assert creds("list", code=7).err.endswith("set CLAWBOX_MASTER_KEY or credentials.master_key_file.\n")
    (home / "key").write_text(HEX_KEY)
    (home / "key").chmod(0o600)
    monkeypatch.setenv("CLAWBOX_CREDENTIALS__MASTER_KEY_FILE", str(home / "key"))
    assert "gh" in creds("list").out


def test_at_a_terminal_the_value_is_asked_for_and_not_shown(creds, stored, monkeypatch, clawbox):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    asked = []

    def ask(prompt):
        asked.append(prompt)
        return VALUE

    monkeypatch.setattr("getpass.getpass", ask)
    monkeypatch.setattr(sys, "stdin", Terminal())
    ran = clawbox("creds", "add", "--name", "gh", "--domain", "a.test")
    assert (ran.code, len(asked)) == (0, 1)
    assert VALUE not in ran.out + ran.err
    assert stored().get("gh").value.reveal() == VALUE


def test_a_value_is_never_an_argument(creds):
    creds("add", "--name", "x", "--domain", "a.test", "--value", "whatever-0123456789", code=2)
    creds("add", "--name", "x", "--domain", "a.test", "whatever-0123456789", code=2)
