"""What the logs look like, and what is never in them."""

import io
import json
import logging

import pytest
import structlog

from clawbox.config import LoggingSettings
from clawbox.telemetry import configure_logging, request_id
from clawbox.telemetry.logs import MASK


@pytest.fixture
def restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("asyncio", "grpc", "watchfiles")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)
    structlog.reset_defaults()


pytestmark = pytest.mark.usefixtures("restored")


def _configured(**settings) -> io.StringIO:
    out = io.StringIO()
    configure_logging(LoggingSettings(**settings), out)
    return out


def test_an_entry_is_one_json_object_a_line_with_the_request_id() -> None:
    out = _configured()
    token = request_id.set("req-1")
    try:
        structlog.stdlib.get_logger("clawbox.test").info("ran\na tool", tool="echo", bytes=3)
    finally:
        request_id.reset(token)
    (line,) = out.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "event": "ran\na tool",
        "tool": "echo",
        "bytes": 3,
        "level": "info",
        "request_id": "req-1",
    }


def test_text_is_for_people() -> None:
    out = _configured(format="text")
    structlog.get_logger().warning("low on memory", free=3)
    assert "low on memory" in out.getvalue()
    assert "free=3" in out.getvalue()


def test_the_level_is_kept() -> None:
    out = _configured(level="warning")
    structlog.get_logger().info("unimportant")
    logging.getLogger("some.library").info("unimportant")
    assert out.getvalue() == ""


def test_entries_of_libraries_have_the_same_form() -> None:
    out = _configured()
    logging.getLogger("some.library").warning("odd: %s", "thing", extra={"token": "swordfish"})
    entry = json.loads(out.getvalue())
    assert (entry["event"], entry["logger"], entry["token"]) == ("odd: thing", "some.library", MASK)


@pytest.mark.parametrize(
    "key", ["authorization", "Authorization", "token", "auth_token", "password", "api_key", "master_key"]
)
@pytest.mark.parametrize("format_", ["json", "text"])
def test_values_under_secret_keys_are_masked_at_any_depth(key, format_) -> None:
    out = _configured(format=format_)
    structlog.get_logger().info("x", **{key: "swordfish"}, deep={"list": [{key: "swordfish"}]})
    assert "swordfish" not in out.getvalue()
    assert MASK in out.getvalue()


def test_bearer_tokens_in_text_are_masked() -> None:
    out = _configured()
    structlog.get_logger().info("header was Bearer abcdef0123456789", header="bearer abcdef0123456789")
    assert "abcdef" not in out.getvalue()


def test_ordinary_keys_are_not_masked() -> None:
    out = _configured()
    structlog.get_logger().info("x", tokens_refused=3, page_token_kind="none")
    assert MASK not in out.getvalue()


@pytest.mark.parametrize("format_", ["json", "text"])
def test_tracebacks_show_no_local_variables(format_) -> None:
    out = _configured(format=format_)

    def broken() -> None:
        local = "sword" + "fish"
        raise RuntimeError(len(local))

    try:
        broken()
    except RuntimeError as error:
        structlog.get_logger().error("unexpected", exc_info=error)
    assert "RuntimeError: 9" in out.getvalue()
    assert "swordfish" not in out.getvalue()


@pytest.mark.parametrize("level", ["debug", "info"])
def test_changes_of_watched_files_are_not_told(level) -> None:
    # The log itself may be a file in a watched folder.
    out = _configured(level=level)
    logging.getLogger("watchfiles.main").info("1 change detected")
    assert out.getvalue() == ""
