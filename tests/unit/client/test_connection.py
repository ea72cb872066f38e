from __future__ import annotations

import json

import clawbox_client as cb
import pytest
from clawbox_client.connection import SERVICE_CONFIG, Address, Connection, token_source

SECRET = "s3cr3t-t0ken"


@pytest.mark.parametrize(
    ("text", "target", "local"),
    [
        ("127.0.0.1:9800", "dns:///127.0.0.1:9800", True),
        ("127.9.9.9:1", "dns:///127.9.9.9:1", True),
        ("localhost:9800", "dns:///localhost:9800", True),
        ("[::1]:9800", "dns:///[::1]:9800", True),
        ("[2001:db8::1]:443", "dns:///[2001:db8::1]:443", False),
        ("10.0.0.1:9800", "dns:///10.0.0.1:9800", False),
        ("0.0.0.0:9800", "dns:///0.0.0.0:9800", False),
        ("box.example:443", "dns:///box.example:443", False),
        ("localhost.evil.example:443", "dns:///localhost.evil.example:443", False),
        ("xds:443", "dns:///xds:443", False),
        ("unix:/run/clawbox.sock", "unix:/run/clawbox.sock", True),
        ("unix:///run/clawbox.sock", "unix:/run/clawbox.sock", True),
    ],
)
def test_addresses(text, target, local):
    parsed = Address.parse(text)
    assert (parsed.target, parsed.local) == (target, local)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "host", "host:", ":80", "host:0", "host:65536", "host:-1", "host:٣", "::1", "[::1]",
        "::1:80",
        "[127.0.0.1]:80", "http://host:80", "dns:///host:80", "xds:///host:80", "user@host:80", "a b:80",
        "host/../:80", "unix:relative", "unix://host/path", "unix:", "127.0.0.1:80,evil.example:80", "-a:80",
    ],
)  # fmt: skip
def test_what_is_no_address(text):
    with pytest.raises(ValueError):
        Address.parse(text)


def make(address="127.0.0.1:9800", **options):
    return Connection.make(
        address,
        **{
            "token": None,
            "token_file": None,
            "tls": None,
            "insecure": False,
            "max_message_bytes": 1,
            **options,
        },
    )


def test_plaintext_to_another_machine_has_to_be_asked_for():
    with pytest.raises(ValueError, match="another machine"):
        make("10.0.0.1:9800", token=SECRET)
    make("10.0.0.1:9800", token=SECRET, insecure=True)
    make("10.0.0.1:9800", token=SECRET, tls=cb.Tls())
    with pytest.raises(ValueError, match="exclude"):
        make("10.0.0.1:9800", tls=cb.Tls(), insecure=True)


def test_only_plaintext_ignores_the_proxy_of_the_environment():
    assert dict(make().options)["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in dict(make(tls=cb.Tls()).options)


def test_the_token_is_in_no_repr(tmp_path):
    (tmp_path / "token").write_text(SECRET)
    with cb.SyncClient(token=SECRET) as client:
        assert repr(client) == "SyncClient('127.0.0.1:9800')"
    assert SECRET not in repr(make(token=SECRET))
    assert SECRET not in repr(token_source(SECRET, None))
    assert SECRET not in repr(token_source(None, tmp_path / "token"))


@pytest.mark.parametrize("token", ["", "two words", "line\n", "é", "a" * 5000, "\x00"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(token):
    with pytest.raises(ValueError) as caught:
        make(token=token)
    assert not token or repr(token)[1:-1] not in str(caught.value)


def test_a_token_and_a_file_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="not both"):
        make(token=SECRET, token_file=tmp_path / "token")


def test_half_a_client_certificate(tmp_path):
    with pytest.raises(ValueError, match="needs its key"):
        cb.Tls(cert=tmp_path / "c.pem").credentials()


_READ_CONTAINERS = ("Get", "List", "Wait", "ListFiles", "StatFile", "ListTemplates")


def test_only_what_reads_is_retried():
    (policy,) = json.loads(SERVICE_CONFIG)["methodConfig"]
    assert policy["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    names = {(name["service"], name["method"]) for name in policy["name"]}
    assert names == {
        ("clawbox.v1.Sandbox", "ListTools"),
        ("clawbox.v1.Sandbox", "GetTool"),
        *(("clawbox.v1.Containers", name) for name in _READ_CONTAINERS),
        ("clawbox.v1.System", "GetStatus"),
        ("grpc.health.v1.Health", "Check"),
        ("grpc.health.v1.Health", "List"),
    }
