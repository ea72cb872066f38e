"""The output scan: what a tool wrote is searched for credentials and for phrases that steer a model.

Strings of JSON output are searched as they read, not as they are spelled, so that an escape cannot hide a
secret and a replacement cannot break the JSON; numbers and everything else keep every byte. All else is
searched as text, and once more with backslash escapes resolved. What looks like a credential becomes
``[REDACTED]``; injection phrases are marked, or the whole output is withheld where the operator says so. The
report never repeats what was found. Scanning is a net, not a boundary: what a tool reverses or encrypts
passes.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from clawbox import json_text
from clawbox.egress.hold_back import HoldBack
from clawbox.egress.patterns import Kind, Match, Pattern, PatternSet
from clawbox.egress.shapes import OUTPUT_PATTERNS
from clawbox.wasm.escapes import unescape, unescape_quickly
from clawbox.wasm.model import LogEntry, Outcome, OutputChunk, OutputStream, RunEvent, RunResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

REDACTED = "[REDACTED]"

_CONTEXT_BYTES = 1024  # of what a stream already gave, so that a match may begin before a line feed
_INLINE_BYTES = 32 << 10  # searched at 200 MB/s: below this, a thread costs more than it saves
_MAX_PLACES = 100
_MAX_LOCATION = 512
_REDACTED = REDACTED.encode()


class OutputForm(enum.Enum):
    """What a tool's output is."""

    JSON = "json"
    TEXT = "text"
    """UTF-8 that is not JSON."""
    BINARY = "binary"
    """Not UTF-8."""


class Action(enum.Enum):
    """What was done about a finding; see ``FindingAction`` in sandbox.proto."""

    REDACTED = "redacted"
    MARKED = "marked"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Finding:
    """How often a pattern was found at one place; ``location`` is as sandbox.proto says."""

    pattern: str
    action: Action
    location: str
    count: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the scan found and did."""

    findings: tuple[Finding, ...] = ()
    actions_taken: tuple[str, ...] = ()
    """Once for each pattern, as in the Rust clawbox: ``credential_pattern_detected`` or
    ``injection_pattern_detected``."""

    @property
    def issues_found(self) -> int:
        """How many findings there were."""
        return sum(finding.count for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Scanned:
    """A run's result that may be shown, what its output is, and what was found in it."""

    result: RunResult
    form: OutputForm = OutputForm.TEXT
    """Of ``result.output``, when there is one."""
    report: Report = Report()


class OutputScanner:
    """Searches what tools write. Holds no state of a run; safe to share between threads."""

    def __init__(self, on_injection: Literal["mark", "block"] = "mark") -> None:
        self._patterns = PatternSet(OUTPUT_PATTERNS)
        self._block = on_injection == "block"

    async def scan(self, result: RunResult) -> Scanned:
        """Search everything a run returned; long output is searched on a thread."""
        size = len(result.output or b"") + len(result.stdout) + len(result.stderr)
        if size <= _INLINE_BYTES:
            return self.scan_now(result)
        return await asyncio.to_thread(self.scan_now, result)

    def scan_now(self, result: RunResult) -> Scanned:
        """Search everything a run returned, on this thread."""
        tally = _Tally(blocking=self._block)
        output, form = result.output, OutputForm.TEXT
        if output is not None:
            form = output_form(output)
            if form is OutputForm.JSON:
                output = self._scan_json(output, tally)
            else:
                output = self._scan_text(output, "", tally)
        message = self._scan_text(result.message.encode(), "message", tally)
        stdout = self._scan_text(result.stdout, "stdout", tally)
        stderr = self._scan_text(result.stderr, "stderr", tally)
        logs = tuple(
            self._scan_log(entry, f"logs/{number}", tally) for number, entry in enumerate(result.logs)
        )
        if not tally.found:
            return Scanned(result, form)
        if tally.blocked:
            return Scanned(_withheld(result, tally.blocked), form, tally.report())
        cleaned = replace(
            result, output=output, message=message.decode(), stdout=stdout, stderr=stderr, logs=logs
        )
        return Scanned(cleaned, form, tally.report())

    def stream(self) -> EventScanner:
        """A scanner for the events of one run."""
        return EventScanner(self, stop_at_injection=self._block)

    def matches(self, data: bytes) -> list[Match]:
        """Every occurrence in a text, as it is spelled and with its escapes resolved, by position."""
        found = self._patterns.find(data)
        if b"\\" in data and self._patterns.found_in(unescape_quickly(data)):
            plain, back = unescape(data)
            found = sorted({*found, *(back.match(match) for match in self._patterns.find(plain))}, key=_span)
        return found

    def _scan_text(self, data: bytes, location: str, tally: _Tally) -> bytes:
        if not data:
            return data
        matches = self.matches(data)
        if not matches:
            return data
        tally.add(matches, location)
        return _redact(data, matches)

    def _scan_log(self, entry: LogEntry, location: str, tally: _Tally) -> LogEntry:
        data = entry.message.encode()
        cleaned = self._scan_text(data, location, tally)
        return entry if cleaned is data else LogEntry(entry.level, cleaned.decode(), entry.offset_us)

    def _scan_json(self, output: bytes, tally: _Tally) -> bytes:
        # Nearly all output is clean: one look at all strings together, at each only when there is a reason.
        if not self.matches(json_text.all_strings(output)):
            return output
        names = KeyNames(self.redact_line)

        def clean(token: json_text.StringToken, text: str) -> str | None:
            data = json_text.replace_surrogates(text).encode()
            matches = self.matches(data)
            if not matches:
                return None
            tally.add(matches, names.pointer(token.path))
            cleaned = _redact(data, matches)
            if cleaned is data:
                return None
            return names.rename(token.path, cleaned.decode()) if token.is_key else cleaned.decode()

        return json_text.rewrite(output, clean)

    def redact_line(self, text: str) -> str:
        """A short text with its credentials replaced."""
        data = text.encode(errors="replace")
        return _redact(data, self.matches(data)).decode()


class EventScanner:
    """Searches what a run writes while it runs, and gives on what may be shown.

    Text is given on up to its last line feed; of what follows, between ``HOLD`` and twice as much is
    held back, so that no secret gets through in pieces. Offsets count the bytes given, not those written.
    Where injections block, nothing more comes once one was seen; what came before it has gone.
    """

    def __init__(self, scanner: OutputScanner, *, stop_at_injection: bool) -> None:
        self._scanner = scanner
        self._stop = stop_at_injection
        self._texts = {
            stream: _TextStream(scanner, stop_at_injection=stop_at_injection)
            for stream in (OutputStream.STDOUT, OutputStream.STDERR)
        }

    def feed(self, event: RunEvent) -> list[RunEvent]:
        """What may be shown now that this happened."""
        if any(text.stopped for text in self._texts.values()):
            return []
        if isinstance(event, LogEntry):
            matches = self._scanner.matches(event.message.encode())
            if self._stop and _injections(matches):
                self._texts[OutputStream.STDOUT].stopped = True
                return []
            cleaned = _redact(event.message.encode(), matches).decode() if matches else event.message
            return [LogEntry(event.level, cleaned, event.offset_us)]
        return list(self._chunk(event.stream, self._texts[event.stream].feed(event.data)))

    def flush(self) -> list[RunEvent]:
        """What was held back, at the end of the run."""
        if any(text.stopped for text in self._texts.values()):
            return []
        return [event for stream, text in self._texts.items() for event in self._chunk(stream, text.flush())]

    def _chunk(self, stream: OutputStream, data: bytes) -> Iterable[OutputChunk]:
        if data:
            text = self._texts[stream]
            yield OutputChunk(stream, data, text.given)
            text.given += len(data)


class _TextStream:
    """One stream of text: ``feed`` takes what was written and returns what may be shown."""

    def __init__(self, scanner: OutputScanner, *, stop_at_injection: bool) -> None:
        self.given = 0
        self.stopped = False
        self._scanner = scanner
        self._stop = stop_at_injection
        self._held = HoldBack(_CONTEXT_BYTES)
        self._inside: Pattern | None = None  # within a secret longer than all that is held

    def feed(self, data: bytes) -> bytes:
        if self._inside:
            rest = self._inside.rest.match(data)
            data = data[rest.end() :] if rest else data
            if not data:
                return b""
            self._inside = None
        return self._give(self._held.add(data))

    def flush(self) -> bytes:
        return self._give(len(self._held))

    def _give(self, cut: int) -> bytes:
        if cut <= self._held.given or self.stopped:
            return b""
        window = self._held.window()
        matches = self._scanner.matches(window)
        if self._held.trimmed:  # the window begins in the middle of something, where `^` means nothing
            matches = [match for match in matches if match.start or match.pattern.kind is not Kind.INJECTION]
        if self._stop and any(match.end > self._held.given for match in _injections(matches)):
            self.stopped = True
            return b""
        parts: list[bytes] = []
        position = self._held.given
        for start, end in _secret_spans(matches):
            if end <= position or start >= cut:
                continue
            parts += (window[position:start], _REDACTED)
            position = end
            if end == len(window):
                last = next(match.pattern for match in matches if match.end == end)
                if end > cut or last.lines:
                    self._inside = last
        parts.append(window[position:cut])
        self._held.go_on(max(position, cut))
        return b"".join(parts)


class _Tally:
    """Counts what one scan finds."""

    def __init__(self, *, blocking: bool) -> None:
        self._blocking = blocking
        self._counts: Counter[tuple[str, Action, str]] = Counter()
        self._patterns: dict[str, Pattern] = {}
        self.blocked: list[str] = []

    def add(self, matches: Sequence[Match], location: str) -> None:
        for match in matches:
            name = match.pattern.name
            action = Action.REDACTED
            if match.pattern.kind is Kind.INJECTION:
                action = Action.BLOCKED if self._blocking else Action.MARKED
                if self._blocking and name not in self.blocked:
                    self.blocked.append(name)
            self._patterns[name] = match.pattern
            key = (name, action, location)
            if key not in self._counts and len(self._counts) >= _MAX_PLACES:
                key = (name, action, "elsewhere")
            self._counts[key] += 1

    @property
    def found(self) -> bool:
        """Whether there is anything to report."""
        return bool(self._counts)

    def report(self) -> Report:
        return Report(
            findings=tuple(Finding(*key, count) for key, count in self._counts.items()),
            actions_taken=tuple(
                "injection_pattern_detected"
                if pattern.kind is Kind.INJECTION
                else "credential_pattern_detected"
                for pattern in self._patterns.values()
            ),
        )


class KeyNames:
    """What the keys of a JSON text are called once those that hold secrets are replaced."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        """``redact`` gives a key as it may be shown."""
        self._redact = redact
        self._taken: Counter[tuple[tuple[str | int, ...], str]] = Counter()

    def pointer(self, path: Sequence[str | int]) -> str:
        """Where a string stands, as a JSON pointer of at most 512 characters."""
        steps = [self._redact(step) if isinstance(step, str) else step for step in path]
        found = json_text.pointer(steps)
        return found if len(found) <= _MAX_LOCATION else found[: _MAX_LOCATION - 1] + "…"

    def rename(self, path: Sequence[str | int], name: str) -> str:
        """What a key is called from now on; two keys of one object do not become the same."""
        place = (tuple(path[:-1]), name)
        self._taken[place] += 1
        return name if self._taken[place] == 1 else f"{name} {self._taken[place]}"


def output_form(output: bytes) -> OutputForm:
    """What an output is."""
    try:
        output.decode()
    except UnicodeDecodeError:
        return OutputForm.BINARY
    return OutputForm.JSON if json_text.is_json(output) else OutputForm.TEXT


def _span(match: Match) -> tuple[int, int]:
    return match.start, match.end


def _injections(matches: Iterable[Match]) -> list[Match]:
    return [match for match in matches if match.pattern.kind is Kind.INJECTION]


def _secret_spans(matches: Sequence[Match]) -> list[tuple[int, int]]:
    """Where secrets are; those that overlap are one."""
    spans: list[tuple[int, int]] = []
    for match in matches:
        if match.pattern.kind is Kind.INJECTION:
            continue
        if spans and match.start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], match.end))
        else:
            spans.append((match.start, match.end))
    return spans


def _redact(data: bytes, matches: Sequence[Match]) -> bytes:
    spans = _secret_spans(matches)
    if not spans:
        return data
    parts: list[bytes] = []
    kept = 0
    for start, end in spans:
        parts += (data[kept:start], _REDACTED)
        kept = end
    parts.append(data[kept:])
    return b"".join(parts)


def _withheld(result: RunResult, patterns: Sequence[str]) -> RunResult:
    return replace(
        result,
        outcome=Outcome.BLOCKED,
        message=f"The output was withheld by this server's output policy: {', '.join(patterns)}.",
        output=None,
        stdout=b"",
        stderr=b"",
        logs=(),
    )
