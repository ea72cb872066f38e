"""What a container does, and how that changes. A value and a function; no I/O.

Two kinds of events arrive, in any order and sometimes twice: what clawbox decides (it stops a container, its
time is over) and what the engine tells (it exited, it is gone). A decision changes no state by itself but is
remembered, so that the exit that follows is understood. A finished container never changes again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

from clawbox.containers.gate import NOT_EXECUTABLE, NOT_FOUND
from clawbox.errors import ClawboxError, Reason


class State(enum.Enum):
    """What a container does; the values are kept, so they never change."""

    CREATING = "creating"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    STOPPED = "stopped"
    KILLED = "killed"
    LOST = "lost"

    @property
    def is_active(self) -> bool:
        """Whether it counts against limits and can still change."""
        return self in {State.CREATING, State.RUNNING, State.PAUSED}


class Ending(enum.Enum):
    """Why clawbox ends a container; the values are kept."""

    TIMEOUT = "timeout"
    """``timeout_ms`` after its start."""
    LIFETIME = "lifetime"
    """``max_lifetime_ms`` after its creation."""
    STOP = "stop"
    SHUTDOWN = "shutdown"
    """The server stops."""
    KILL = "kill"
    UNSAFE = "unsafe"
    """It was not what the grant says, or its way out could not be made safe."""
    WORKSPACE = "workspace"
    """Its workspace holds more than it may."""


_SIGKILL_CODE: Final = 128 + 9

_ENDED: Final = {
    Ending.TIMEOUT: (State.TIMED_OUT, "its time limit was reached"),
    Ending.LIFETIME: (State.TIMED_OUT, "its lifetime was over"),
    Ending.STOP: (State.STOPPED, "it was stopped"),
    Ending.SHUTDOWN: (State.STOPPED, "the server was stopped"),
    Ending.KILL: (State.KILLED, "it was killed"),
    Ending.UNSAFE: (State.FAILED, "it was ended because it was not as safe as it must be"),
    Ending.WORKSPACE: (State.FAILED, "its workspace holds more than the server allows"),
}


@dataclass(frozen=True, slots=True)
class Status:
    """How a container is, and why."""

    state: State = State.CREATING
    reason: str = "it is being made"
    exit_code: int | None = None
    """As the engine tells it, so 128 + n may be signal n. None: it runs, or nobody knows."""
    oom_killed: bool = False
    ending: Ending | None = None
    """Why clawbox ends it; remembered until it has ended, and after."""
    outside_signal: int | None = None
    """The last signal that somebody else had the engine send it."""


# Events


@dataclass(frozen=True, slots=True)
class Started:
    """Its program was let go."""


@dataclass(frozen=True, slots=True)
class Paused:
    """The engine froze its processes, whoever asked for it."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The engine lets its processes go on."""


@dataclass(frozen=True, slots=True)
class EndingBegun:
    """Clawbox is about to end it."""

    ending: Ending


@dataclass(frozen=True, slots=True)
class Signalled:
    """The engine sent it a signal that clawbox did not ask for."""

    signal: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The engine says that its program ended."""

    exit_code: int
    oom_killed: bool = False
    """Whether a process in it was killed for memory, its program or another."""
    error: str = ""
    """What the engine says of a program that it could not start."""


@dataclass(frozen=True, slots=True)
class Vanished:
    """The engine knows no such container any more."""


Event = Started | Paused | Resumed | EndingBegun | Signalled | Exited | Vanished


def after(status: Status, event: Event) -> Status:
    """The status after an event; the same one when it says nothing new."""
    if not status.state.is_active:
        return status
    match event:
        case Started():
            if status.state is not State.CREATING:
                return status
            return replace(status, state=State.RUNNING, reason="its program runs")
        case Paused():
            if status.state is not State.RUNNING:
                return status
            return replace(status, state=State.PAUSED, reason="its processes are frozen")
        case Resumed():
            if status.state is not State.PAUSED:
                return status
            return replace(status, state=State.RUNNING, reason="its program runs")
        case EndingBegun(ending):
            return _begin_ending(status, ending)
        case Signalled(signal):
            return status if status.ending is not None else replace(status, outside_signal=signal)
        case Exited():
            return _exited(status, event)
        case Vanished():
            if status.ending is not None:
                state, reason = _ENDED[status.ending]
                return replace(status, state=state, reason=f"{reason}; nobody knows how it exited")
            return replace(status, state=State.LOST, reason="it is gone, and nobody knows how it ended")


def _begin_ending(status: Status, ending: Ending) -> Status:
    # The first reason is the true one, but a caller who kills does not wait for what is ending slowly.
    first = status.ending is None
    sooner = ending is Ending.KILL and status.ending in {Ending.STOP, Ending.SHUTDOWN}
    return replace(status, ending=ending) if first or sooner else status


def _exited(status: Status, event: Exited) -> Status:
    code = event.exit_code
    # The engine says only that something in it was killed for memory, which its program may have outlived.
    out_of_memory = event.oom_killed and code == _SIGKILL_CODE
    ended = replace(status, exit_code=code, oom_killed=out_of_memory)
    if status.ending is not None:
        state, reason = _ENDED[status.ending]
        return replace(ended, state=state, reason=reason)
    if out_of_memory:
        return replace(ended, state=State.FAILED, reason="it was killed because its memory was used up")
    if _killed_outside(status, code):
        return replace(
            ended,
            state=State.KILLED,
            reason=f"somebody outside clawbox ended it (signal {status.outside_signal})",
        )
    if event.error:
        # The engine's words are for the log; they hold paths of the host.
        return replace(ended, state=State.FAILED, exit_code=None, reason="it could not be started")
    if code == 0:
        return replace(ended, state=State.COMPLETED, reason="its program exited with 0")
    hint = {
        NOT_FOUND: "; 127 is what the gate says when there is no such command",
        NOT_EXECUTABLE: "; 126 is what the gate says when the command cannot be executed",
    }.get(code, f"; signal {code - 128} gives this number" if 128 < code < 128 + 65 else "")
    return replace(ended, state=State.FAILED, reason=f"its program exited with {code}{hint}")


def _killed_outside(status: Status, exit_code: int) -> bool:
    # A signal that was survived long ago ended nothing: the exit code must say the same signal.
    signal = status.outside_signal
    return signal is not None and exit_code == 128 + signal


# What may be asked of a container


class Operation(enum.Enum):
    """What a caller asks of a container, where its state matters."""

    EXEC = "run a process in it"
    WRITE = "change its files"
    READ = "read its files"
    PAUSE = "pause it"
    RESUME = "resume it"
    REMOVE = "remove it"


_MAY: Final = {
    Operation.EXEC: frozenset({State.RUNNING}),
    Operation.WRITE: frozenset({State.RUNNING, State.PAUSED}),
    Operation.READ: frozenset(State) - {State.CREATING},
    # What is so already is answered as it is.
    Operation.PAUSE: frozenset({State.RUNNING, State.PAUSED}),
    Operation.RESUME: frozenset({State.RUNNING, State.PAUSED}),
    Operation.REMOVE: frozenset(state for state in State if not state.is_active),
}


def require(status: Status, operation: Operation, container_id: str) -> None:
    """Raise WRONG_STATE unless a container is in a state in which ``operation`` can be done."""
    if status.state not in _MAY[operation]:
        raise ClawboxError(
            Reason.WRONG_STATE,
            "the container {container_id} is {state}: one cannot {operation}",
            precondition=("STATE", container_id),
            container_id=container_id,
            state=status.state.name,
            operation=operation.value,
        )


# Time


def expiry(
    *, created: float, started: float | None, timeout: float | None, lifetime: float | None
) -> tuple[float, Ending] | None:
    """When a time limit ends a container, and which; None when it has none. All in seconds.

    ``timeout`` counts from its start, so not before it has one; ``lifetime`` from its creation.
    """
    ends = []
    if timeout is not None and started is not None:
        ends.append((started + timeout, Ending.TIMEOUT))
    if lifetime is not None:
        ends.append((created + lifetime, Ending.LIFETIME))
    return min(ends, key=lambda end: end[0], default=None)
