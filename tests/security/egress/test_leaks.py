"""Leaks: what leaves with a secret is stopped, what comes with one is cleaned, all else is left alone."""

import base64
import gzip
import random
import zlib
from typing import TYPE_CHECKING, cast

import brotli
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clawbox.egress.content_coding import CodingError, EncodedScanner, codings_of
from clawbox.egress.encodings import LONGEST
from clawbox.egress.findings import Action, Finding, LeakError, Place
from clawbox.egress.hold_back import HOLD
from clawbox.egress.leaks import LeakDetector, is_text
from clawbox.egress.patterns import Kind
from clawbox.network_rules import ShapeAction
from tests.unit.egress.shape_examples import EXAMPLES
from tests.unit.egress.spellings import ENCODINGS, SECRETS, left_over

if TYPE_CHECKING:
    from clawbox.egress.scanner import StreamScanner

BLOCK, REDACT, REPORT = ShapeAction.BLOCK, ShapeAction.REDACT, ShapeAction.REPORT

detector = LeakDetector(SECRETS.items())
spelled = pytest.mark.parametrize(
    ("name", "encoding"), [(name, encoding) for name in SECRETS for encoding in ENCODINGS]
)


def pump(scanner, chunks):
    return b"".join([*(scanner.feed(chunk) for chunk in chunks), scanner.finish()])


def trickle(scanner, chunks, sent):
    for chunk in chunks:
        sent += scanner.feed(chunk)
    sent += scanner.finish()


def cut(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


def names(findings):
    return {finding.name for finding in findings}


# 45: each secret × encoding × place


@spelled
def test_rule_45_a_request_with_a_secret_in_its_url_is_refused(name, encoding):
    text = ENCODINGS[encoding](SECRETS[name]).decode()
    for url in (f"https://api.example.com/a/{text}", f"https://api.example.com/?q=x{text}&y=1"):
        verdict = detector.outbound_head(url, [], REPORT)
        assert verdict.refused
        assert Finding(name, Kind.KNOWN, Place.URL, Action.REFUSED) in verdict.findings


@spelled
def test_rule_45_a_request_with_a_secret_in_a_header_value_is_refused(name, encoding):
    value = b"x " + ENCODINGS[encoding](SECRETS[name])
    verdict = detector.outbound_head("https://a.test/", [(b"accept", b"*/*"), (b"x-note", value)], REPORT)
    assert verdict.refused
    assert names(verdict.findings) == {name}
    assert verdict.headers == ()


@spelled
def test_rule_45_a_request_with_a_secret_in_a_header_name_is_refused(name, encoding):
    header = b"x-" + ENCODINGS[encoding](SECRETS[name])
    for spelling in (header, header.lower()):
        if spelling != header and "base64" in encoding:
            continue  # lower case leaves less than the secret
        verdict = detector.outbound_head("https://a.test/", [(spelling, b"1")], REPORT)
        assert verdict.refused
        assert Finding(name, Kind.KNOWN, Place.HEADER_NAME, Action.REFUSED) in verdict.findings


@spelled
def test_rule_45_a_request_with_a_secret_in_its_body_is_refused(name, encoding):
    body = b"\x00before" + ENCODINGS[encoding](SECRETS[name]) + b"after"
    with pytest.raises(LeakError) as caught:
        pump(detector.outbound_body(REPORT), [body])
    assert set(caught.value.findings) == {Finding(name, Kind.KNOWN, Place.BODY, Action.REFUSED)}
    assert SECRETS[name] not in repr(caught.value)


@spelled
def test_rule_45_a_secret_in_a_response_is_replaced(name, encoding):
    body = b'{"a": "' + ENCODINGS[encoding](SECRETS[name]) + b'", "b": 1}'
    given = pump(detector.inbound_body(text=False), [body])
    assert given.startswith(b'{"a": "')
    assert given.endswith(b'", "b": 1}')
    assert b"[REDACTED]" in given
    assert left_over(encoding, given[7:-10]) == 0


def test_rule_45_a_secret_as_a_host_label_is_refused():
    verdict = detector.outbound_head(f"https://{SECRETS['token'].lower()}.example.com/", [], REPORT)
    assert verdict.refused


def test_rule_45_a_secret_under_ten_percent_encodings_is_refused():
    text = "".join("%" + "25" * 9 + f"{byte:02x}" for byte in SECRETS["token"].encode())
    assert detector.outbound_head(f"https://a.test/{text}", [], REPORT).refused


def test_rule_45_a_part_of_a_long_secret_is_refused():
    part = SECRETS["long"][100:200].encode()
    with pytest.raises(LeakError):
        pump(detector.outbound_body(REPORT), [part])


def test_rule_45_no_match_of_a_known_secret_is_longer_than_what_is_held():
    widest = LeakDetector([("wide", "😀" * 200)])
    body = "".join("%25252525"[: 1 + 6] + f"{byte:02x}" for byte in ("😀" * 64).encode()).encode()
    assert len(body) <= LONGEST < HOLD
    assert pump(widest.inbound_body(text=False), cut(b"x" * 3 * HOLD + body + b"x" * 3 * HOLD, 1000)) == (
        b"x" * 3 * HOLD + b"[REDACTED]" + b"x" * 3 * HOLD
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_rule_45_a_shape_is_treated_as_the_rule_says(name):
    example = EXAMPLES[name].encode()
    line = example.replace(b"\n", b" ")
    body = b"a=1 " + example + b"; b=2"
    head = ("https://a.test/", [(b"x-a", b"a=1 " + line + b"; b=2")])
    with pytest.raises(LeakError):
        pump(detector.outbound_body(BLOCK), [body])
    assert detector.outbound_head(*head, BLOCK).refused
    assert pump(detector.outbound_body(REDACT), [body]) == b"a=1 [REDACTED]; b=2"
    verdict = detector.outbound_head(*head, REDACT)
    assert (verdict.refused, verdict.headers) == (False, ((b"x-a", b"a=1 [REDACTED]; b=2"),))
    scanner = detector.outbound_body(REPORT)
    assert pump(scanner, [body]) == body
    assert Finding(name, Kind.CREDENTIAL, Place.BODY, Action.REPORTED) in scanner.found
    verdict = detector.outbound_head(*head, REPORT)
    assert (verdict.refused, verdict.headers) == (False, tuple(head[1]))
    assert name in names(verdict.findings)
    # Elsewhere it cannot be replaced.
    assert detector.outbound_head(f"https://a.test/?t={line.decode()}", [], REDACT).refused


def test_rule_45_what_lacks_its_checksum_is_reported_and_not_refused():
    other = EXAMPLES["npm_token"][:-1] + "_"[:0] + ("0" if EXAMPLES["npm_token"][-1] != "0" else "1")
    verdict = detector.outbound_head("https://a.test/", [(b"x-a", other.encode())], BLOCK)
    assert verdict.findings == (Finding("npm_token", Kind.CREDENTIAL, Place.HEADER_VALUE, Action.REPORTED),)
    assert pump(detector.inbound_body(text=True), [other.encode()]) == b"[REDACTED]"


def test_rule_45_a_shape_inside_basic_is_found():
    value = b"Basic " + base64.b64encode(b"x-access-token:" + EXAMPLES["github_server_token"].encode())
    for on_shape in (BLOCK, REDACT):
        assert detector.outbound_head("https://a.test/", [(b"authorization", value)], on_shape).refused


# 46: splits


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_rule_46_every_secret_in_every_encoding_split_anywhere(data):
    name = data.draw(st.sampled_from(sorted(SECRETS)))
    encoding = data.draw(st.sampled_from(sorted(ENCODINGS)))
    encoded = ENCODINGS[encoding](SECRETS[name])
    before = data.draw(st.sampled_from([b"", b"x\n", b" " * 9000, b'{"k":"', b"\n" * 50]))
    after = data.draw(st.sampled_from([b"", b"\ny", b'"}', b" " * 9000]))
    body = before + encoded + after
    cuts = sorted(
        data.draw(st.lists(st.integers(len(before), len(before) + len(encoded)), min_size=1, max_size=5))
    )
    chunks = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    whole = pump(detector.inbound_body(text=True), [body])
    assert left_over(encoding, whole.removeprefix(before).removesuffix(after)) == 0
    assert pump(detector.inbound_body(text=True), chunks) == whole
    sent = bytearray()
    scanner = detector.outbound_body(REPORT)
    with pytest.raises(LeakError):
        trickle(scanner, chunks, sent)
    assert encoded not in sent
    assert before.startswith(sent)


@spelled
def test_rule_46_one_byte_chunks(name, encoding):
    encoded = ENCODINGS[encoding](SECRETS[name])
    body = b"first\n" + encoded + b"\nlast"
    given = pump(detector.inbound_body(text=True), cut(body, 1))
    assert given.startswith(b"first\n")
    assert given.endswith(b"\nlast")
    assert left_over(encoding, given[6:-5]) == 0


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("size", [1, 5, 4096])
def test_rule_46_shapes_in_chunks(name, size):
    lines = EXAMPLES[name].splitlines()
    body = b"x" * 9000 + b" " + EXAMPLES[name].encode() + b" " + b"x" * 9000
    given = pump(detector.inbound_body(text=True), cut(body, size))
    assert not any(line.encode() in given for line in lines if "----" not in line)
    assert given.startswith(b"x" * 9000 + b" [REDACTED]")
    assert given.endswith(b" " + b"x" * 9000)


def test_rule_46_a_shape_longer_than_all_that_is_held_goes_whole():
    token = b"xoxb-" + b"a1" * 20_000
    for keep_length in (False, True):
        scanner = detector.inbound_body(text=True, keep_length=keep_length)
        given = pump(scanner, cut(b"t=" + token + b" end", 1000))
        assert given.startswith(b"t=[REDACTED]")
        assert given.endswith(b" end")
        assert b"a1" not in given
        assert (len(given) == len(token) + 6) == keep_length


# 47: encodings of the whole body


def deflate(data):
    return zlib.compress(data)


def raw_deflate(data):
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


COMPRESSED = {
    "gzip": (b"gzip", gzip.compress),
    "gzip, members": (b"x-gzip", lambda data: b"".join(map(gzip.compress, cut(data, 7)))),
    "deflate": (b"deflate", deflate),
    "raw deflate": (b"Deflate", raw_deflate),
    "both": (b"deflate, gzip", lambda data: gzip.compress(deflate(data))),
    "br": (b"br", lambda data: brotli.compress(data, quality=9)),
    "br, gzip": (b"br, gzip", lambda data: gzip.compress(brotli.compress(data, quality=5))),
}
compressed = pytest.mark.parametrize("coding", COMPRESSED)


@compressed
@pytest.mark.parametrize("size", [1, 10, 100_000])
def test_rule_47_a_secret_in_a_compressed_body_never_goes_on(coding, size):
    named, compress = COMPRESSED[coding]
    secret = SECRETS["token"].encode()
    body = compress(random.Random(1).randbytes(20_000) + secret)
    for scanner in (
        detector.outbound_body(REPORT, encoded=True),
        detector.inbound_body(text=False, encoded=True),
    ):
        encoded = EncodedScanner(codings_of([named]), scanner)
        sent = bytearray()
        with pytest.raises(LeakError):
            trickle(encoded, cut(body, size), sent)
        assert body.startswith(sent)
        assert len(sent) < len(body)
        plain = partly_decoded(named, sent)
        assert secret[:1] not in plain[20_000:]


def partly_decoded(named, data):
    for coding in reversed(codings_of([named])):
        if coding == b"br":
            data = brotli.Decompressor().process(bytes(data))
            continue
        bits = 31 if coding != b"deflate" else 15
        plain = b""
        while data:
            try:
                stream = zlib.decompressobj(bits)
                plain += stream.decompress(bytes(data))
            except zlib.error:
                if bits < 0:
                    raise
                bits = -15
                continue
            data = stream.unused_data
        data = plain
    return bytes(data)


def test_rule_47_an_example_in_a_compressed_page_is_reported_and_the_page_arrives():
    body = gzip.compress(b"For example: " + EXAMPLES["github_server_token"].encode() + b"\n")
    scanner = EncodedScanner((b"gzip",), detector.inbound_body(text=True, encoded=True))
    assert pump(scanner, [body]) == body
    assert [found.action for found in scanner.scanner.found] == [Action.REPORTED]


@compressed
@pytest.mark.parametrize("size", [1, 10, 100_000])
def test_rule_47_a_clean_compressed_body_goes_on_as_it_came(coding, size):
    named, compress = COMPRESSED[coding]
    body = compress(random.Random(2).randbytes(30_000) + b"line\n" * 1000)
    scanner = EncodedScanner(codings_of([named]), detector.inbound_body(text=True, encoded=True))
    assert pump(scanner, cut(body, size)) == body


def test_rule_47_events_in_a_compressed_stream_are_prompt():
    stream = zlib.compressobj(wbits=31)
    scanner = EncodedScanner((b"gzip",), detector.inbound_body(text=True, encoded=True))
    for number in range(5):
        event = stream.compress(b"data: %d\n\n" % number) + stream.flush(zlib.Z_SYNC_FLUSH)
        assert scanner.feed(event) == event


def test_rule_47_events_in_a_brotli_stream_are_prompt():
    stream = brotli.Compressor(quality=5)
    scanner = EncodedScanner((b"br",), detector.inbound_body(text=True, encoded=True))
    for number in range(5):
        event = stream.process(b"data: %d\n\n" % number) + stream.flush()
        assert scanner.feed(event) == event


@pytest.mark.parametrize("coding", ["gzip", "deflate", "both", "br", "br, gzip"])
def test_rule_47_a_body_that_decodes_to_far_more_than_it_is_ends(coding):
    named, compress = COMPRESSED[coding]
    bomb = compress(bytes(200 << 20))
    scanner = EncodedScanner(codings_of([named]), detector.inbound_body(text=False, encoded=True))
    with pytest.raises(CodingError):
        scanner.feed(bomb)


@pytest.mark.parametrize(
    "value", [b"zstd", b"compress", b"gzip, zstd", b"gzip, gzip, gzip", b"br, br", b"gzip;q=1", b"dcb"]
)
def test_rule_47_other_encodings_are_refused(value):
    with pytest.raises(CodingError):
        codings_of([value])


def test_rule_47_identity_is_no_encoding():
    assert codings_of([]) == codings_of([b"identity", b""]) == ()


@pytest.mark.parametrize(
    ("named", "body"),
    [
        (b"gzip", b"not gzip at all"),
        (b"gzip", gzip.compress(b"x" * 1000)[:-3]),
        (b"deflate", deflate(b"x") + b"more"),
        (b"gzip", gzip.compress(b"x") + b"more"),
        (b"gzip", b"\x1f"),
        (b"br", b"not brotli at all"),
        (b"br", brotli.compress(b"x" * 1000 + b"y")[:-3]),
        (b"br", brotli.compress(b"x") + b"more"),
    ],
)
@pytest.mark.parametrize("size", [1, 100_000])
def test_rule_47_what_is_not_what_it_says_does_not_end_well(named, body, size):
    scanner = EncodedScanner((named,), detector.inbound_body(text=True, encoded=True))
    with pytest.raises(CodingError):
        pump(scanner, cut(body, size))


@pytest.mark.parametrize("size", [98_271, 98_272, 98_273, 196_544, 196_545, 300_000])
@pytest.mark.parametrize("quality", [1, 5, 11])
def test_rule_47_a_secret_late_in_what_little_brotli_decodes_to_is_found(size, quality):
    # The library takes all of the input and still has output: nothing may go on before that was searched.
    stream = brotli.Compressor(quality=quality)
    body = stream.process(bytes(size) + SECRETS["token"].encode()) + stream.flush()
    scanner = EncodedScanner((b"br",), detector.inbound_body(text=False, encoded=True))
    sent = bytearray()
    with pytest.raises(LeakError):
        trickle(scanner, [body, stream.finish()], sent)
    assert not sent


def test_rule_47_what_a_brotli_body_decodes_to_comes_in_pieces_of_bounded_size():
    taken = []

    class Searched:
        def feed(self, data: bytes) -> bytes:
            taken.append(len(data))
            return data

        def finish(self) -> bytes:
            return b""

    body = brotli.compress(bytes(1 << 20))
    scanner = EncodedScanner((b"br",), cast("StreamScanner", Searched()))
    assert scanner.feed(body) + scanner.finish() == body
    assert sum(taken) == 1 << 20
    assert max(taken) <= 128 << 10


# 48, 52, 53, 54, 67


def test_rule_48_what_was_not_searched_stays_when_the_stream_breaks_off():
    scanner = detector.inbound_body(text=True)
    secret = SECRETS["token"].encode()
    # No finish(): reading failed.
    assert scanner.feed(b"line\n" + secret[:-1]) == b"line\n"


def test_rule_48_nothing_goes_on_after_a_refusal():
    scanner = detector.outbound_body(BLOCK)
    with pytest.raises(LeakError):
        scanner.feed(SECRETS["token"].encode() + b"\n")
    for again in (lambda: scanner.feed(b"clean\n"), scanner.finish):
        with pytest.raises(LeakError):
            again()


@spelled
def test_rule_49_response_headers_and_trailers_are_cleaned(name, encoding):
    encoded = ENCODINGS[encoding](SECRETS[name])
    headers = [
        (b"Set-Cookie", b"s=" + encoded + b"; Path=/"),
        (b"x-" + encoded, b"1"),
        (b"Content-Type", b"text/html"),
    ]
    for clean, place in (
        (detector.inbound_head, Place.HEADER_VALUE),
        (detector.inbound_trailers, Place.TRAILER),
    ):
        verdict = clean(headers)
        assert not verdict.refused
        assert Finding(name, Kind.KNOWN, place, Action.REDACTED) in verdict.findings
        assert encoded not in b"".join(part for header in verdict.headers for part in header)
        assert verdict.headers[-1] == (b"Content-Type", b"text/html")
        cookie = verdict.headers[0][1]
        assert cookie.startswith(b"s=")
        assert cookie.endswith(b"; Path=/")
        assert left_over(encoding, cookie[2:-8]) == 0


def test_rule_49_a_header_whose_secret_cannot_be_cut_out_is_left_out():
    value = b"Basic " + base64.b64encode(EXAMPLES["npm_token"].encode())
    assert detector.inbound_head([(b"x-echo", value), (b"x", b"1")]).headers == ((b"x", b"1"),)


def test_rule_49_outbound_trailers_are_judged_like_headers():
    verdict = detector.outbound_trailers([(b"x-sum", SECRETS["token"].encode())], BLOCK)
    assert verdict.refused
    assert {found.place for found in verdict.findings} == {Place.TRAILER}


def test_rule_52_events_are_not_delayed():
    scanner = detector.inbound_body(text=True)
    for number in range(20):
        event = b"event: x\ndata: %d\n\n" % number
        assert scanner.feed(event) == event


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=30_000), st.integers(1, 9000), st.booleans())
def test_rule_54_bodies_without_a_finding_are_byte_exact(body, size, text):
    for scanner in (detector.inbound_body(text=text), detector.outbound_body(BLOCK)):
        assert pump(scanner, cut(body, size)) == body
        assert not scanner.found


def test_rule_54_large_binary_bodies_are_byte_exact():
    body = random.Random(3).randbytes(5 << 20)
    assert pump(detector.inbound_body(text=True), cut(body, 65_536)) == body


def test_rule_54_redaction_can_keep_the_length():
    secret = SECRETS["token"].encode()
    body = b"a" + secret + b"b\n" + secret[:5]
    given = pump(detector.inbound_body(text=True, keep_length=True), cut(body, 3))
    assert given == b"a[REDACTED]" + b"*" * (len(secret) - 10) + b"b\n" + secret[:5]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(st.just("\n"), st.text("ab\n", max_size=3), st.just("x" * 3000)), max_size=30),
    st.integers(1, 5000),
)
def test_rule_67_what_is_held_depends_on_line_feeds_and_lengths_alone(parts, size):
    # The same lengths and line feeds, here as beginnings of a secret: not one byte is held more or less.
    plain = "".join(parts)
    secret = iter(SECRETS["long"] * 1000)
    tempting = "".join(char if char == "\n" else next(secret) for char in plain)
    tempting = tempting if SECRETS["long"][:64] not in tempting else plain
    for one, other in ((plain, tempting),):
        a, b = (detector.inbound_body(text=True) for _ in range(2))
        for left, right in zip(cut(one.encode(), size), cut(other.encode(), size), strict=True):
            assert len(a.feed(left)) == len(b.feed(right))


def test_rule_67_every_prefix_of_a_secret_is_held_alike():
    secret = SECRETS["token"].encode()
    held = []
    for known in range(len(secret)):
        scanner = detector.inbound_body(text=True)
        guess = secret[:known] + b"?" * (len(secret) - known)
        held.append([len(scanner.feed(guess)), len(scanner.feed(b"x" * 3 * HOLD)), len(scanner.feed(b"\n"))])
    assert len({tuple(one) for one in held}) == 1


def test_rule_67_at_most_a_constant_number_of_bytes_is_held():
    scanner = detector.inbound_body(text=True)
    sent = given = 0
    for size in (1, 100, HOLD, 10_000, 1, 70_000, 5):
        sent += size
        given += len(scanner.feed(b"x" * size))
        assert sent - given <= 2 * HOLD


# 76


def test_rule_76_a_retired_value_stays_known():
    both = LeakDetector([("key", "old-value-0123456789"), ("key", "new-value-0123456789")])
    for value in (b"old-value-0123456789", b"new-value-0123456789"):
        assert pump(both.inbound_body(text=False), [value]) == b"[REDACTED]"


def test_without_secrets_shapes_are_still_looked_for():
    alone = LeakDetector()
    example = EXAMPLES["stripe_key"].encode()
    assert alone.outbound_head("https://a.test/", [(b"x", example)], BLOCK).refused
    assert pump(alone.inbound_body(text=False), [example]) == example


@pytest.mark.parametrize("value", ["", "two\nlines", "cr\rhere"])
def test_a_secret_that_no_stream_can_be_searched_for_is_no_secret(value):
    with pytest.raises(ValueError, match="one line"):
        LeakDetector([("x", value)])


@pytest.mark.parametrize(
    ("content_type", "text"),
    [
        (b"", True),
        (b"text/html; charset=utf-8", True),
        (b"application/json", True),
        (b"application/problem+json", True),
        (b"application/vnd.github.v3+json", True),
        (b"image/svg+xml", True),
        (b"application/octet-stream", False),
        (b"application/zip", False),
        (b"image/png", False),
    ],
)
def test_shapes_are_looked_for_in_text_types(content_type, text):
    assert is_text(content_type) == text
