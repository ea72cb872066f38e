"""Credentials: the file, what may be in it, where they go, and that no error or repr shows one."""

import base64
import copy
import json
import os
import pickle
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from clawbox.egress.attach import NotAttachableError, attach, strip_client_auth
from clawbox.egress.credentials import (
    BasicAttachment,
    Budget,
    Credential,
    HeaderAttachment,
    InvalidCredentialError,
    QueryAttachment,
    Secret,
)
from clawbox.egress.leaks import shape_patterns
from clawbox.egress.target import parse_url
from clawbox.egress.vault import Fault, MasterKey, Vault, VaultError, read_master_key

HEX_KEY = bytes(range(32)).hex()
KEY = MasterKey(HEX_KEY)
VALUE = "s3cret-VALUE-that-nobody-may-see"
RUST_FILE = Path(__file__).parents[2] / "data" / "compat" / "credentials.enc.b64"

PLAIN = Credential("plain", Secret(VALUE), ("api.example.com",))
ALL = {
    "plain": PLAIN,
    "header": Credential("header", Secret(VALUE), ("a.test",), HeaderAttachment("X-Key", "")),
    "two hosts": Credential("two", Secret(VALUE), ("a.test", "b.test")),
    "basic": Credential("basic", Secret(VALUE), ("a.test",), BasicAttachment("git")),
    "query": Credential("query", Secret(VALUE), ("a.test",), QueryAttachment("api_token")),
    "narrow": Credential(
        "narrow",
        Secret(VALUE),
        ("a.test",),
        ports=(443, 8443),
        path_prefixes=("/repos/me",),
        methods=("GET",),
        plain_http=True,
        budget=Budget(10, None, 60),
        env="A_KEY",
    ),
    "env": Credential("env", Secret(VALUE), ("a.test",), env="A_KEY"),
    "short": Credential("short", Secret("1234567"), ("a.test",), short=True),
}
WIDER_THAN_RUST = {"two hosts", "basic", "query", "narrow"}
each = pytest.mark.parametrize("kind", ALL)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "credentials.enc"


@pytest.fixture
def vault(path):
    return Vault(path, KEY)


def rust_reads(path, key=HEX_KEY):
    """What the Rust clawbox 0.1 makes of a file: five texts of each entry, the rest ignored."""
    data = path.read_bytes()
    entries = json.loads(AESGCM(bytes.fromhex(key)).decrypt(data[:12], data[12:], None))
    keys = ("name", "value", "domain", "header_name", "header_prefix")
    assert all(isinstance(entry[key], str) for entry in entries for key in keys)
    return [{key: entry[key] for key in keys} for entry in entries]


def rust_writes(path, entries):
    nonce = os.urandom(12)
    plain = json.dumps(entries).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(nonce + AESGCM(bytes(range(32))).encrypt(nonce, plain, None))
    path.chmod(0o600)


def rust_entry(**fields):
    entry = {"name": "n", "value": VALUE, "domain": "a.test", "header_name": "H", "header_prefix": ""}
    return entry | fields


# The file


def test_rule_42_the_file_of_the_rust_clawbox_is_read(path):
    path.parent.mkdir()
    path.write_bytes(base64.b64decode(RUST_FILE.read_text()))
    path.chmod(0o600)
    contents = Vault(path, KEY).load()
    assert contents.broken == {}
    github, brave = contents.credentials
    assert github == Credential(
        "github_token", Secret("ghp_EXAMPLEexampleEXAMPLEexample000001"), ("api.github.com",)
    )
    assert brave == Credential(
        "brave_search",
        Secret("brave-EXAMPLE-0002 with space and ünï"),
        ("api.search.brave.com",),
        HeaderAttachment("X-Subscription-Token", ""),
    )


def test_rule_42_the_rust_clawbox_reads_what_was_added_to_its_file(path):
    path.parent.mkdir()
    path.write_bytes(base64.b64decode(RUST_FILE.read_text()))
    path.chmod(0o600)
    before = rust_reads(path)
    Vault(path, KEY).put(PLAIN)
    assert rust_reads(path) == [
        *before,
        {
            "name": "plain",
            "value": VALUE,
            "domain": "api.example.com",
            "header_name": "Authorization",
            "header_prefix": "Bearer ",
        },
    ]


@each
def test_rule_42_what_is_stored_comes_back(vault, kind):
    credential = ALL[kind]
    assert not vault.put(PLAIN)
    assert vault.put(credential) == (credential.name == "plain")
    assert vault.load().get(credential.name) == credential
    assert vault.load().broken == {}


@each
def test_rule_38_the_rust_clawbox_never_sends_what_it_would_send_too_far(vault, path, kind):
    vault.put(ALL[kind])
    entry = rust_reads(path)[0]
    assert (entry["domain"] == "") == (kind in WIDER_THAN_RUST)


def test_rule_38_rules_survive_what_the_rust_clawbox_does_to_the_file(vault, path):
    for credential in ALL.values():
        vault.put(credential)
    entries = [entry for entry in rust_reads(path) if entry["name"] != "header"]
    rust_writes(path, [*entries, rust_entry(name="other")])
    contents = vault.load()
    assert contents.broken == {}
    assert {one.name for one in contents.credentials} == {*(one.name for one in ALL.values()), "other"} - {
        "header"
    }
    assert all(contents.get(one.name) == one for one in ALL.values() if one.name != "header")


def test_rule_38_what_the_rust_clawbox_replaced_is_as_it_said(vault, path):
    vault.put(ALL["narrow"])
    rules = [entry for entry in rust_reads(path) if entry["name"] == "clawbox:rules"]
    rust_writes(path, [rust_entry(name="narrow"), *rules])
    assert vault.load().get("narrow") == Credential(
        "narrow", Secret(VALUE), ("a.test",), HeaderAttachment("H", ""), env="A_KEY"
    )


@pytest.mark.parametrize("rules", ["", "not json", "[]", '{"narrow": 1}', '{"narrow": {"hosts": 5}}'])
def test_rule_42_rules_that_cannot_be_read_make_a_credential_unusable_not_wider(vault, path, rules):
    vault.put(ALL["narrow"])
    entries = [
        entry | {"value": rules} if entry["name"] == "clawbox:rules" else entry for entry in rust_reads(path)
    ]
    rust_writes(path, entries)
    contents = vault.load()
    assert contents.credentials == ()
    assert list(contents.broken) == ["narrow"]


def test_rule_42_rules_of_a_later_version_are_not_ignored(vault, path):
    vault.put(ALL["narrow"])
    entries = rust_reads(path)
    rules = json.loads(entries[-1]["value"])
    rules["narrow"]["only_on_mondays"] = True
    rust_writes(path, [entries[0], entries[1] | {"value": json.dumps(rules)}])
    assert list(vault.load().broken) == ["narrow"]


def test_rule_42_without_a_file_there_are_no_credentials(vault, path):
    assert vault.load().credentials == ()
    assert not vault.remove("x")
    assert not path.exists()


def test_a_removed_credential_is_gone_with_its_rules(vault, path):
    vault.put(ALL["narrow"])
    vault.put(PLAIN)
    assert vault.remove("narrow")
    assert [entry["name"] for entry in rust_reads(path)] == ["plain"]
    vault.remove("clawbox:rules")
    vault.remove("plain")
    assert rust_reads(path) == []


def test_the_file_is_private_whatever_the_umask(vault, path):
    old = os.umask(0)
    try:
        vault.put(PLAIN)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(one.name for one in path.parent.iterdir()) == ["credentials.enc", "credentials.enc.lock"]


def test_no_nonce_is_used_twice(vault, path):
    nonces = set()
    for _ in range(5):
        vault.put(PLAIN)
        nonces.add(path.read_bytes()[:12])
    assert len(nonces) == 5


def test_writers_at_the_same_time_lose_nothing(path):
    def write(number):
        Vault(path, KEY).put(Credential(f"c{number}", Secret(VALUE), ("a.test",)))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.name for one in Vault(path, KEY).load().credentials} == {f"c{number}" for number in range(8)}


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def as_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def as_folder(path):
    path.unlink()
    path.mkdir()


BAD_FILES = {
    "damaged": (damage, Fault.OTHER_KEY),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:20]), Fault.OTHER_KEY),
    "empty": (lambda path: path.write_bytes(b""), Fault.OTHER_KEY),
    "mode 0644": (lambda path: path.chmod(0o644), Fault.NOT_PRIVATE),
    "mode 0620": (lambda path: path.chmod(0o620), Fault.NOT_PRIVATE),
    "a link": (as_link, Fault.NOT_A_FILE),
    "a folder": (as_folder, Fault.NOT_A_FILE),
    "not a list": (lambda path: rust_writes(path, {"value": VALUE}), Fault.MALFORMED),
    "no texts": (lambda path: rust_writes(path, [rust_entry(value=5)]), Fault.MALFORMED),
    "a text missing": (lambda path: rust_writes(path, [{"name": VALUE}]), Fault.MALFORMED),
}


@pytest.mark.parametrize("how", BAD_FILES)
def test_rule_42_a_bad_file_is_an_error_that_says_what_is_wrong_and_shows_no_value(vault, path, how):
    spoil, fault = BAD_FILES[how]
    vault.put(PLAIN)
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    for use in (vault.load, lambda: vault.put(PLAIN), lambda: vault.remove("plain")):
        with pytest.raises(VaultError) as caught:
            use()
        assert caught.value.fault is fault
        assert str(path) in str(caught.value)
        shown = repr(caught.getrepr(showlocals=False)) + str(caught.value) + repr(caught.value.metadata)
        assert VALUE not in shown
        assert VALUE not in repr(caught.value.__cause__)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_rule_42_a_file_of_another_key_is_an_error(vault, path):
    vault.put(PLAIN)
    with pytest.raises(VaultError) as caught:
        Vault(path, MasterKey("ff" * 32)).load()
    assert caught.value.fault is Fault.OTHER_KEY


def test_rule_42_a_file_of_another_user_is_an_error(vault, monkeypatch):
    vault.put(PLAIN)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(VaultError) as caught:
        vault.load()
    assert caught.value.fault is Fault.WRONG_OWNER


def test_rule_42_one_bad_entry_leaves_the_others_usable(vault, path):
    bad = {
        "crlf": rust_entry(name="crlf", value=VALUE + "\r\nX-Evil: 1"),
        "lf": rust_entry(name="lf", value=f"{VALUE}\nsecond"),
        "empty": rust_entry(name="empty", value=""),
        "short": rust_entry(name="short", value="1234567"),
        "prefix": rust_entry(name="prefix", header_prefix="Bearer\r\nX: "),
        "host": rust_entry(name="host", domain="*.example.com"),
        "no host": rust_entry(name="nohost", domain=""),
        "header": rust_entry(name="header", header_name="Host"),
        "framing": rust_entry(name="framing", header_name="Transfer_Encoding"),
        "name": rust_entry(name="na me"),
    }
    rust_writes(path, [rust_entry(name="good"), *bad.values()])
    contents = vault.load()
    assert [one.name for one in contents.credentials] == ["good"]
    assert set(contents.broken) == {entry["name"] for entry in bad.values()}
    assert VALUE not in repr(contents)
    # And they are still there after a change.
    vault.put(PLAIN)
    assert len(rust_reads(path)) == len(bad) + 2


# The key


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32, "00 " * 32, HEX_KEY[:-1] + "g"])
def test_rule_42_a_key_that_is_none_is_refused_and_not_shown(text):
    with pytest.raises(VaultError) as caught:
        MasterKey(text)
    assert caught.value.fault is Fault.BAD_KEY
    assert not text.strip() or text not in str(caught.value)


def test_rule_42_the_key_comes_from_a_private_file_or_the_environment(tmp_path, vault):
    vault.put(PLAIN)
    file = tmp_path / "key"
    file.write_text(HEX_KEY + "\n")
    file.chmod(0o600)
    for key in (
        read_master_key({"CLAWBOX_MASTER_KEY": "ff" * 32}, file),
        read_master_key({"CLAWBOX_MASTER_KEY": HEX_KEY.upper()}, None),
    ):
        assert Vault(vault.path, key).load().credentials == (PLAIN,)
        assert HEX_KEY not in repr(key)
    file.chmod(0o640)
    faults = []
    for environ, path in (({}, file), ({}, tmp_path / "none"), ({}, None)):
        with pytest.raises(VaultError) as caught:
            read_master_key(environ, path)
        faults.append(caught.value.fault)
    assert faults == [Fault.NOT_PRIVATE, Fault.KEY_FILE, Fault.NO_KEY]


# What a credential may be


def test_rule_40_line_ends_and_control_characters_are_refused():
    for text in (
        VALUE + "\r",
        VALUE + "\n",
        "a\r\nb" + VALUE,
        VALUE + "\0",
        "x\x1b" + VALUE,
        "x\x7f" + VALUE,
    ):
        with pytest.raises(InvalidCredentialError) as caught:
            Credential("x", Secret(text), ("a.test",))
        assert VALUE not in str(caught.value)
    for attachment in (
        HeaderAttachment("X\r\nY"),
        HeaderAttachment("X", "Bearer\n"),
        BasicAttachment("a\nb"),
        BasicAttachment("a:b"),
        QueryAttachment("a b"),
    ):
        with pytest.raises(InvalidCredentialError):
            Credential("x", Secret(VALUE), ("a.test",), attachment)


def test_rule_68_secrets_under_16_characters_are_refused_unless_insisted_on():
    for text in ("1234567", "x" * 15):
        with pytest.raises(InvalidCredentialError, match="shorter than 16"):
            Credential("x", Secret(text), ("a.test",))
        assert Credential("x", Secret(text), ("a.test",), short=True).value.reveal() == text
    Credential("x", Secret("x" * 16), ("a.test",))


@pytest.mark.parametrize(
    "host", ["*", "*.a.test", "A.test", "a.test.", "a.test:443", "https://a.test", "ä.test", ""]
)
def test_rule_38_a_host_is_exact_and_canonical(host):
    with pytest.raises(InvalidCredentialError):
        Credential("x", Secret(VALUE), (host,))


def test_a_secret_shows_itself_only_when_asked():
    secret = Secret(VALUE)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>50}", f"{secret!s}"]
    shown += [
        repr(PLAIN),
        str(ALL["basic"]),
        repr([secret]),
        repr(attach(ALL["query"], "GET", parse_url("https://a.test/"), [])),
    ]
    assert not any(VALUE in text for text in shown)
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            take(secret)
    with pytest.raises(TypeError):
        json.dumps({"a": secret})
    assert secret.reveal() == VALUE


def test_a_placeholder_is_harmless():
    assert VALUE not in PLAIN.placeholder
    assert shape_patterns().find(PLAIN.placeholder.encode()) == []


# Attaching


def attached(credential, url, headers=(), method="GET"):
    return attach(credential, method, parse_url(url), headers)


def test_rule_38_each_way_of_attaching():
    assert attached(PLAIN, "https://api.example.com/x").headers == (
        (b"Authorization", f"Bearer {VALUE}".encode()),
    )
    basic = attached(ALL["basic"], "https://a.test/x").headers
    assert basic == ((b"Authorization", b"Basic " + base64.b64encode(f"git:{VALUE}".encode())),)
    query = attached(ALL["query"], "https://a.test/x?a=1")
    assert (query.target.request_target, query.headers) == (f"/x?a=1&api_token={VALUE}", ())
    assert attached(ALL["query"], "https://a.test/x").target.request_target == f"/x?api_token={VALUE}"
    odd = Credential("odd", Secret("a&b=c d%ü+0123456789"), ("a.test",), QueryAttachment("k"))
    assert attached(odd, "https://a.test/").target.query == "k=a%26b%3Dc%20d%25%C3%BC%2B0123456789"


@pytest.mark.parametrize(
    ("kind", "method", "url"),
    [
        ("plain", "GET", "http://api.example.com/"),
        ("plain", "GET", "http://api.example.com:443/"),
        ("plain", "GET", "https://api.example.com:8443/"),
        ("plain", "GET", "https://sub.api.example.com/"),
        ("plain", "GET", "https://example.com/"),
        ("plain", "GET", "https://evil-api.example.com/"),
        ("plain", "GET", "https://api.example.com.evil.test/"),
        ("narrow", "POST", "https://a.test/repos/me"),
        ("narrow", "GET", "https://a.test/repos/me-too"),
        ("narrow", "GET", "https://a.test/repos"),
        ("narrow", "GET", "https://a.test/"),
        ("narrow", "GET", "https://a.test:444/repos/me"),
    ],
)
def test_rule_38_never_to_another_scheme_host_port_path_or_method(kind, method, url):
    with pytest.raises(NotAttachableError) as caught:
        attached(ALL[kind], url, method=method)
    assert VALUE not in str(caught.value)


def test_rule_38_plain_http_only_where_the_operator_said_so():
    assert attached(ALL["narrow"], "http://a.test:8443/repos/me").headers


@pytest.mark.parametrize(
    "path",
    ["/repos/me/../you", "/repos/me/%2e%2e/you", "/repos/me//../../you", "/repos/x/../me/..", "/repos/./"],
)
def test_rule_41_path_rules_see_the_canonical_path(path):
    from clawbox.egress.refusal import RefusedError

    with pytest.raises((NotAttachableError, RefusedError)):
        attached(ALL["narrow"], f"https://a.test{path}")
    assert attached(ALL["narrow"], "https://a.test/x/../repos/me").target.path == "/repos/me"


@pytest.mark.parametrize("name", [b"authorization", b"AUTHORIZATION", b"Authorization"])
def test_rule_39_the_guests_own_header_is_replaced(name):
    headers = [(name, b"Bearer mine"), (b"accept", b"*/*"), (name, b"Basic again")]
    assert attached(PLAIN, "https://api.example.com/", headers).headers == (
        (b"accept", b"*/*"),
        (b"Authorization", f"Bearer {VALUE}".encode()),
    )


@pytest.mark.parametrize("name", [b"X-Key", b"x_key", b"X-KEY", b"X_Key"])
def test_rule_39_twins_with_underscores_are_replaced(name):
    got = attached(ALL["header"], "https://a.test/", [(name, b"mine"), (b"x-keys", b"kept")]).headers
    assert got == ((b"x-keys", b"kept"), (b"X-Key", VALUE.encode()))


@pytest.mark.parametrize(
    "name",
    [
        "Authorization", "Cookie", "Cookie2", "X-Api-Key", "x_api_key", "ApiKey", "Api-Key", "X-Auth-Token",
        "X-Access-Token", "Private-Token", "JOB-TOKEN", "X-Vault-Token", "X-Goog-Api-Key",
        "X-Amz-Security-Token",
        "X-Shopify-Access-Token", "X-Subscription-Token", "Ocp-Apim-Subscription-Key", "DD-API-KEY",
        "DD-APPLICATION-KEY", "X-RapidAPI-Key", "X-Authorization", "X-Session-Token", "X-Functions-Key",
        "X-Gitlab-Token", "X-Figma-Token",
    ],
)  # fmt: skip
def test_rule_69_client_authentication_is_removed(name):
    headers = [(b"Accept", b"*/*"), (name.encode(), b"theirs")]
    stripped = strip_client_auth(ALL["header"], parse_url("https://a.test/"), headers)
    assert stripped.headers == ((b"Accept", b"*/*"),)
    assert stripped.removed == (name,)


def test_rule_69_other_headers_stay():
    names = [
        "Accept", "Idempotency-Key", "If-None-Match", "Range", "User-Agent", "Content-Type", "X-Request-Id",
        "X-GitHub-Api-Version", "Access-Control-Request-Headers", "X-CSRF-Token", "Anthropic-Version",
    ]  # fmt: skip
    headers = tuple((name.encode(), b"1") for name in names)
    assert strip_client_auth(PLAIN, parse_url("https://a.test/"), headers).headers == headers


@pytest.mark.parametrize(
    "part",
    [
        "access_token=x", "api_key=x", "apikey=x", "API-KEY=x", "key=x", "token=x", "auth=x", "%61pi_key=x",
        "%2561ccess_token=x", "access%5Ftoken=x", "access.token=x", "api_key[]=x", "api_key",
        "client_secret=x",
        "X-Amz-Signature=x", "X-Amz-Credential=x", "sig=x", "AWSAccessKeyId=x", "+api_key=x", "oauth_token=x",
    ],
)  # fmt: skip
def test_rule_69_parameters_that_authenticate_are_removed(part):
    for query in (f"a=1&{part}&b=2", f"a=1;{part};b=2", f"a=1&{part};b=2"):
        stripped = strip_client_auth(PLAIN, parse_url(f"https://a.test/x?{query}"), [])
        assert stripped.target.query == "a=1&b=2"
        assert stripped.removed


def test_rule_69_other_queries_stay_as_they_came():
    for query in ("q=a;b&sort=key&per_page=100", "pageToken=x&tokens=5&keyword=y", "", "a=%2B&b=;;&&"):
        target = parse_url(f"https://a.test/x?{query}")
        assert strip_client_auth(PLAIN, target, []).target.query == target.query
    bare = parse_url("https://a.test/x")
    assert strip_client_auth(PLAIN, bare, []).target.query is None


@pytest.mark.parametrize(
    "part", ["api_token=mine", "api-token=mine", "API_TOKEN=mine", "%61pi_token=mine", "api_token"]
)
def test_rule_70_guest_copies_of_an_injected_parameter_are_removed(part):
    got = attached(ALL["query"], f"https://a.test/?{part}&a=1&{part}")
    assert got.target.query == f"a=1&api_token={VALUE}"


def test_rule_70_however_the_parameter_is_called():
    credential = Credential("x", Secret(VALUE), ("a.test",), QueryAttachment("appid"))
    target = parse_url("https://a.test/?appid=mine&APPID=x&a=1&%61ppid=y&appid[]=z&appids=2")
    assert strip_client_auth(credential, target, []).target.query == "a=1&appids=2"
    assert strip_client_auth(PLAIN, target, []).target.query == target.query


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=16, max_size=80))
def test_rule_40_a_secret_never_becomes_more_than_one_header_or_parameter(text):
    try:
        made = [
            Credential("x", Secret(text), ("a.test",), how)
            for how in (HeaderAttachment(), BasicAttachment("u"), QueryAttachment("k"))
        ]
    except InvalidCredentialError:
        return
    header, basic, query = (attached(one, "https://a.test/?a=1") for one in made)
    for value in (header.headers[0][1], basic.headers[0][1]):
        assert not {*b"\r\n\0"} & {*value}
    assert (query.target.query or "").isascii()
    assert (query.target.query or "").count("&") == 1
