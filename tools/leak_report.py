"""``make leak-report``: what the leak scanner finds and what it finds wrongly, counted and not judged.

Recall is over every secret × encoding × place × position at which a body is cut in two; false positives over
ordinary text, the sources of Python's standard library. Exit code 1 when a promised encoding is missed.
The encodings are made by the libraries that programs use; some that are known to pass are listed, too.
"""

import base64
import gzip
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from clawbox.egress.findings import Action, LeakError
from clawbox.egress.leaks import LeakDetector, shape_patterns
from clawbox.egress.scanner import StreamScanner
from clawbox.network_rules import ShapeAction
from tests.unit.egress.shape_examples import EXAMPLES
from tests.unit.egress.spellings import ENCODINGS, SECRETS

_UPPER, _LOWER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"abcdefghijklmnopqrstuvwxyz"
_ROT13 = bytes.maketrans(_UPPER + _LOWER, _UPPER[13:] + _UPPER[:13] + _LOWER[13:] + _LOWER[:13])

# The net has holes, and these are some (docs/security.md, 77).
NOT_PROMISED: dict[str, Callable[[str], bytes]] = {
    "reversed": lambda secret: secret[::-1].encode(),
    "ROT13 of base64": lambda secret: base64.b64encode(secret.encode()).translate(_ROT13),
    "base64 twice": lambda secret: base64.b64encode(base64.b64encode(secret.encode())),
    "base32": lambda secret: base64.b32encode(secret.encode()),
    "base64, a line each 8": lambda secret: b"\n".join(_pieces(base64.b64encode(secret.encode()), 8)),
    "a blank after each": lambda secret: " ".join(secret).encode(),
    "hex with colons": lambda secret: secret.encode().hex(":").encode(),
    "UTF-16": lambda secret: secret.encode("utf-16-le"),
    "gzip, not stated": lambda secret: gzip.compress(secret.encode()),
    "first half alone": lambda secret: secret[: len(secret) // 2].encode(),
}
CHUNK = 64 << 10


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def refused(scanner: StreamScanner, chunks: list[bytes]) -> bool:
    """Whether a request's body is stopped."""
    try:
        for chunk in chunks:
            scanner.feed(chunk)
        scanner.finish()
    except LeakError:
        return True
    return False


def gone(detector: LeakDetector, chunks: list[bytes], encoded: bytes) -> bool:
    """Whether a response's body comes without the secret."""
    scanner = detector.inbound_body(text=True)
    given = b"".join([*(scanner.feed(chunk) for chunk in chunks), scanner.finish()])
    return encoded not in given and any(found.action is Action.REDACTED for found in scanner.found)


def recall(detector: LeakDetector) -> bool:
    """Print how many of the promised spellings are found; whether all are."""
    print(f"Known secrets: {len(SECRETS)} secrets x {len(ENCODINGS)} encodings x place x cut")
    complete = True
    for encoding, encode in ENCODINGS.items():
        hits: Counter[str] = Counter()
        tried: Counter[str] = Counter()
        for secret in SECRETS.values():
            encoded = encode(secret)
            text = encoded.decode()
            body = b'{"k": "' + encoded + b'"}\n'
            for place, hit in (
                ("URL", detector.outbound_head(f"https://a.test/?q={text}", [], ShapeAction.REPORT).refused),
                ("name", detector.outbound_head("", [(b"x-" + encoded, b"")], ShapeAction.REPORT).refused),
                ("value", detector.outbound_head("", [(b"x", encoded)], ShapeAction.REPORT).refused),
            ):
                tried[place] += 1
                hits[place] += hit
            for at in range(len(body)):
                chunks = [body[:at], body[at:]]
                tried["body out"] += 1
                hits["body out"] += refused(detector.outbound_body(ShapeAction.REPORT), chunks)
                tried["body in"] += 1
                hits["body in"] += gone(detector, chunks, encoded)
        complete = complete and hits == tried
        print(f"  {encoding:26}" + "".join(f" {place} {hits[place]}/{tried[place]}" for place in tried))
    print("Not promised, and what happens all the same:")
    for encoding, encode in NOT_PROMISED.items():
        found = sum(
            refused(detector.outbound_body(ShapeAction.REPORT), [encode(value)]) for value in SECRETS.values()
        )
        print(f"  {encoding:26} {found}/{len(SECRETS)}")
    return complete


def shapes() -> bool:
    """Print how many shapes are found in the examples of their format, cut anywhere; whether all are."""
    detector = LeakDetector()
    tried = hits = 0
    for example in EXAMPLES.values():
        body = b"t = " + example.encode() + b" \n"
        for at in range(len(body)):
            tried += 1
            hits += refused(detector.outbound_body(ShapeAction.BLOCK), [body[:at], body[at:]])
    print(f"Shapes: {len(EXAMPLES)} formats, cut at every position: {hits}/{tried} stopped")
    return hits == tried


def ordinary_text(detector: LeakDetector) -> None:
    """Print what is found where there is nothing, and how fast."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(folder.rglob("*.py")) if "site-packages" not in file.parts]
    texts = [file.read_bytes() for file in files]
    size = sum(map(len, texts))
    print(f"Ordinary text: {len(files)} files of Python's standard library, {size / 1e6:.1f} MB")
    stopped: Counter[str] = Counter()
    redacted: Counter[str] = Counter()
    for file, source in zip(files, texts, strict=True):
        outbound, inbound = detector.outbound_body(ShapeAction.BLOCK), detector.inbound_body(text=True)
        if refused(outbound, _pieces(source, CHUNK)):
            for found in outbound.found:
                stopped[f"{found.name} ({file.relative_to(folder)})"] += 1
        inbound.feed(source)
        inbound.finish()
        for found, count in inbound.found.items():
            redacted[f"{found.name} ({file.relative_to(folder)})"] += count
    for words, counts in (("files refused as requests", stopped), ("places redacted in responses", redacted)):
        print(f"  {words}: {sum(counts.values())}")
        for name, count in sorted(counts.items()):
            print(f"    {count} x {name}")
    blob = b"".join(texts)
    for words, text in (("known secrets and shapes", True), ("known secrets alone", False)):
        speeds = []
        for _ in range(3):
            scanner = detector.inbound_body(text=text)
            start = time.perf_counter()
            for chunk in _pieces(blob, CHUNK):
                scanner.feed(chunk)
            scanner.finish()
            speeds.append(size / (time.perf_counter() - start) / 1e6)
        print(f"  speed, {words}: {sorted(speeds)[1]:.0f} MB/s (of {len(speeds)} runs)")


def main() -> int:
    """The whole report."""
    detector = LeakDetector(SECRETS.items())
    print(f"{len(shape_patterns().patterns)} shapes; chunks of {CHUNK >> 10} KiB where none are named\n")
    complete = [recall(detector), shapes()]
    ordinary_text(detector)
    return 0 if all(complete) else 1


if __name__ == "__main__":
    sys.exit(main())
