"""The ways to reach a server: a Unix socket that is its owner's alone, and TLS."""

from __future__ import annotations

import os
import stat
import subprocess
from functools import partial
from ipaddress import ip_address

import pytest
from clawbox_client import Tls
from cryptography import x509

from tests.caller import Caller, refused
from tests.integration.client.test_tls import Authority
from tests.live import CLAWBOX, init


def test_the_unix_socket_is_its_owner_s_alone_and_asks_for_a_token(server):
    path = server.home / "sock"
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.geteuid())
    with Caller(f"unix:{path}", server.token) as caller:
        assert caller.execute("echo", "1").output_json == "1"
    with Caller(f"unix:{path}", None) as nobody:
        assert refused(lambda: nobody.execute("echo")).kind == ("UNAUTHENTICATED", "TOKEN_MISSING")


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(serve, tmp_path, mutual):
    ours = Authority(tmp_path, "ours")
    certificate, key = ours.issue("server", x509.IPAddress(ip_address("127.0.0.1")))
    settings = {"CLAWBOX_SERVER__TLS_CERT": str(certificate), "CLAWBOX_SERVER__TLS_KEY": str(key)}
    mine = Tls(ca=ours.file)
    if mutual:
        settings["CLAWBOX_SERVER__TLS_CLIENT_CA"] = str(ours.file)
        own_certificate, own_key = ours.issue("client")
        mine = Tls(ca=ours.file, cert=own_certificate, key=own_key)
    with serve(tls=mine, **settings) as server:
        with Caller(server.address, server.token, mine.credentials()) as caller:
            assert caller.execute("echo", "1").output_json == "1"
        with Caller(server.address, None, mine.credentials()) as nobody:
            assert refused(lambda: nobody.execute("echo")).reason == "TOKEN_MISSING"
        strangers = [None, Tls(ca=Authority(tmp_path, "theirs").file).credentials()]
        if mutual:
            strangers.append(Tls(ca=ours.file).credentials())
        for credentials in strangers:
            with Caller(server.address, server.token, credentials) as caller:
                found = refused(partial(caller.execute, "echo"))
                assert (found.code, found.reason) == ("UNAVAILABLE", "")


def test_another_address_without_tls_is_refused(tmp_path):
    config = init(tmp_path / "clawbox")
    ended = subprocess.run(
        [CLAWBOX, "serve", "--config", config, "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    assert "without TLS" in ended.stderr
    assert "Traceback" not in ended.stderr
