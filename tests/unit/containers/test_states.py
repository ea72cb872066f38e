"""How a container's state follows from what clawbox decides and what the engine tells."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbox.containers.states import (
    Ending,
    EndingBegun,
    Exited,
    Operation,
    Paused,
    Resumed,
    Signalled,
    Started,
    State,
    Status,
    Vanished,
    after,
    expiry,
    require,
)
from clawbox.errors import ClawboxError, Reason


def follow(*events, status=None):
    for event in events:
        status = after(status or Status(), event)
    return status


def test_a_program_that_exits_with_0_is_completed():
    status = follow(Started(), Exited(0))

    assert (status.state, status.exit_code, status.oom_killed) == (State.COMPLETED, 0, False)
    assert status.reason == "its program exited with 0"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1, "its program exited with 1"),
        (137, "its program exited with 137; signal 9 gives this number"),
        (127, "its program exited with 127; 127 is what the gate says when there is no such command"),
        (255, "its program exited with 255"),
    ],
)
def test_a_program_that_exits_with_another_code_has_failed(code, reason):
    status = follow(Started(), Exited(code))

    assert (status.state, status.exit_code, status.reason) == (State.FAILED, code, reason)


def test_one_that_was_killed_for_memory_has_failed_and_says_so():
    status = follow(Started(), Exited(137, oom_killed=True))

    assert (status.state, status.exit_code, status.oom_killed) == (State.FAILED, 137, True)
    assert "memory" in status.reason


@pytest.mark.parametrize(("code", "state"), [(0, State.COMPLETED), (3, State.FAILED)])
def test_one_that_outlived_what_was_killed_for_memory_ended_by_itself(code, state):
    status = follow(Started(), Exited(code, oom_killed=True))

    assert (status.state, status.exit_code, status.oom_killed) == (state, code, False)
    assert status.reason == f"its program exited with {code}"


def test_one_that_could_not_be_started_has_failed_without_an_exit_code():
    status = follow(Exited(127, error="OCI runtime create failed: /var/lib/docker/…"))

    assert (status.state, status.exit_code) == (State.FAILED, None)
    assert status.reason == "it could not be started"


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        (Ending.TIMEOUT, State.TIMED_OUT),
        (Ending.LIFETIME, State.TIMED_OUT),
        (Ending.STOP, State.STOPPED),
        (Ending.SHUTDOWN, State.STOPPED),
        (Ending.KILL, State.KILLED),
        (Ending.UNSAFE, State.FAILED),
    ],
)
def test_what_clawbox_ends_is_named_by_why(ending, state):
    for exit_code in (0, 1, 137, 143):
        status = follow(Started(), EndingBegun(ending), Exited(exit_code))
        assert (status.state, status.exit_code) == (state, exit_code)
    status = follow(Started(), Paused(), EndingBegun(ending), Exited(137, oom_killed=True))
    assert (status.state, status.oom_killed) == (state, True)
    gone = follow(Started(), EndingBegun(ending), Vanished())
    assert (gone.state, gone.exit_code) == (state, None)


def test_deciding_to_end_it_changes_no_state_yet():
    assert follow(Started(), EndingBegun(Ending.STOP)).state is State.RUNNING


def test_the_first_reason_to_end_it_counts_but_killing_does_not_wait_for_stopping():
    def state(*endings):
        return follow(Started(), *(EndingBegun(ending) for ending in endings), Exited(137)).state

    assert state(Ending.TIMEOUT, Ending.STOP) is State.TIMED_OUT
    assert state(Ending.STOP, Ending.TIMEOUT) is State.STOPPED
    assert state(Ending.TIMEOUT, Ending.KILL) is State.TIMED_OUT
    assert state(Ending.STOP, Ending.KILL) is State.KILLED
    assert state(Ending.SHUTDOWN, Ending.KILL) is State.KILLED
    assert state(Ending.KILL, Ending.STOP) is State.KILLED


def test_one_that_somebody_outside_killed_is_killed():
    status = follow(Started(), Signalled(9), Exited(137))

    assert (status.state, status.exit_code) == (State.KILLED, 137)
    assert status.reason == "somebody outside clawbox ended it (signal 9)"
    assert follow(Started(), Signalled(15), Signalled(9), Exited(137)).state is State.KILLED


def test_a_signal_from_outside_that_was_survived_ended_nothing():
    assert follow(Started(), Signalled(1), Exited(0)).state is State.COMPLETED
    assert follow(Started(), Signalled(15), Exited(1)).state is State.FAILED


def test_signals_that_clawbox_sends_itself_are_nobody_elses():
    status = follow(Started(), EndingBegun(Ending.STOP), Signalled(15), Exited(143))

    assert (status.state, status.outside_signal) == (State.STOPPED, None)


def test_one_that_is_gone_is_lost_and_no_exit_code_is_made_up():
    status = follow(Started(), Vanished())

    assert (status.state, status.exit_code) == (State.LOST, None)


def test_pausing_and_resuming():
    assert follow(Started(), Paused()).state is State.PAUSED
    assert follow(Started(), Paused(), Paused(), Resumed()).state is State.RUNNING
    assert follow(Started(), Resumed()).state is State.RUNNING
    assert follow(Paused()).state is State.CREATING
    assert follow(Started(), Paused(), Exited(137)).state is State.FAILED


def test_one_may_end_before_anybody_heard_that_it_started():
    assert follow(Exited(0)).state is State.COMPLETED
    assert follow(Exited(0), Started()).state is State.COMPLETED


EVENTS = st.one_of(
    *(st.just(event) for event in (Started(), Paused(), Resumed(), Vanished())),
    st.builds(EndingBegun, st.sampled_from(Ending)),
    st.builds(Signalled, st.integers(1, 64)),
    st.builds(Exited, st.integers(0, 255), st.booleans()),
)


@given(st.lists(EVENTS, max_size=12))
def test_however_events_arrive_a_finished_container_stays_as_it_is(events):
    status = Status()
    for event in events:
        following = after(status, event)
        if not status.state.is_active:
            assert following == status
        assert following.reason
        assert following.exit_code is None or not following.state.is_active
        assert after(following, event) == following or not isinstance(event, Exited | Vanished)
        status = following
    ended = [event for event in events if isinstance(event, Exited | Vanished)]
    assert status.state.is_active is not bool(ended)


MAY = {
    Operation.EXEC: {State.RUNNING},
    Operation.WRITE: {State.RUNNING, State.PAUSED},
    Operation.PAUSE: {State.RUNNING, State.PAUSED},
    Operation.RESUME: {State.RUNNING, State.PAUSED},
    Operation.REMOVE: set(State) - {State.CREATING, State.RUNNING, State.PAUSED},
    Operation.READ: set(State) - {State.CREATING},
}


@pytest.mark.parametrize(("operation", "state"), list(itertools.product(Operation, State)))
def test_what_cannot_be_done_in_a_state_is_said(operation, state):
    if state in MAY[operation]:
        require(Status(state=state), operation, "c1")
        return
    with pytest.raises(ClawboxError) as caught:
        require(Status(state=state), operation, "c1")
    assert caught.value.reason is Reason.WRONG_STATE
    assert caught.value.precondition == ("STATE", "c1")
    assert caught.value.metadata["state"] == state.name


def test_time_limits_count_from_start_and_from_creation():
    assert expiry(created=10, started=20, timeout=None, lifetime=None) is None
    assert expiry(created=10, started=None, timeout=5, lifetime=None) is None
    assert expiry(created=10, started=20, timeout=5, lifetime=None) == (25, Ending.TIMEOUT)
    assert expiry(created=10, started=20, timeout=5, lifetime=14) == (24, Ending.LIFETIME)
    assert expiry(created=10, started=None, timeout=5, lifetime=100) == (110, Ending.LIFETIME)
