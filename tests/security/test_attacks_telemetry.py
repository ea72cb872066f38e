"""What callers could do to the logs and the metrics."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from typing import TYPE_CHECKING

import pytest
import structlog

from clawbox.config import LoggingSettings, MetricsSettings
from clawbox.telemetry import Metrics, configure_logging
from clawbox.telemetry.endpoint import MetricsEndpoint
from tests.unit.telemetry.test_logs import restored

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["restored"]

NAME = "x\n2026-01-01 [info] forged \x1b[2J\x9b1m\u2028\r"


def by_structlog() -> None:
    structlog.get_logger("test").info("refused", tool=NAME, short="\x1b[31m")


def by_logging() -> None:
    logging.getLogger("test").warning("refused %s", NAME)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("format_", ["text", "json"])
@pytest.mark.parametrize("write", [by_structlog, by_logging])
def test_no_name_begins_a_line_of_the_log_or_speaks_to_the_terminal(
    format_: str, write: Callable[[], None]
) -> None:
    out = io.StringIO()
    configure_logging(LoggingSettings.model_validate({"format": format_}), out)
    write()
    text = out.getvalue()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert "forged" in text


@pytest.mark.usefixtures("restored")
def test_tracebacks_keep_their_lines() -> None:
    out = io.StringIO()
    configure_logging(LoggingSettings(format="text"), out)
    try:
        int("\x1b[31m" + "\x9b")
    except ValueError:
        logging.getLogger("test").exception("\x1b[31m")
    assert out.getvalue().count("\n") > 2
    assert "\x1b" not in out.getvalue()


async def test_who_asks_for_metrics_without_end_leaves_most_of_the_loop_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    took, scrapes = 0.02, 8

    async with MetricsEndpoint(MetricsSettings(port=0), Metrics()) as endpoint:
        answer = endpoint._answer

        def slow(head: bytes) -> bytes:
            time.sleep(took)  # what a thousand tools' histograms cost
            return answer(head)

        monkeypatch.setattr(endpoint, "_answer", slow)

        async def scrape() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(scrapes):
                group.create_task(scrape())
        assert time.perf_counter() - began > 3.5 * took * scrapes
