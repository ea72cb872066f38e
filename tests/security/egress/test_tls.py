"""Properties 33 to 37, 72 and 73: whom TLS names, what is trusted, and whose certificates a sandbox sees."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import ipaddress
import os
import pickle
import ssl
import subprocess
import sys
import textwrap

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from clawbox.egress.refusal import Denial, RefusedError
from clawbox.egress.tls import upstream as upstream_tls
from clawbox.egress.tls.authority import MAX_LEAVES, Authority, derive_authority
from clawbox.egress.tls.client_hello import (
    ClientHello,
    alert,
    check_intercept,
    check_tunnel,
    read_client_hello,
)
from clawbox.egress.tls.session import ServerSession, TlsError
from clawbox.egress.tls.upstream import MAX_SESSIONS, UpstreamTls
from tests.egress_world import TestCa, Upstream, answers
from tests.egress_world.ca import DAY, client_context, server_context
from tests.unit.tls.flights import alpn, extension, hello, real_hello, server_name
from tests.unit.tls.machines import Program, program, shake

HOST = "api.example.com"
SEED = bytes(range(32))


def denial_of(check, *arguments):
    try:
        check(*arguments)
    except RefusedError as error:
        return error.refusal.denial
    return None


@pytest.mark.parametrize(
    ("name", "host", "denial"),
    [
        (HOST, HOST, None),
        ("API.Example.COM", HOST, None),
        (HOST + ".", HOST, None),
        (None, "192.0.2.7", None),
        (None, "2001:db8::1", None),
        ("192.0.2.7", "192.0.2.7", None),
        (None, HOST, Denial.SNI_MISSING),
        ("evil.example.com", HOST, Denial.SNI_DIFFERS),
        ("example.com", HOST, Denial.SNI_DIFFERS),
        ("api.example.com.evil.example", HOST, Denial.SNI_DIFFERS),
        ("api.example.com\0.evil.example", HOST, Denial.SNI_DIFFERS),
        (" api.example.com", HOST, Denial.SNI_DIFFERS),
        ("*.example.com", HOST, Denial.SNI_DIFFERS),
        ("192.0.2.7", HOST, Denial.SNI_DIFFERS),
        ("evil.example.com", "192.0.2.7", Denial.SNI_DIFFERS),
        ("192.0.2.8", "192.0.2.7", Denial.SNI_DIFFERS),
    ],
)
def test_rule_33_a_tunnels_handshake_asks_for_the_host_of_connect(name, host, denial):
    assert denial is denial_of(check_tunnel, ClientHello(name, ()), host)


def test_rule_33_what_is_not_tls_is_refused_and_tls_of_any_making_is_read():
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", bytes(100)):
        with pytest.raises(RefusedError) as caught:
            read_client_hello(data)
        assert caught.value.refusal.denial is Denial.NOT_TLS
    grease, hidden = extension(0x8A8A, b"\0"), extension(0xFE0D, b"\0" * 200)
    for data in (real_hello(HOST, ["h2"]), hello(grease, server_name(HOST.encode()), hidden, alpn(b"h2"))):
        found = read_client_hello(data)
        assert found is not None
        check_tunnel(found, HOST)


@pytest.mark.parametrize(
    ("denial", "heard"),
    [
        (Denial.SNI_DIFFERS, "unrecognized name"),
        (Denial.HTTP2_ONLY, "no application protocol"),
        (Denial.SNI_MISSING, "missing extension"),
    ],
)
def test_rule_33_a_client_is_told_in_tls_why_it_is_refused(denial, heard):
    client = Program(client_context(), HOST)
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client.incoming.write(alert(denial))
    assert heard in client.heard()
    assert alert(Denial.NOT_TLS) == b""


@pytest.mark.parametrize(
    ("name", "denial"),
    [(HOST, None), ("API.example.com", None), (None, None), ("other.example.com", Denial.SNI_DIFFERS)],
)
def test_rule_34_an_intercepted_handshake_asks_for_no_other_host(name, denial):
    assert denial is denial_of(check_intercept, ClientHello(name, (b"http/1.1",)), HOST)


async def ask(trust, upstream, name=HOST, *, port=443):
    """Connects, asks for the root, and gives the session when the whole answer has come."""
    session = trust.session(name, port)
    reader, writer = await asyncio.open_connection(*upstream.address)
    try:
        while not session.handshake_done:
            writer.write(session.pending())
            data = await reader.read(1 << 16)
            assert data, "the upstream closed"
            session.receive(data)
        writer.write(session.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
        answer = b""
        while not answer.endswith(b"said"):
            answer += session.receive(await reader.read(1 << 16))
        writer.write(session.close())
        return session
    finally:
        writer.write(session.pending())  # the alert
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


ROUTES = {"/": answers.body(b"said")}


async def test_rule_35_a_good_certificate_is_accepted_for_names_and_addresses():
    ca = TestCa()
    trust = UpstreamTls([ca.pem], system=False)
    async with Upstream(ROUTES, tls=ca.server_context(HOST, "127.0.0.1", "::1", "*.w.example")) as upstream:
        for name in (HOST, "127.0.0.1", "::1", "a.w.example"):
            session = await ask(trust, upstream, name)
            assert not session.resumed
        assert [HOST, None, None, "a.w.example"] == [request.server_name for request in upstream.seen]


BAD = {
    "expired": lambda ca: (ca.expired_context(HOST), "its certificate has expired"),
    "not yet valid": lambda ca: (ca.not_yet_valid_context(HOST), "its certificate is not valid yet"),
    "self-signed": lambda ca: (ca.self_signed_context(HOST), "its certificate is signed by itself"),
    "another name": lambda ca: (
        ca.server_context("evil.example"),
        "its certificate is for other names",
    ),
    "a name like it": lambda ca: (
        ca.server_context("*.com", "*.api.example.com", "api.example.com.evil.example"),
        "its certificate is for other names",
    ),
    "the name as the subject alone": lambda ca: (
        server_context(ca.issue("192.0.2.1", subject=HOST)),
        "its certificate is for other names",
    ),
    "no issuer that is trusted": lambda _ca: (
        TestCa().server_context(HOST),
        "its certificate is from an authority that is not trusted here",
    ),
    "a client's certificate": lambda ca: (
        server_context(ca.issue(HOST, for_servers=False)),
        "its certificate is not for servers",
    ),
}


@pytest.mark.parametrize("kind", BAD)
async def test_rule_35_a_bad_certificate_ends_the_connection_before_a_byte_is_sent(kind):
    ca = TestCa()
    context, detail = BAD[kind](ca)
    trust = UpstreamTls([ca.pem], system=False)
    async with Upstream(ROUTES, tls=context) as upstream:
        with pytest.raises(TlsError) as caught:
            await ask(trust, upstream)
        assert (Denial.TLS_FAILED, detail) == (caught.value.refusal.denial, caught.value.refusal.detail)
        assert upstream.seen == []


async def test_rule_35_an_address_needs_a_certificate_for_the_address():
    ca = TestCa()
    async with Upstream(ROUTES, tls=ca.server_context(HOST)) as upstream:
        with pytest.raises(TlsError, match="is for other addresses"):
            await ask(UpstreamTls([ca.pem], system=False), upstream, "127.0.0.1")


async def test_rule_35_private_authorities_are_trusted_only_where_the_operator_lists_them():
    ca = TestCa()
    async with Upstream(ROUTES, tls=ca.server_context(HOST)) as upstream:
        for trust in (UpstreamTls(), UpstreamTls([TestCa().pem])):
            with pytest.raises(TlsError, match="authority that is not trusted"):
                await ask(trust, upstream)
        both = f"An authority of ours, ünlike others\n{TestCa().pem}{ca.pem}"
        await ask(UpstreamTls([both]), upstream)
    with pytest.raises(ValueError, match="PEM"):
        UpstreamTls(["no certificate"])


async def test_rule_35_a_chain_ends_at_whatever_the_operator_lists():
    root = TestCa("root")
    middle = TestCa("middle", root)
    async with Upstream(ROUTES, tls=middle.server_context(HOST)) as upstream:
        for listed in (root, middle):
            await ask(UpstreamTls([listed.pem], system=False), upstream)
    middle.chain = ""
    async with Upstream(ROUTES, tls=middle.server_context(HOST)) as upstream:
        await ask(UpstreamTls([middle.pem], system=False), upstream)
        with pytest.raises(TlsError, match="authority that is not trusted"):
            await ask(UpstreamTls([root.pem], system=False), upstream)


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it does not speak TLS there"),
        (b"\x15\x03\x03\x00\x02\x02\x78", "it does not speak HTTP/1.1"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "it speaks no TLS of version 1.2 or later"),
        (b"\x15\x03\x03\x00\x02\x02\x70", "it does not know the host's name"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "it refused the handshake"),
        (b"\x15\x03\x03\x00\x02\x02\x50", "the handshake failed"),
        (b"\x16\x03\x03\x00\x02\x02\x50" * 9, "the handshake failed"),
    ],
)
def test_rule_35_a_handshake_that_an_upstream_breaks_fails_with_a_reason(said, detail):
    session = UpstreamTls([], system=False).session(HOST, 443)
    with pytest.raises(TlsError) as caught:
        session.receive(said)
    assert (Denial.TLS_FAILED, detail) == (caught.value.refusal.denial, caught.value.refusal.detail)


@pytest.fixture
def nowhere(monkeypatch):
    """OpenSSL looks for the system's store where there is none."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    monkeypatch.setenv("SSL_CERT_DIR", "/nowhere")
    monkeypatch.setattr(upstream_tls, "_prepared", [])
    upstream_tls.system_authorities.cache_clear()
    yield
    upstream_tls.system_authorities.cache_clear()


@pytest.mark.parametrize("there", [True, False])
def test_rule_35_the_systems_store_may_be_where_distributions_have_it(nowhere, monkeypatch, tmp_path, there):
    authority = derive_authority(SEED, "store")
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(authority.ca_pem if there else "nothing")
    monkeypatch.setattr(upstream_tls, "_BUNDLES", ("/nowhere", str(bundle)))
    client, server = UpstreamTls().session(HOST, 443), authority.session(HOST)
    if there:
        shake(client, server)
    else:
        with pytest.raises(TlsError, match="authority that is not trusted"):
            shake(client, server)


def test_rule_35_an_upstream_gets_tls_1_2_or_later_and_cannot_begin_anew():
    ca = TestCa()
    trust = UpstreamTls([ca.pem], system=False)
    trust._context.maximum_version = ssl.TLSVersion.TLSv1_2  # the last that could begin anew
    identity = ca.issue(HOST)
    key = serialization.load_pem_private_key(identity, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_privatekey(key)
    context.use_certificate(x509.load_pem_x509_certificate(identity))
    connection = SSL.Connection(context, None)
    connection.set_accept_state()
    client, server = trust.session(HOST, 443), ServerSession(connection)
    shake(client, server)
    connection.renegotiate()
    connection.do_handshake()  # asks for it, and returns
    client.receive(server.pending())
    refusal = client.pending()
    assert refusal[0] == 21  # an alert, no handshake
    versions = b"\0\x2b\0\5\4\3\4\3\3"  # supported_versions: 1.3 and 1.2 (RFC 8446 section 4.2.1)
    assert versions in UpstreamTls([], system=False).session(HOST, 443).pending()


@pytest.mark.parametrize("way", ["file", "folder"])
def test_rule_35_the_systems_store_is_read_before_it_is_out_of_reach(tmp_path, way):
    """In a process of its own, whose store is one authority, and which loses its files like a sidecar."""
    authority = derive_authority(SEED, "store")
    store = tmp_path / ("store.pem" if way == "file" else "0a1b2c3d.0")
    store.write_text(authority.ca_pem)
    found = _confined(
        """
        authority = derive_authority(bytes(range(32)), "store")
        trust = UpstreamTls()
        client, server = trust.session("a.example", 443), authority.session("a.example")
        shake(client, server)
        print(server.receive(client.send(b"trusted")).decode())
        """,
        {"SSL_CERT_FILE": str(store), "SSL_CERT_DIR": "/nowhere"}
        if way == "file"
        else {"SSL_CERT_FILE": "/nowhere", "SSL_CERT_DIR": str(tmp_path)},
    )
    assert found == ["trusted"]


def test_rule_36_an_authority_does_not_show_its_key():
    authority = derive_authority(SEED, "box")
    secret = authority.to_bytes()[:32]
    for text in (repr(authority), str(authority), f"{authority}", authority.ca_pem):
        assert secret.hex() not in text
        assert "PRIVATE" not in text
    with pytest.raises(TypeError):
        pickle.dumps(authority)
    again = Authority.from_bytes(authority.to_bytes())
    assert authority.ca_pem == again.ca_pem
    for wrong in (b"", bytes(32), secret, authority.to_bytes()[:-1], SEED + authority.to_bytes()[32:]):
        with pytest.raises(ValueError):
            Authority.from_bytes(wrong)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(("h2", "http/1.1"), "http/1.1"), (("http/1.1",), "http/1.1"), ((), None)],
)
def test_rule_37_a_client_gets_http_1_1(offered, chosen):
    authority = derive_authority(SEED, "box")
    server, client = authority.session(HOST), program(authority.ca_pem, HOST, alpn=offered)
    client.shake(server)
    assert (chosen, chosen) == (server.alpn, client.tls.selected_alpn_protocol())
    hello_alpn = tuple(protocol.encode() for protocol in offered)
    assert denial_of(check_intercept, ClientHello(HOST, hello_alpn), HOST) is None


@pytest.mark.parametrize("offered", [("h2",), ("h2", "grpc-exp"), ("imap",)])
def test_rule_37_a_client_that_speaks_http_2_alone_gets_a_clear_reason(offered):
    hello_alpn = tuple(protocol.encode() for protocol in offered)
    assert denial_of(check_intercept, ClientHello(HOST, hello_alpn), HOST) is Denial.HTTP2_ONLY
    authority = derive_authority(SEED, "box")
    server, client = authority.session(HOST), program(authority.ca_pem, HOST, alpn=offered)
    with pytest.raises(TlsError) as caught:
        client.shake(server)
    assert caught.value.refusal.denial is Denial.HTTP2_ONLY
    assert "no application protocol" in client.heard()


async def test_rule_37_an_upstream_is_offered_http_1_1_alone():
    found = read_client_hello(UpstreamTls([], system=False).session(HOST, 443).pending())
    assert ClientHello(HOST, (b"http/1.1",)) == found
    ca = TestCa()
    async with Upstream(ROUTES, tls=ca.server_context(HOST, alpn=("h2", "http/1.1"))) as upstream:
        session = await ask(UpstreamTls([ca.pem], system=False), upstream)
        assert session.alpn == "http/1.1"


async def test_rule_72_a_session_resumes_only_for_its_own_host_port_and_trust():
    ca = TestCa()
    other_name = "b.example.com"
    async with Upstream(ROUTES, tls=ca.server_context(HOST, other_name)) as upstream:
        trust = UpstreamTls([ca.pem], system=False)
        assert not (await ask(trust, upstream)).resumed
        assert (await ask(trust, upstream)).resumed
        assert not (await ask(trust, upstream, other_name)).resumed
        assert not (await ask(trust, upstream, port=8443)).resumed
        # Another sandbox, and other settings.
        assert not (await ask(UpstreamTls([ca.pem], system=False), upstream)).resumed
        assert not (await ask(UpstreamTls([ca.pem]), upstream)).resumed
        assert (await ask(trust, upstream)).resumed


async def test_rule_72_the_sessions_that_are_kept_have_a_bound():
    ca = TestCa()
    async with Upstream(ROUTES, tls=ca.server_context(HOST)) as upstream:
        trust = UpstreamTls([ca.pem], system=False)
        for port in range(1, MAX_SESSIONS + 2):
            await ask(trust, upstream, port=port)
        assert (await ask(trust, upstream, port=2)).resumed
        assert not (await ask(trust, upstream, port=1)).resumed


def test_rule_72_nothing_is_resumed_towards_a_sandbox():
    authority = derive_authority(SEED, "box")
    context = client_context(authority.ca_pem)
    for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
        context.maximum_version = version
        first, server = Program(context, HOST), authority.session(HOST)
        first.shake(server)
        first.incoming.write(server.send(b"x"))
        assert first.read() == b"x"
        again = Program(context, HOST, first.tls.session)
        again.shake(authority.session(HOST))
        assert not again.tls.session_reused


def test_rule_73_the_authority_of_a_sandbox_is_the_same_after_every_restart_and_update():
    """Containers hold the old one: these digests never change."""
    first, again = derive_authority(SEED, "box"), derive_authority(SEED, "box")
    assert first.ca_pem == again.ca_pem
    assert first.to_bytes() == again.to_bytes()
    assert (
        hashlib.sha256(first.to_bytes()).hexdigest()
        == "4a24fa60adc931a1535c6669796e6320d1eb2098043b3b01dc2e32ac971f9920"
    )


def test_rule_73_no_sandbox_trusts_anothers_authority():
    authorities = [
        derive_authority(SEED, "a"),
        derive_authority(SEED, "b"),
        derive_authority(SEED[::-1], "a"),
    ]
    assert len({authority.to_bytes()[:32] for authority in authorities}) == 3
    for authority in authorities:
        for other in authorities:
            client, server = program(other.ca_pem, HOST), authority.session(HOST)
            if authority is other:
                client.shake(server)
            else:
                with pytest.raises(TlsError, match="does not trust the sandbox's CA"):
                    client.shake(server)


def test_rule_73_an_authority_signs_servers_certificates_and_no_authority():
    certificate = derive_authority(SEED, "box").certificate
    assert certificate.subject.rfc4514_string() == "CN=clawbox sandbox box"
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (True, True, 0) == (basic.critical, basic.value.ca, basic.value.path_length)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (True, False) == (usage.key_cert_sign, usage.digital_signature)
    assert dt.timedelta(days=365 * 20) < certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)


@pytest.mark.parametrize("host", [HOST, "192.0.2.7", "2001:db8::1", "_dmarc.example", "a." * 90 + "example"])
def test_rule_73_leaves_name_one_host_and_pass_the_strictest_check(host):
    authority = derive_authority(SEED, "box")
    program(authority.ca_pem, host, strict=True).shake(authority.session(host))
    leaf = authority.leaf(host)
    names = list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    literal = not any(character.isalpha() for character in host.replace("db8", ""))
    assert [x509.IPAddress(ipaddress.ip_address(host)) if literal else x509.DNSName(host)] == names
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_rule_73_leaves_are_short_lived_back_dated_renewed_and_bounded_in_number():
    now = dt.datetime(2030, 1, 1, tzinfo=dt.UTC).timestamp()
    made = derive_authority(SEED, "box").to_bytes()
    key = ec.derive_private_key(int.from_bytes(made[:32], "big"), ec.SECP256R1())
    clock = [now]
    authority = Authority(key, x509.load_der_x509_certificate(made[32:]), lambda: clock[0])
    leaf = authority.leaf(HOST)
    assert dt.timedelta(days=30) >= leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert DAY <= dt.datetime.fromtimestamp(now, dt.UTC) - leaf.not_valid_before_utc
    assert leaf is authority.leaf(HOST)
    for later in range(0, 100 * 86400, 6 * 3600):
        clock[0] = now + later
        today = dt.datetime.fromtimestamp(clock[0], dt.UTC)
        leaf = authority.leaf(HOST)
        assert leaf.not_valid_before_utc + DAY <= today < leaf.not_valid_after_utc - DAY
    clock[0] = now  # somebody set the clock back
    assert authority.leaf(HOST).not_valid_before_utc < dt.datetime.fromtimestamp(now, dt.UTC)
    first = authority.leaf("first.example")
    for number in range(MAX_LEAVES):
        authority.leaf(f"h{number}.example")
    assert first is not authority.leaf("first.example")


def test_a_client_that_does_not_trust_the_authority_is_told_apart():
    authority = derive_authority(SEED, "box")
    client, server = program(TestCa().pem, HOST), authority.session(HOST)
    with pytest.raises(TlsError) as caught:
        client.shake(server)
    assert (Denial.CLIENT_TLS_FAILED, "it does not trust the sandbox's CA") == (
        caught.value.refusal.denial,
        caught.value.refusal.detail,
    )


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_rule_37_a_client_gets_tls_1_2_or_later_with_modern_ciphers():
    authority = derive_authority(SEED, "box")
    old, weak, modern = (client_context(authority.ca_pem) for _ in range(3))
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    weak.maximum_version = modern.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("ECDHE-ECDSA-AES128-SHA")
    for context, detail in ((old, "no TLS of version 1.2"), (weak, "the handshake failed")):
        with pytest.raises(TlsError, match=detail):
            Program(context, HOST).shake(authority.session(HOST))
    Program(modern, HOST).shake(authority.session(HOST))


def test_sessions_work_where_nothing_can_be_opened_and_no_memory_made_executable():
    assert _confined(
        """
        authority, stranger = derive_authority(bytes(range(32)), "box"), derive_authority(bytes(32), "box")
        trust = UpstreamTls([authority.ca_pem])
        for number in range(20):
            client, server = trust.session(f"h{number}.example", 443), authority.session(f"h{number}.example")
            shake(client, server)
        print(server.alpn, len(server.receive(client.send(bytes(1 << 20)))))
        try:
            shake(trust.session("a.example", 443), stranger.session("a.example"))
        except TlsError as error:
            print(error.refusal.detail)
        try:
            open("/proc/self/status")
        except PermissionError:
            print("confined")
        """
    ) == ["http/1.1 1048576", "its certificate is from an authority that is not trusted here", "confined"]


def _confined(code: str, environment: dict[str, str] | None = None) -> list[str]:
    """Lines that ``code`` prints in a child forked after preload(), under the filter of those that compute.

    It stands for a sidecar, whose filter differs by calls on sockets alone.
    """
    program = """
import os, platform, sys, tempfile
from clawbox.children import filters, linux, seccomp
from clawbox.egress import tls
from clawbox.egress.tls.authority import derive_authority
from clawbox.egress.tls.session import ServerSession, TlsError
from clawbox.egress.tls.upstream import UpstreamTls
from tests.unit.tls.machines import shake

tls.preload()
child = os.fork()
if child:
    sys.exit(os.waitpid(child, 0)[1])
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
rules = filters.compute_only(os.getpid())
seccomp.install(seccomp.build(seccomp.ARCHITECTURES[platform.machine()], rules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(code) + "\nsys.stdout.flush(); os._exit(0)"],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
