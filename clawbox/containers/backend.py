"""What clawbox asks of whatever runs containers: the Docker engine now, a cluster's pods later.

Ids are the backend's own (``engine_id``), never those that callers see. Every method that asks the engine
raises :class:`~clawbox.errors.ClawboxError` with DOCKER_UNAVAILABLE when it does not answer, and
:class:`EngineError` when it answers that it will not.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from clawbox.containers.image_facts import ImageFacts


class EngineError(Exception):
    """The engine refused, or failed. Its words are for the log: they hold paths of the host."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{status}: {words}")
        self.status = status
        """HTTP status."""
        self.words = words


class NotThereError(EngineError):
    """The engine has no such container, image or exec."""


class ConflictError(EngineError):
    """What was named is in a state in which it cannot be done, or the name is taken."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine says of itself."""

    version: str
    api_version: str
    runtimes: tuple[str, ...]
    default_runtime: str
    runc_version: str = ""
    """Empty where the engine does not say."""
    cgroup_version: int = 1
    cgroup_driver: str = "cgroupfs"
    security: tuple[str, ...] = ()
    """``seccomp``, ``apparmor``, ``selinux``, ``rootless``, ``userns`` …"""
    engine_id: str = ""
    """The engine's own, which stays the same for as long as its data does."""


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """How a container is, as the engine says; not its environment, in which its token is."""

    engine_id: str
    name: str
    """Without a slash."""
    status: str
    """``created``, ``running``, ``paused``, ``restarting``, ``removing``, ``exited`` or ``dead``."""
    pid: int = 0
    """Of its first process, as the engine's host counts; 0: it does not run."""
    exit_code: int | None = None
    """None: it has not run, or still does."""
    oom_killed: bool = False
    """Whether a process in it was killed for memory, its first or another."""
    error: str = ""
    """The engine's words for a start that failed."""
    started_ms: int | None = None
    """Milliseconds since 1970."""
    finished_ms: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    """Entrypoint and arguments, with the gate."""
    working_dir: str = ""
    image_id: str = ""
    user: str = ""
    runtime: str = ""
    cgroup_parent: str = ""

    @property
    def runs(self) -> bool:
        """Whether it has processes."""
        return self.status in {"running", "paused"}


@dataclass(frozen=True, slots=True)
class Listed:
    """One container of a list."""

    engine_id: str
    name: str
    status: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ImageFound:
    """An image that the engine has."""

    facts: ImageFacts
    digests: tuple[str, ...] = ()
    """``repository@sha256:…`` under which registries know it."""


class EngineAction(enum.Enum):
    """What happened to a container."""

    START = "start"
    DIE = "die"
    OOM = "oom"
    KILL = "kill"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    DESTROY = "destroy"


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """Something happened to a container, of whichever installation."""

    action: EngineAction
    engine_id: str
    labels: Mapping[str, str]
    time_ns: int
    exit_code: int | None = None
    """With DIE."""
    signal: int | None = None
    """With KILL."""


@dataclass(frozen=True, slots=True)
class PullStep:
    """How far a pull has come: bytes, and what is being done in the engine's words."""

    received_bytes: int
    total_bytes: int
    detail: str


class Stream(enum.Enum):
    """Where a program writes to."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line of a container's log with its line feed, or a piece of a long one."""

    stream: Stream
    time_ns: int
    """When the engine received it, since 1970."""
    data: bytes


@dataclass(frozen=True, slots=True)
class UsageSample:
    """What a container uses; 0 where the engine does not say."""

    time_ns: int
    memory_bytes: int
    """Without page cache that can be dropped."""
    memory_limit_bytes: int
    cpu_ns: int
    """Since its start."""
    pids: int
    pids_limit: int
    block_read_bytes: int
    block_write_bytes: int


@dataclass(frozen=True, slots=True)
class ExecFacts:
    """How a process inside a container is."""

    running: bool
    pid: int = 0
    """As the engine's host counts; 0: not known (yet)."""
    exit_code: int | None = None


class ExecStream(Protocol):
    """A process's input and output."""

    async def read(self) -> tuple[Stream, bytes] | None:
        """The next piece of output, at most 64 KiB; None when there is no more. With a TTY all is STDOUT."""

    async def write(self, data: bytes) -> None:
        """Give it input; returns when there is room for more. Raises :class:`EngineError` once it is gone."""

    async def close_input(self) -> None:
        """No more input comes."""

    async def close(self) -> None:
        """Let go of the connection; the process is not ended by that."""


class ContainerBackend(Protocol):
    """Whatever runs containers."""

    async def about(self) -> EngineFacts:
        """What it is; also how one asks whether it answers."""

    def events(self, since_ns: int) -> AsyncGenerator[EngineEvent]:
        """What happens to containers from ``since_ns`` (since 1970) on. Raises when it breaks off."""

    async def image(self, name: str) -> ImageFound | None:
        """The image of that reference or id; None: the engine does not have it."""

    def pull(self, reference: str) -> AsyncGenerator[PullStep]:
        """Pull an image; complete when the iteration ends."""

    async def create(self, name: str, body: dict[str, Any]) -> str:
        """Make a container (Engine API, ``POST /containers/create``); returns its ``engine_id``."""

    async def start(self, engine_id: str) -> None:
        """Start it: what runs then is its gate."""

    async def inspect(self, engine_id: str) -> ContainerFacts | None:
        """How it is, by id or name; None: there is none."""

    async def list(self, label: str) -> list[Listed]:
        """Every container, in whatever state, that has the label (``key`` or ``key=value``)."""

    async def signal(self, engine_id: str, name: str) -> None:
        """Send its first process a signal (``SIGTERM``). Raises ConflictError when it does not run."""

    async def pause(self, engine_id: str) -> None:
        """Freeze it. Raises ConflictError when it is frozen or does not run."""

    async def unpause(self, engine_id: str) -> None:
        """Let it go on. Raises ConflictError when it is not frozen."""

    async def remove(self, engine_id: str) -> None:
        """Kill it when it runs, and remove it with its volumes; nothing happens when it is not there."""

    def logs(self, engine_id: str, *, since_ns: int = 0, follow: bool = False) -> AsyncGenerator[LogEntry]:
        """Its log from ``since_ns`` on; with ``follow`` until it has ended."""

    async def usage(self, engine_id: str) -> UsageSample:
        """What it uses now, at once."""

    async def create_exec(self, engine_id: str, body: dict[str, Any]) -> str:
        """Prepare a process (Engine API, ``POST /containers/ID/exec``); returns the exec's id."""

    async def start_exec(self, exec_id: str, *, tty: bool, rows: int = 24, columns: int = 80) -> ExecStream:
        """Start it, its streams attached: what runs then is its gate."""

    async def inspect_exec(self, exec_id: str) -> ExecFacts:
        """How it is."""

    async def resize_exec(self, exec_id: str, *, rows: int, columns: int) -> None:
        """Tell its terminal another size."""

    async def close(self) -> None:
        """Let go of all connections."""
