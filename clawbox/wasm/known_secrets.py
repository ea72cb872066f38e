"""A run's output without the secrets that its sidecar knows: replaced there, for control has none of them.

It comes before the output scan, and where it cannot be done, the call fails with REDACTION_UNAVAILABLE: raw
output is never shown. Strings of JSON are cleaned as they read, so that the JSON stays JSON; then once more
what is left as it is spelled, for what stands in numbers or across strings. What that leaves is text if it is
JSON no longer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from clawbox import json_text
from clawbox.errors import ClawboxError, Reason
from clawbox.uninterrupted import together
from clawbox.wasm.model import LogEntry, OutputChunk, OutputStream, RunEvent
from clawbox.wasm.output import (
    REDACTED,
    Action,
    Finding,
    KeyNames,
    OutputForm,
    Report,
    output_form,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from clawbox.egress.door import CallDoor
    from clawbox.wasm.model import OnEvent, RunResult

PATTERN: Final = "known_secret"
"""The ``pattern`` of findings. Which credential it was, the sidecar's own record says."""

_REDACTED: Final = REDACTED.encode()
_RESULT: Final = "result"
_LOG: Final = "log"
_MAX_PLACES: Final = 100


class KnownSecrets:
    """What cleans one run's output, through that run's door."""

    def __init__(self, door: CallDoor) -> None:
        self._door = door

    async def clean(self, result: RunResult) -> tuple[RunResult, Report]:
        """The result without known secrets, and what was replaced. Raises REDACTION_UNAVAILABLE."""
        texts = {"message": result.message.encode(), "stdout": result.stdout, "stderr": result.stderr}
        texts |= {f"logs/{number}": entry.message.encode() for number, entry in enumerate(result.logs)}
        output, form = result.output, OutputForm.TEXT
        if output is not None:
            form = output_form(output)
            texts[""] = output
            if form is OutputForm.JSON:
                texts["/"] = json_text.all_strings(output)
        cleaned = dict(zip(texts, await self._clean(texts.values()), strict=True))
        if cleaned == texts:
            return result, Report()
        found = _Found()
        if output is not None and form is OutputForm.JSON:
            if (cleaned[""], cleaned["/"]) != (texts[""], texts["/"]):
                cleaned[""] = await self._clean_json(output, found)
            del texts["/"]
        elif output is not None:
            found.add("", output, cleaned[""])
        for place, text in texts.items():
            if place:
                found.add(place, text, cleaned[place])
        logs = tuple(
            LogEntry(entry.level, _text(cleaned[f"logs/{number}"]), entry.offset_us)
            for number, entry in enumerate(result.logs)
        )
        result = replace(
            result,
            output=cleaned.get(""),
            message=_text(cleaned["message"]),
            stdout=cleaned["stdout"],
            stderr=cleaned["stderr"],
            logs=logs,
        )
        return result, found.report()

    async def watch(self, run: Callable[[OnEvent], Awaitable[RunResult]], on_event: OnEvent) -> RunResult:
        """The result of ``run``, whose events ``on_event`` gets without known secrets, in order.

        Raises what ``run`` does, and REDACTION_UNAVAILABLE, which cancels it.
        """
        events: asyncio.Queue[RunEvent | None] = asyncio.Queue()

        async def to_its_end() -> RunResult:
            result = await run(events.put_nowait)
            events.put_nowait(None)
            return result

        result: RunResult
        result, _ = await together(to_its_end(), self._forward(events, on_event))
        return result

    async def _forward(self, events: asyncio.Queue[RunEvent | None], on_event: OnEvent) -> None:
        streams: set[OutputStream] = set()
        while (event := await events.get()) is not None:
            if isinstance(event, LogEntry):
                message = await self._door.clean(_LOG, event.message.encode(), end=True)
                on_event(LogEntry(event.level, _text(message), event.offset_us))
            else:
                streams.add(event.stream)
                await self._give(event, on_event, end=False)
        for stream in streams:
            await self._give(OutputChunk(stream, b"", 0), on_event, end=True)

    async def _give(self, chunk: OutputChunk, on_event: OnEvent, *, end: bool) -> None:
        data = await self._door.clean(chunk.stream.value, chunk.data, end=end)
        if data:
            on_event(OutputChunk(chunk.stream, data, chunk.offset))

    async def _clean_json(self, output: bytes, found: _Found) -> bytes:
        strings = await asyncio.to_thread(_distinct_strings, output)
        cleaned = await self._clean(text.encode() for text in strings)
        says = {
            text: _text(data) for text, data in zip(strings, cleaned, strict=True) if data != text.encode()
        }
        rewritten = await asyncio.to_thread(_rewrite, output, says, found)
        left = (await self._clean([rewritten]))[0]
        found.add("", rewritten, left)
        return left

    async def _clean(self, texts: Iterable[bytes]) -> list[bytes]:
        """Each text as it may be shown, all of them in one go.

        What stands between them was not known when they were written, and is in no secret.
        """
        texts = list(texts)
        if not texts:
            return []
        between = b"\0%b\0" % secrets.token_hex(8).encode()
        cleaned = await self._door.clean(_RESULT, between.join(texts), end=True)
        parts = cleaned.split(between)
        if len(parts) != len(texts):
            raise ClawboxError(
                Reason.REDACTION_UNAVAILABLE, "the output came back from its sidecar in another shape"
            )
        return parts


class _Found:
    """Counts what was replaced."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, place: str, before: bytes, after: bytes) -> None:
        if before == after:
            return
        if place not in self._counts and len(self._counts) >= _MAX_PLACES:
            place = "elsewhere"
        self._counts[place] += max(after.count(_REDACTED) - before.count(_REDACTED), 1)

    def report(self) -> Report:
        findings = tuple(
            Finding(PATTERN, Action.REDACTED, place, count) for place, count in self._counts.items()
        )
        return Report(findings, ("credential_pattern_detected",) if findings else ())


def _distinct_strings(output: bytes) -> Sequence[str]:
    """Every string and key of valid JSON, as it reads, once."""
    tokens = json_text.strings(output)
    return list(
        dict.fromkeys(
            json_text.replace_surrogates(json_text.decode(output[token.start : token.end]))
            for token in tokens
        )
    )


def _rewrite(output: bytes, says: dict[str, str], found: _Found) -> bytes:
    """Valid JSON whose strings say what they may."""
    names = KeyNames(lambda step: says.get(json_text.replace_surrogates(step), step))

    def clean(token: json_text.StringToken, text: str) -> str | None:
        text = json_text.replace_surrogates(text)
        new = says.get(text)
        if new is None:
            return None
        found.add(names.pointer(token.path), text.encode(), new.encode())
        return names.rename(token.path, new) if token.is_key else new

    return json_text.rewrite(output, clean)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
