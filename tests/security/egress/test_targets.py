"""Properties 1 to 7, 26, 41, 72: one strict parse of where a request goes."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from clawbox.egress.refusal import Denial, RefusedError
from clawbox.egress.target import (
    Form,
    LocalTarget,
    Target,
    canonical_path,
    check_host,
    parse_request_target,
    parse_tunnel_target,
    parse_url,
)
from clawbox.network_rules import canonical_host, path_within
from tests.security.egress.messages import CORPUS

TUNNEL = Target("https", "example.com", 443, "", None, Form.CONNECT)


def refusal_of(function, *arguments, **keywords):
    with pytest.raises(RefusedError) as caught:
        function(*arguments, **keywords)
    return caught.value.refusal.denial


@pytest.mark.parametrize(
    ("method", "text", "expected"),
    [
        ("GET", "http://a.example/x?y=1", Target("http", "a.example", 80, "/x", "y=1", Form.ABSOLUTE)),
        ("GET", "https://a.example", Target("https", "a.example", 443, "/", None, Form.ABSOLUTE)),
        ("GET", "https://a.example?q", Target("https", "a.example", 443, "/", "q", Form.ABSOLUTE)),
        ("GET", "https://a.example/?", Target("https", "a.example", 443, "/", "", Form.ABSOLUTE)),
        ("GET", "http://a.example:443/", Target("http", "a.example", 443, "/", None, Form.ABSOLUTE)),
        ("GET", "http://192.0.2.7:8080/", Target("http", "192.0.2.7", 8080, "/", None, Form.ABSOLUTE)),
        ("GET", "http://[2001:DB8:0::1]/", Target("http", "2001:db8::1", 80, "/", None, Form.ABSOLUTE)),
        ("GET", "/https://a.example/b?c", Target("https", "a.example", 443, "/b", "c", Form.LOCAL)),
        (
            "GET",
            "http://localhost/https://a.example/b?c=//",
            Target("https", "a.example", 443, "/b", "c=//", Form.LOCAL),
        ),
        ("GET", "http://localhost/x", Target("http", "localhost", 80, "/x", None, Form.ABSOLUTE)),
        ("POST", "/proxy", LocalTarget("/proxy")),
        ("GET", "/proxy?url=https://a.example", LocalTarget("/proxy")),
        ("CONNECT", "a.example:443", Target("https", "a.example", 443, "", None, Form.CONNECT)),
        ("CONNECT", "[2001:db8::1]:8443", Target("https", "2001:db8::1", 8443, "", None, Form.CONNECT)),
    ],
)
def test_rule_1_one_parse_gives_scheme_host_port_and_path(method, text, expected):
    assert expected == parse_request_target(method, text)


def test_rule_1_what_is_sent_is_written_from_the_parse():
    target = parse_url("HTTPS://API.Example.COM.:8443/a/./b/../%7euser?Q=%2e%2e")
    assert (target.authority, target.request_target) == ("api.example.com:8443", "/a/~user?Q=%2e%2e")
    assert parse_url("http://[2001:db8::1]/").authority == "[2001:db8::1]"
    assert "Q=" not in target.url


def test_rule_1_a_target_cannot_be_changed_after_it_was_decided_on():
    with pytest.raises(AttributeError):
        parse_url("https://a.example/").host = "b.example"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("url", "denial"),
    [
        ("https://user@a.example/", Denial.USERINFO),
        ("https://user:pw@a.example/", Denial.USERINFO),
        ("https://@a.example/", Denial.USERINFO),
        ("https://allowed.example@evil.example/", Denial.USERINFO),
        ("https://allowed.example:443@evil.example:443/", Denial.USERINFO),
        ("https://evil.example\\@allowed.example/", Denial.MALFORMED_TARGET),
        ("https:\\\\evil.example/", Denial.MALFORMED_TARGET),
        ("https://a.example/\\..\\b", Denial.MALFORMED_TARGET),
        ("https://a.example/?\\", Denial.MALFORMED_TARGET),
        ("https://a.example#b", Denial.MALFORMED_TARGET),
        ("https://evil.example#@allowed.example/", Denial.MALFORMED_TARGET),
        ("https://a.example/#", Denial.MALFORMED_TARGET),
        *((f"https://a.exa{chr(code)}mple/", Denial.MALFORMED_TARGET) for code in (*range(0x21), 0x7F)),
        *((f"https://a.example/{chr(code)}", Denial.MALFORMED_TARGET) for code in (*range(0x21), 0x7F)),
        *((f"https://a.example/?{chr(code)}", Denial.MALFORMED_TARGET) for code in (*range(0x21), 0x7F)),
        ("https://a%2eexample/", Denial.BAD_HOST),
        ("https://allowed.example%2f.evil.example/", Denial.BAD_HOST),
        ("https://a.example%00/", Denial.BAD_HOST),
        ("https://bücher.example/", Denial.BAD_HOST),
        ("https://ａ.example/", Denial.BAD_HOST),
        ("https://a。example/", Denial.BAD_HOST),
        ("https://\u212a.example/", Denial.BAD_HOST),
        ("https:///path", Denial.BAD_HOST),
        ("https://:443/", Denial.BAD_HOST),
        ("https://a..example/", Denial.BAD_HOST),
        ("https://a.example../", Denial.BAD_HOST),
        ("https://.a.example/", Denial.BAD_HOST),
        ("https://*.a.example/", Denial.BAD_HOST),
        ("https://a.example,b.example/", Denial.BAD_HOST),
        ("https://a.example;b/", Denial.BAD_HOST),
        ("https://" + "a." * 130 + "example/", Denial.BAD_HOST),
    ],
)
def test_rule_2_what_hides_the_host_is_refused(url, denial):
    assert denial is refusal_of(parse_url, url)
    assert denial is refusal_of(parse_request_target, "GET", url)


@pytest.mark.parametrize(
    "host",
    [
        "[a.example]",
        "[192.0.2.1]",
        "[127.0.0.1]",
        "[]",
        "[::1",
        "::1]",
        "::1",
        "[::1]x",
        "[::1].example",
        "[v1.x]",
        "[::ffff:127.0.0.1]x",
        "[::ffff:127.0.0.1.]",
        "[::1.]",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[1:2:3:4:5:6:7:8:9]",
        "[[::1]]",
        "x[::1]",
    ],
)
def test_rule_3_brackets_hold_an_ipv6_literal_or_nothing_is_sent(host):
    assert Denial.BAD_HOST is refusal_of(parse_url, f"http://{host}/")
    assert Denial.BAD_HOST is refusal_of(parse_request_target, "CONNECT", f"{host}:443")


@pytest.mark.parametrize("host", ["example.com", "EXAMPLE.com", "example.com.", "ExAmPlE.CoM."])
def test_rule_4_case_and_the_final_dot_do_not_matter(host):
    assert parse_url(f"https://{host}/").host == "example.com"
    check_host([host], parse_url("https://example.com/"))


@pytest.mark.parametrize(
    "port",
    [
        "0",
        "00443",
        "0443",
        "65536",
        "99999",
        "443443",
        "-1",
        "+443",
        "0x1bb",
        "",
        " 443",
        "44 3",
        "４４３",
        "٤٤٣",
        "a",
    ],
)
def test_rule_6_a_port_is_a_decimal_number_in_range(port):
    refused = refusal_of(parse_url, f"https://a.example:{port}/")
    assert refused in {Denial.BAD_PORT, Denial.MALFORMED_TARGET}
    refused = refusal_of(parse_request_target, "CONNECT", f"a.example:{port}")
    assert refused in {Denial.BAD_PORT, Denial.MALFORMED_TARGET}


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/",
        "file:///etc/passwd",
        "ws://a.example/",
        "gopher://a.example/",
        "httpss://a.example/",
    ],
)
def test_rule_7_only_http_and_https(url):
    assert Denial.SCHEME is refusal_of(parse_url, url)


@pytest.mark.parametrize(
    "text",
    ["http:a.example", "http:/a.example", "//a.example/", "a.example/x", "*", "javascript:alert(1)", ":", ""],
)
def test_rule_7_what_is_no_absolute_url_is_refused(text):
    assert Denial.MALFORMED_TARGET is refusal_of(parse_url, text)


@pytest.mark.parametrize(
    ("text", "denial"),
    [
        ("a.example", Denial.BAD_PORT),
        ("a.example:", Denial.BAD_PORT),
        ("a.example:443/", Denial.BAD_PORT),
        ("https://a.example:443", Denial.BAD_HOST),
        ("https://a.example", Denial.BAD_PORT),
        ("/https://a.example/", Denial.BAD_HOST),
        ("user@a.example:443", Denial.USERINFO),
        ("a.example:443:443", Denial.BAD_HOST),
        (":443", Denial.BAD_HOST),
    ],
)
def test_rule_7_connect_takes_host_and_port_alone(text, denial):
    assert denial is refusal_of(parse_request_target, "CONNECT", text)


def test_rule_7_a_target_longer_than_the_limit_is_refused():
    assert Denial.MALFORMED_TARGET is refusal_of(parse_url, "https://a.example/" + "a" * (16 << 10))


@pytest.mark.parametrize(
    "spelling",
    [
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.1",
        "127.0.1",
        "127.0.0.01",
        "127.0.0.0x1",
        "0x7F.1",
        "0",
        "00.0",
        "0x0",
        "10.0.513",
        "192.168.257",
        "0xa9fea9fe",
        "169.254.43518",
        "0251.0376.0251.0376",
        "127.0.0.1.5",
        "4294967296",
        "1.2.3.256",
    ],
)
def test_rule_10_what_the_c_library_reads_as_an_address_is_no_host(spelling):
    assert Denial.BAD_HOST is refusal_of(parse_url, f"http://{spelling}/")
    assert Denial.BAD_HOST is refusal_of(parse_url, f"http://{spelling}./")
    assert Denial.BAD_HOST is refusal_of(parse_request_target, "CONNECT", f"{spelling}:443")


@settings(deadline=None)
@given(st.from_regex(r"[0-9a-fxA-FX.]{1,24}", fullmatch=True))
@example("127.1")
@example("0x7f.1")
@example("1.2.3.4")
def test_rule_10_a_host_the_c_library_reads_as_an_address_is_that_very_address(text):
    try:
        read = socket.inet_ntoa(socket.inet_aton(text))
    except OSError:
        return
    try:
        host = parse_url(f"http://{text}/").host
    except RefusedError:
        return
    assert host == read


@pytest.mark.parametrize(
    ("values", "denial"),
    [
        ([], Denial.HOST_MISSING),
        (["a.example", "a.example"], Denial.HOST_REPEATED),
        (["b.example"], Denial.HOST_DIFFERS),
        (["a.example:80"], Denial.HOST_DIFFERS),
        (["a.example.evil.example"], Denial.HOST_DIFFERS),
        (["a.example, b.example"], Denial.BAD_HOST),
        ([""], Denial.BAD_HOST),
        (["user@a.example"], Denial.USERINFO),
        (["https://a.example"], Denial.BAD_PORT),
        (["a.example:"], Denial.BAD_PORT),
        (["a.example:0"], Denial.BAD_PORT),
    ],
)
def test_rule_26_the_host_header_says_what_the_target_says(values, denial):
    target = parse_request_target("GET", "https://a.example/")
    assert isinstance(target, Target)
    assert denial is refusal_of(check_host, values, target)
    check_host(["A.example:443"], target)
    check_host(["A.example."], target)


def test_rule_26_connect_may_leave_out_the_port_and_on_http_1_0_the_header():
    tunnel = parse_request_target("CONNECT", "a.example:8443")
    for host in ("a.example:8443", "a.example"):
        check_host([host], tunnel)
    check_host([], tunnel, version=0)
    assert Denial.HOST_MISSING is refusal_of(check_host, [], tunnel, version=1)
    assert Denial.HOST_DIFFERS is refusal_of(check_host, ["a.example:443"], tunnel)
    assert Denial.HOST_DIFFERS is refusal_of(check_host, ["b.example"], tunnel, version=0)
    assert Denial.HOST_MISSING is refusal_of(check_host, [], parse_url("http://a.example/"), version=0)


def test_rule_26_requests_to_the_sidecar_itself_name_it():
    for text in ("/proxy", "/https://a.example/"):
        target = parse_request_target("GET", text)
        check_host(["localhost"], target)
        check_host(["127.0.0.1:3128"], target)
        assert Denial.HOST_DIFFERS is refusal_of(check_host, ["a.example"], target)
        assert Denial.HOST_MISSING is refusal_of(check_host, [], target)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "/"),
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/", "/a/"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/..", "/"),
        ("/a/b/.", "/a/b/"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/%61%2D%7e", "/a-~"),
        ("/a%2fb", "/a%2Fb"),
        ("/@scope%2fname", "/@scope%2Fname"),
        ("/a;v=1/b", "/a;v=1/b"),
        ("/a//b", "/a//b"),
        ("//evil.example/x", "//evil.example/x"),
        ("/https://b.example/", "/https://b.example/"),
        ("/...", "/..."),
        ("/..a/.b", "/..a/.b"),
        ("/a|b[c]", "/a%7Cb%5Bc%5D"),
        ("/100%25", "/100%25"),
        ("/a%252Fb", "/a%252Fb"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/café", "/caf%C3%A9"),
        ("/a b".replace(" ", "%20"), "/a%20b"),
    ],
)
def test_rule_41_the_canonical_path(path, expected):
    assert expected == canonical_path(path)
    assert expected == canonical_path(expected)


@pytest.mark.parametrize(
    "path",
    [
        "/..",
        "/../a",
        "/a/../../b",
        "/%2e%2e/a",
        "/a/%2e%2e%2fb",
        "/a/..%2fb",
        "/a/..%2Fb",
        "/a/..%5cb",
        "/a/%5c..%5cb",
        "/a/%252e%252e/b",
        "/a/%25252e%25252e/b",
        "/a/%2525252525252e/b",
        "/a/..;/b",
        "/a/..;x=y/b",
        "/a/.;/b",
        "/a/..%3b/b",
        "/a/%2e%2e;/b",
        "/a/;x/../b",
        "/a;x/../b",
        "/a%3Bx/../b",
        "/a//../b",
        "//../b",
        "/a%2fb/../c",
        "/a%5cb/../c",
        "/a/..%20/b",
        "/a/..%2500/b",
        "/a/%20../b",
        "/a/%c0%ae%c0%ae/b",
        "/a/%c0%af../b",
        "/a/%e0%80%ae/b",
        "/a/%ef%bc%8e%ef%bc%8e/b",
        "/a/．．/b",
        "/a/%e2%80%a5/b",
        "/a/..%ef%bc%8fb",
        "/a%00",
        "/a%0d%0ab",
        "/a%7f",
        "/a%",
        "/a%2",
        "/a%zz",
        "/a%u002e",
    ],
)
def test_rule_41_a_path_that_servers_read_differently_is_refused(path):
    assert Denial.BAD_PATH is refusal_of(canonical_path, path)


_PIECES = st.sampled_from(
    [
        "/",
        "//",
        "a",
        "b",
        ".",
        "..",
        "%2e",
        "%2E%2e",
        "%2f",
        "%5c",
        ";",
        "%3b",
        "%25",
        "2e",
        "2f",
        " ",
        "%20",
        "é",
        "x=1",
    ]
)


def _readings(path):
    """What servers make of a path: every combination of decoding, cutting parameters, merging slashes."""
    from urllib.parse import unquote

    decoded = [path, unquote(path), unquote(unquote(path))]
    for text in decoded:
        for backslash in (False, True):
            slashed = text.replace("\\", "/") if backslash else text
            for cut in (False, True):
                parts = [part.partition(";")[0] if cut else part for part in slashed.split("/")]
                for merge in (False, True):
                    kept: list[str] = []
                    for index, part in enumerate(parts):
                        if part == "..":
                            kept = kept[:-1] or [""]
                        elif part != "." and not (merge and part == "" and 0 < index < len(parts) - 1):
                            kept.append(part)
                    yield "/".join(kept) or "/"


@settings(deadline=None)
@given(st.lists(_PIECES, max_size=10).map("".join))
def test_rule_41_no_server_reads_an_allowed_path_as_one_outside_the_prefix(text):
    prefix = "/a/b"
    try:
        path = canonical_path(prefix + "/" + text.replace(" ", ""))
    except RefusedError:
        return
    if path_within(prefix, path):
        assert all(path_within(prefix, reading) for reading in _readings(path))


@settings(deadline=None)
@given(st.text(max_size=60).map(lambda text: "/" + text))
def test_rule_41_the_canonical_path_is_stable_and_plain(text):
    try:
        path = canonical_path(text)
    except RefusedError:
        return
    assert path == canonical_path(path)
    assert path.isascii()
    assert not {".", ".."} & set(path.split("/"))


def test_rule_72_inside_a_tunnel_the_authority_is_the_tunnels():
    assert parse_tunnel_target("/x?y", TUNNEL, "https") == Target(
        "https", "example.com", 443, "/x", "y", Form.ORIGIN
    )
    assert parse_tunnel_target("https://EXAMPLE.com:443/x", TUNNEL, "https").path == "/x"
    for text in (
        "https://b.example/x",
        "http://example.com/x",
        "http://example.com:443/x",
        "https://example.com:444/x",
    ):
        assert Denial.TUNNEL_DIFFERS is refusal_of(parse_tunnel_target, text, TUNNEL, "https")


def test_rule_34_plain_http_inside_a_tunnel_is_http_on_that_port():
    target = parse_tunnel_target("/x", TUNNEL, "http")
    assert (target.scheme, target.port, target.authority) == ("http", 443, "example.com:443")


def test_rule_72_a_path_in_a_tunnel_never_names_another_host():
    for text in ("//evil.example/x", "/https://evil.example/x", "/\t", "/@evil.example"):
        try:
            target = parse_tunnel_target(text, TUNNEL, "https")
        except RefusedError:
            continue
        assert (target.host, target.port) == ("example.com", 443)


_CORPUS = [
    (code, text.encode("ascii").decode("unicode_escape"))
    for code, text in (
        line.split(" ", 1) for line in (CORPUS / "targets.txt").read_text("ascii").splitlines() if line
    )
]


@pytest.mark.parametrize(("code", "text"), _CORPUS)
def test_rule_1_the_corpus_of_targets(code, text):
    if code in {"ok", "local"}:
        expected = Target if code == "ok" else LocalTarget
        assert isinstance(parse_request_target("GET", text), expected)
    else:
        with pytest.raises(RefusedError) as refused:
            parse_request_target("GET", text)
        assert code == refused.value.refusal.code


@st.composite
def _mutated(draw):
    text = draw(st.sampled_from(_CORPUS))[1]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        splice = draw(st.sampled_from([*"@:/\\?#[]%.;", "//", "%2f", "..", "\u3002", "b.example"]))
        text = text[:at] + splice + text[at + draw(st.integers(0, 3)) :]
    return text


@settings(max_examples=1000, deadline=None)
@given(_mutated())
def test_rule_1_another_parser_finds_the_same_host_in_what_is_accepted(text):
    try:
        target = parse_url(text)
    except RefusedError:
        return
    other = urlsplit(text)
    assert other.hostname is not None
    assert (canonical_host(other.hostname), other.scheme) == (target.host, target.scheme)
    assert target.port == (other.port or {"http": 80, "https": 443}[other.scheme])
    assert other.username is None
    assert (other.query or None) == (target.query or None) or not text.isascii()


@settings(deadline=None)
@given(st.sampled_from(["GET", "CONNECT"]), st.text(max_size=80) | _mutated())
def test_targets_are_parsed_or_refused_and_nothing_else(method, text):
    for parse in (
        lambda: parse_request_target(method, text),
        lambda: parse_url(text),
        lambda: parse_url(f"https://{text}"),
        lambda: parse_url(f"https://a.example/{text}"),
        lambda: parse_tunnel_target(text, TUNNEL, "https"),
    ):
        try:
            target = parse()
        except RefusedError:
            continue
        if isinstance(target, Target) and target.form is not Form.CONNECT:
            again = parse_url(f"{target.scheme}://{target.authority}{target.request_target}")
            assert structs.replace(again, form=target.form) == target


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=3))
def test_host_headers_are_accepted_or_refused_and_nothing_else(values):
    try:
        check_host(values, parse_url("https://a.example/"))
    except RefusedError:
        return
    assert len(values) == 1
