from clawbox.wasm.capture import Capture
from clawbox.wasm.egress import NoEgress
from clawbox.wasm.guest import Ended
from clawbox.wasm.host import Session
from clawbox.wasm.model import Limits, Outcome
from clawbox.wasm.verdict import conclude, near_limit

LIMITS = Limits(timeout_ms=2000, fuel=1000, memory_bytes=256 << 20)


def concluded(ended, *, left=1, peak=0, expired=False, calls=0, wrote=0):
    capture = Capture(LIMITS, streamed=False, keep_output=False, send=lambda _: None, stop=lambda: None)
    capture.stdout(b"." * wrote)
    session = Session(LIMITS.host_calls, LIMITS.log_bytes, NoEgress(), capture.log, calls=calls)
    return conclude(ended, LIMITS, capture, session, left=left, peak=peak, expired=expired)


def test_memory_near_its_limit_explains_a_failure():
    assert near_limit(256 << 20, 256 << 20)
    assert near_limit(245 << 20, 256 << 20)
    assert not near_limit(200 << 20, 256 << 20)
    assert not near_limit(1 << 20, 3 << 20)


def test_a_run_that_ended_well_ended_well_though_its_time_fuel_and_memory_are_used_up():
    ended = Ended(Outcome.OK, output=b"1")

    assert concluded(ended, left=0, peak=LIMITS.memory_bytes, expired=True) is ended


def test_what_it_wrote_or_asked_of_the_host_beyond_its_limits_counts_however_it_ended():
    ended = Ended(Outcome.OK, output=b"1")

    assert concluded(ended, wrote=LIMITS.stdout_bytes + 1).outcome is Outcome.OUTPUT_EXCEEDED
    assert concluded(ended, calls=LIMITS.host_calls + 1).outcome is Outcome.HOST_CALLS_EXCEEDED


def test_a_trap_is_explained_by_the_limit_that_was_reached():
    trap = Ended(Outcome.TOOL_ERROR, "trap: unreachable code reached", trapped=True)

    assert concluded(trap) is trap
    assert concluded(trap, expired=True).outcome is Outcome.TIMEOUT
    assert concluded(trap, left=0).outcome is Outcome.FUEL_EXHAUSTED
    explained = concluded(trap, peak=LIMITS.memory_bytes)
    assert explained.outcome is Outcome.MEMORY_EXCEEDED
    assert explained.message.endswith("(trap: unreachable code reached)")


def test_an_error_that_a_tool_returned_is_no_timeout():
    error = Ended(Outcome.TOOL_ERROR, "no such file", output=b"no such file")

    assert concluded(error, left=0, expired=True) is error
