"""``clawbox egress explain``: what people and scripts are told, and how it ends."""

from __future__ import annotations

import json
import os

import pytest

from clawbox.egress.credentials import Credential, Secret
from clawbox.egress.vault import MasterKey, Vault

GRANT = """
[grant]
network = [
    "api.example.com",
    { host = "grpc.example.com", ports = [443], tls_mode = "tunnel" },
    "169.254.169.254",
    "localhost.example.com",
]
"""
SECRET = "sk-a-secret-of-enough-characters"


@pytest.fixture
def grant(home):
    path = home / "grant.toml"
    path.write_text(GRANT)
    return path


@pytest.fixture
def key(home, monkeypatch):
    """An encrypted file with a credential for api.example.com, which the grant names."""
    text = "ab" * 32
    monkeypatch.setenv("CLAWBOX_MASTER_KEY", text)
    folder = home / ".clawbox"
    folder.mkdir(mode=0o700)
    vault = Vault(folder / "credentials.enc", MasterKey(text))
    vault.put(Credential("example", Secret(SECRET), ("api.example.com",)))
    with (home / "grant.toml").open("a") as file:
        file.write('credentials = ["example"]\n')
    return text


async def test_allowed(cli, grant):
    ended = await cli("egress", "explain", "https://API.example.com/a/../b?key=1", "--grant", str(grant))
    assert ended.code == 0
    lines = dict(line.split(None, 1) for line in ended.out.splitlines())
    assert lines["request"] == "GET https://api.example.com/b"
    assert lines["verdict"] == "allowed"
    assert lines["rule"] == "grant.network[0]: api.example.com"
    assert lines["tls"].startswith("intercepted")
    assert lines["credential"] == "none"
    assert lines["address"] == "judged once the name is resolved (--resolve)"
    assert lines["limits"].startswith("100 requests/s after 200 at once")


async def test_refused(cli, grant):
    ended = await cli("egress", "explain", "https://x.example.com/", "-X", "PUT", "--grant", str(grant))
    assert ended.code == 1
    assert "request  PUT https://x.example.com/\n" in ended.out
    assert "verdict  REFUSED, 403 host_not_allowed\n" in ended.out
    assert "rule     none names the host\n" in ended.out


async def test_cloud_metadata_is_refused_whatever_the_grant_says(cli, grant):
    ended = await cli("egress", "explain", "https://169.254.169.254/", "--grant", str(grant), "--json")
    assert ended.code == 1
    answer = json.loads(ended.out)
    assert (answer["allowed"], answer["reason"], answer["rule"]) == (False, "address_refused", 2)
    assert "cloud metadata" in answer["addresses"][0]["refused"]
    assert answer["status"] == 403


async def test_the_credential_is_named_never_shown(cli, grant, key):
    for args in ((), ("--json",)):
        ended = await cli("egress", "explain", "https://api.example.com/", "--grant", str(grant), *args)
        assert ended.code == 0
        assert "example" in ended.out
        assert SECRET not in ended.out + ended.err
    assert json.loads(ended.out)["credential"] == "example"


async def test_without_the_key_it_says_that_credentials_are_not_known(cli, grant, key, monkeypatch):
    monkeypatch.delenv("CLAWBOX_MASTER_KEY")
    ended = await cli("egress", "explain", "https://api.example.com/", "--grant", str(grant))
    assert ended.code == 0
    assert "credential   not known here: " in ended.out
    assert "CLAWBOX_MASTER_KEY" in ended.out


async def test_a_credential_that_is_not_there_refuses(cli, grant, key):
    grant.write_text(GRANT + 'credentials = ["other"]\n')
    ended = await cli("egress", "explain", "https://api.example.com/", "--grant", str(grant))
    assert ended.code == 1
    assert "credential_unavailable" in ended.out
    assert "other: there is no credential of that name" in ended.out


async def test_names_are_resolved_only_when_asked(cli, grant, monkeypatch):
    asked = []

    def getaddrinfo(host, *_args, **_more):
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", 0)), (2, 1, 6, "", ("93.184.215.14", 0))]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    assert (await cli("egress", "explain", "https://api.example.com/", "--grant", str(grant))).code == 0
    assert asked == []
    ended = await cli("egress", "explain", "https://api.example.com/", "--grant", str(grant), "--resolve")
    assert ended.code == 1
    assert asked == ["api.example.com"]
    assert "127.0.0.1: refused, loopback" in ended.out
    assert "93.184.215.14: good" in ended.out
    assert (
        await cli("egress", "explain", "https://evil.example.com/", "--grant", str(grant), "--resolve")
    ).code == 1
    assert asked == ["api.example.com"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("[grant]\nnetwrok = []", "grant.netwrok: found an unknown key; accepted: grant.network"),
    ],
)
async def test_a_wrong_grant_file_is_a_usage_error(cli, home, text, said):
    path = home / "grant.toml"
    if text is not None:
        path.write_text(text)
    ended = await cli("egress", "explain", "https://api.example.com/", "--grant", str(path))
    assert ended.code == 2
    assert said in ended.err
    assert os.fspath(path) in ended.err
    assert "config check" not in ended.err
    assert ended.out == ""


async def test_a_url_that_steers_terminals_is_escaped(cli, grant):
    ended = await cli("egress", "explain", "https://api.example.com/\x1b[2J", "--grant", str(grant))
    assert ended.code == 1
    assert "\x1b" not in ended.out
