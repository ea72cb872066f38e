"""The Docker engine as a :class:`~clawbox.containers.backend.ContainerBackend`."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, Final, Self

from clawbox.containers.backend import ConflictError, EngineError, NotThereError
from clawbox.containers.docker import answers, execs
from clawbox.containers.docker.address import EngineAddress
from clawbox.containers.docker.connection import (
    EngineConnection,
    answered,
    translated,
    unavailable,
)
from clawbox.containers.docker.frames import LineEnds, LogReader
from clawbox.containers.docker.pulls import PullProgress, failure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from clawbox.containers.backend import (
        ContainerFacts,
        EngineEvent,
        EngineFacts,
        ExecFacts,
        ExecStream,
        ImageFound,
        Listed,
        LogEntry,
        PullStep,
        UsageSample,
    )

ABOUT_SECONDS: Final = 10.0
ASK_SECONDS: Final = 30.0
"""Asking about a container waits while it is being started."""
DO_SECONDS: Final = 120.0
"""For creating, starting and removing, on a disk that is busy."""
QUIET_PULL_SECONDS: Final = 300.0
"""A layer is verified without a word."""
REMOVAL_POLL_SECONDS: Final = 0.1
_MAX_EVENT_BYTES: Final = 4 << 20
_MAX_PROGRESS_BYTES: Final = 1 << 20
_CONSOLE_SIZE_API: Final = (1, 42)
"""The first in which an exec begins with a size."""
_LINE_ENDS_API: Final = (1, 42)
"""Docker 23: the first whose log driver ``local`` tells where a long line ends."""


class DockerBackend:
    """An async context manager around one engine.

    Opening it asks nothing: an engine that is away answers DOCKER_UNAVAILABLE to each call until it is back.
    A call that is cancelled leaves no connection and no task; the engine may all the same have done what it
    was asked. Whoever leaves an iteration before its end closes it (``aclose``).
    """

    def __init__(self, url: str, environment: Mapping[str, str] | None = None) -> None:
        """``url`` is the setting ``containers.docker_url``; raises ValueError for what is none."""
        self._connection = EngineConnection(
            EngineAddress.parse(url, os.environ if environment is None else environment)
        )
        self._execs: set[execs.ExecConnection] = set()

    async def __aenter__(self) -> Self:
        self._connection.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of all connections, those of execs and streams among them."""
        try:
            for stream in tuple(self._execs):
                await stream.close()
        finally:
            await self._connection.close()

    async def about(self) -> EngineFacts:
        """What it is; also how one asks whether it answers."""
        async with answered(ABOUT_SECONDS):
            version = await self._connection.version()
            info = await (await self._connection.docker()).system.info()
            return answers.engine_facts(version, info, await self._connection.api())

    async def events(self, since_ns: int) -> AsyncGenerator[EngineEvent]:
        """What happens to containers from ``since_ns`` (since 1970) on.

        The engine remembers the last 256 events of all kinds: who needs more compares with a list.
        It never ends by itself: DOCKER_UNAVAILABLE says that it broke off.
        """
        filters = {"type": ["container"], "event": list(answers.EVENTS)}
        params = {"since": _engine_time(since_ns), "filters": json.dumps(filters)}
        async with self._connection.stream("GET", "events", params, seconds=ASK_SECONDS) as stream:
            async for line in stream.lines(_MAX_EVENT_BYTES):
                with translated():
                    event = answers.engine_event(json.loads(line))
                if event is not None:
                    yield event
        raise unavailable()

    async def image(self, name: str) -> ImageFound | None:
        """The image of that reference or id; None: the engine does not have it."""
        try:
            async with answered(ASK_SECONDS):
                docker = await self._connection.docker()
                return answers.image_found(await docker.images.inspect(name))
        except NotThereError:
            return None

    async def pull(self, reference: str) -> AsyncGenerator[PullStep]:
        """Pull an image, without credentials; complete when the iteration ends.

        ``reference`` has a tag or a digest: without either the engine would pull every tag. Raises
        NotThereError when the registry does not have it, or does not say so to strangers. Closing the
        iteration ends the pull.
        """
        if ":" not in reference.rpartition("/")[2]:
            raise ValueError(f"{reference!r} has neither a tag nor a digest")
        progress = PullProgress()
        params = {"fromImage": reference}
        try:
            async with self._connection.stream(
                "POST", "images/create", params, seconds=QUIET_PULL_SECONDS
            ) as stream:
                async for line in stream.lines(_MAX_PROGRESS_BYTES, QUIET_PULL_SECONDS):
                    with translated():
                        step = progress.step(json.loads(line))
                    yield step
        except EngineError as error:
            raise failure(error.status, error.words) from error

    async def create(self, name: str, body: dict[str, Any]) -> str:
        """Make a container (``POST /containers/create``); returns its ``engine_id``.

        Raises ConflictError when the name is taken, NotThereError when the image is not there.
        """
        async with answered(DO_SECONDS):
            docker = await self._connection.docker()
            return (await docker.containers.create(body, name=name)).id

    async def start(self, engine_id: str) -> None:
        """Start it; nothing happens when it runs."""
        async with answered(DO_SECONDS):
            docker = await self._connection.docker()
            await docker.containers.container(engine_id).start()

    async def inspect(self, engine_id: str) -> ContainerFacts | None:
        """How it is, by id or name; None: there is none."""
        try:
            async with answered(ASK_SECONDS):
                docker = await self._connection.docker()
                return answers.container_facts(await docker.containers.container(engine_id).show())
        except NotThereError:
            return None

    async def list(self, label: str) -> list[Listed]:
        """Every container, in whatever state, that has the label (``key`` or ``key=value``)."""
        params = {"all": "1", "filters": json.dumps({"label": [label]})}
        async with answered(ASK_SECONDS):
            return answers.listed(await self._connection.json("GET", "containers/json", params=params))

    async def signal(self, engine_id: str, name: str) -> None:
        """Send its first process a signal (``SIGTERM``). Raises ConflictError when it does not run."""
        async with answered(ASK_SECONDS):
            docker = await self._connection.docker()
            await docker.containers.container(engine_id).kill(signal=name)

    async def pause(self, engine_id: str) -> None:
        """Freeze it. Raises ConflictError when it is frozen or does not run."""
        async with answered(ASK_SECONDS):
            docker = await self._connection.docker()
            await docker.containers.container(engine_id).pause()

    async def unpause(self, engine_id: str) -> None:
        """Let it go on. Raises ConflictError when it is not frozen."""
        async with answered(ASK_SECONDS):
            docker = await self._connection.docker()
            await docker.containers.container(engine_id).unpause()

    async def remove(self, engine_id: str) -> None:
        """Kill it when it runs, and remove it with its volumes; nothing happens when it is not there.

        Returns when it is gone, also when somebody else is removing it.
        """
        async with answered(DO_SECONDS):
            docker = await self._connection.docker()
            while True:
                try:
                    with translated():
                        await docker.containers.container(engine_id).delete(force=True, v=True)
                except NotThereError:
                    return
                except ConflictError as error:
                    if "already in progress" not in error.words:
                        raise
                    # The next answer says whether it has come to its end.
                    await asyncio.sleep(REMOVAL_POLL_SECONDS)
                else:
                    return

    async def logs(
        self, engine_id: str, *, since_ns: int = 0, follow: bool = False
    ) -> AsyncGenerator[LogEntry]:
        """Its log from ``since_ns`` on, that time included; with ``follow`` until it has ended.

        A line of more than 16 KiB comes in pieces, all with the time of the first. Of a container whose log
        driver is ``json-file`` what is not UTF-8 has become U+FFFD in the engine's own file; of ``local``'s
        lines see :class:`~clawbox.containers.docker.frames.LineEnds`. An engine that stops in good order ends
        this as a container does.
        """
        params = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": str(int(follow))}
        if since_ns:
            params["since"] = _engine_time(since_ns)
        path = f"containers/{engine_id}/logs"
        reader = LogReader(LineEnds() if await self._forgets_line_ends(engine_id) else None)
        async with self._connection.stream("GET", path, params, seconds=ASK_SECONDS) as stream:
            while data := await stream.read(None if follow else ASK_SECONDS):
                for entry in reader.feed(data):
                    yield entry
        if reader.within:
            raise unavailable()

    async def _forgets_line_ends(self, engine_id: str) -> bool:
        """Whether the log lacks the ends of long lines. Raises NotThereError."""
        async with answered(ASK_SECONDS):
            api = await self._connection.api()
            if tuple(int(part) for part in api.split(".")) >= _LINE_ENDS_API:
                return False
            docker = await self._connection.docker()
            said = await docker.containers.container(engine_id).show()
            return bool(said["HostConfig"]["LogConfig"]["Type"] == "local")

    async def usage(self, engine_id: str) -> UsageSample:
        """What it uses now, at once. Raises ConflictError when it does not run."""
        params = {"stream": "0", "one-shot": "1"}
        path = f"containers/{engine_id}/stats"
        async with answered(ASK_SECONDS):
            sample = answers.usage_sample(await self._connection.json("GET", path, params=params))
        if sample is None:
            raise ConflictError(409, "a container that does not run uses nothing")
        return sample

    async def create_exec(self, engine_id: str, body: dict[str, Any]) -> str:
        """Prepare a process (``POST /containers/ID/exec``); returns the exec's id.

        Raises ConflictError when the container does not run or is frozen.
        """
        async with answered(ASK_SECONDS):
            said = await self._connection.json("POST", f"containers/{engine_id}/exec", body=body)
            return str(said["Id"])

    async def start_exec(self, exec_id: str, *, tty: bool, rows: int = 24, columns: int = 80) -> ExecStream:
        """Start it, its streams attached; ``tty`` is what it was created with.

        The engine answers before it has started the process: when that fails its words come as output and
        ``inspect_exec`` has an exit code without a pid. The same goes for one that was started before.
        """
        async with answered(DO_SECONDS):
            api = await self._connection.api()
            sized = tuple(int(part) for part in api.split(".")) >= _CONSOLE_SIZE_API
            body: dict[str, Any] = {"Detach": False, "Tty": tty}
            if tty and sized:
                body["ConsoleSize"] = [rows, columns]
            path = f"/v{api}/exec/{exec_id}/start"
            stream = await execs.start(
                self._connection.address, path, body, tty=tty, closed=self._execs.discard
            )
            self._execs.add(stream)
        if tty and not sized:
            await self._first_size(stream, exec_id, rows, columns)
        return stream

    async def inspect_exec(self, exec_id: str) -> ExecFacts:
        """How it is. Raises NotThereError some minutes after its end, or once the engine was restarted."""
        async with answered(ASK_SECONDS):
            return answers.exec_facts(await self._connection.json("GET", f"exec/{exec_id}/json"))

    async def resize_exec(self, exec_id: str, *, rows: int, columns: int) -> None:
        """Tell its terminal another size. Raises :class:`EngineError` when it has none or has ended."""
        params = {"h": str(rows), "w": str(columns)}
        async with answered(ASK_SECONDS):
            await self._connection.json("POST", f"exec/{exec_id}/resize", params=params)

    async def _first_size(self, stream: execs.ExecConnection, exec_id: str, rows: int, columns: int) -> None:
        try:
            # The engine waits for the process to have been started.
            await self.resize_exec(exec_id, rows=rows, columns=columns)
        except EngineError:
            pass  # It could not be started, which is said elsewhere, or has ended.
        except BaseException:
            await stream.close()
            raise


def _engine_time(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{seconds}.{rest:09d}"
