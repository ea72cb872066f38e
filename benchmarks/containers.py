"""What containers cost, each time beside what the bare engine takes for the same, in the same minute.

The two take turns, call by call: what else the machine does hits both alike, and the ratio is what counts.
"""

from __future__ import annotations

import io
import os
import signal
import statistics
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from clawbox_client import SyncClient

from benchmarks import bare_docker, harness
from benchmarks.bare_docker import BareDocker
from benchmarks.harness import Row, Spread, family, name_of, pss_mb
from tests.engine import EngineApi, EngineMissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.harness import Server

SPAWNS = 15
RUNS = 40
PAUSE = 0.1
"""Seconds between two calls of somebody who thinks in between."""
PARALLEL = 10
PARALLEL_ROUNDS = 2
FILE_BYTES = 256 << 20
FILE_ROUNDS = 2
HELD = 50
LISTS = 60
_PIECE = os.urandom(1 << 20)
_SETTINGS = """
[containers]
docker_url = "{url}"
workspace_root = "{folder}/workspaces"
pull_policy = "never"
max_containers = 64

[images]
allowed = ["clawbox-test/"]
"""


def rows(folder: Path) -> list[Row]:
    """All rows of the table; one that says why there are none where no engine answers or can be started."""
    try:
        with ExitStack() as stack:
            url = stack.enter_context(bare_docker.engine())
            image = stack.enter_context(bare_docker.image(url))
            return _rows(folder, url, image)
    except EngineMissingError as error:
        return [Row("containers", f"not measured: {error}")]


def _rows(folder: Path, url: str, image: str) -> list[Row]:
    measured: list[Row] = []
    (folder / "containers").mkdir()
    settings = _SETTINGS.format(url=url, folder=folder)
    with harness.server(folder / "containers", settings) as server:
        first = server.start_seconds  # with keys and a state to be made
    with harness.server(folder / "containers") as server:
        memory = harness.idle_memory(server.pid)
        start = server.start_seconds
        with _bench(server, url, image) as bench:
            measured += bench.spawns()
            measured += bench.commands()
            measured += bench.files()
            measured += bench.parallel_spawns()
            measured += bench.held(start, first, memory)
        # As a crash: whoever restarts the server must find all containers as they were.
        os.kill(server.pid, signal.SIGKILL)
    began = time.perf_counter()
    with harness.server(folder / "containers") as server, _bench(server, url, image) as bench:
        measured += bench.adopted(began, len(bench.client_ids()))
        bench.remove_all()
    return measured


@contextmanager
def _bench(server: Server, url: str, image: str) -> Iterator[_Bench]:
    bare = BareDocker(url)
    with SyncClient(server.address, token=server.token) as client:
        try:
            yield _Bench(server, client, bare, url, image)
        finally:
            bare.remove_all()
            bare.close()


class _Bench:
    """A server, and the engine that it uses."""

    def __init__(self, server: Server, client: SyncClient, bare: BareDocker, url: str, image: str) -> None:
        self._server = server
        self._client = client
        self._bare = bare
        self._url = url
        self._image = image

    # Making

    def spawns(self) -> list[Row]:
        """One after the other, from nothing to a program that runs and has its way out."""
        with self._one() as model:
            body = self._bare.like(self._engine_id(model))

            def spawn() -> Callable[[], None]:
                container = self._spawn()
                return lambda: self._remove(container)

            def bare() -> Callable[[], None]:
                container = self._bare.spawn(body)
                return lambda: self._bare.remove(container)

            return [_compared(f"Spawn, {SPAWNS} in turn", _take_turns(spawn, bare, SPAWNS), 1.15)]

    def parallel_spawns(self) -> list[Row]:
        """Many at once."""
        with self._one() as model, ThreadPoolExecutor(PARALLEL) as threads:
            body = self._bare.like(self._engine_id(model))
            clients = [BareDocker(self._url) for _ in range(PARALLEL)]

            def spawn() -> Callable[[], object]:
                made = list(threads.map(lambda _: self._spawn(), clients))
                return lambda: all(threads.map(self._remove, made))

            def bare() -> Callable[[], object]:
                made = list(threads.map(lambda client: client.spawn(body), clients))
                return lambda: all(threads.map(BareDocker.remove, clients, made))

            measured = _take_turns(spawn, bare, PARALLEL_ROUNDS)
            for client in clients:
                client.close()
        return [_compared(f"{PARALLEL} Spawns at once, all of them", measured)]

    # Processes inside

    def commands(self) -> list[Row]:
        """``true``, by somebody who waits a little each time, and by somebody who does not."""
        with self._one() as container:
            engine_id = self._engine_id(container)
            user = self._bare.like(engine_id)["User"]

            def run(pause: float) -> None:
                time.sleep(pause)
                if self._client.run_command(container, ["true"]).exit_code != 0:
                    raise RuntimeError("true failed")

            def bare(pause: float) -> None:
                time.sleep(pause)
                if self._bare.run(engine_id, ["true"], user) != 0:
                    raise RuntimeError("true failed")

            told = []
            for how, pause in ((f"{1000 * PAUSE:.0f} ms apart", PAUSE), ("back to back", 0.0)):
                pair = _take_turns(partial(run, pause), partial(bare, pause), RUNS)
                less = tuple([seconds - pause for seconds in one] for one in pair)
                told.append(_compared(f"RunCommand true, {how}", (less[0], less[1]), 1.15))
            return told

    # Files

    def files(self) -> list[Row]:
        """A file in, and out again."""
        archive = _archive("bare", FILE_BYTES)
        pieces = FILE_BYTES // len(_PIECE)
        with self._one() as container, tempfile.TemporaryFile() as sink:
            engine_id = self._engine_id(container)

            def write() -> None:
                self._client.write_file(container, "/workspace/file", (_PIECE for _ in range(pieces)))

            def read() -> None:
                sink.seek(0)
                self._client.read_file(container, "/workspace/file", sink)

            def put() -> None:
                self._bare.put_archive(engine_id, "/workspace", archive)

            def get() -> None:
                if self._bare.get_archive(engine_id, "/workspace/bare") < FILE_BYTES:
                    raise RuntimeError("a part of the file did not come")

            told = []
            for what, ours, theirs in (("WriteFile", write, put), ("ReadFile", read, get)):
                mine, bare = _take_turns(ours, theirs, FILE_ROUNDS)
                rates = [[FILE_BYTES / 1e6 / seconds for seconds in one] for one in (mine, bare)]
                ratio = statistics.median(rates[0]) / statistics.median(rates[1])
                texts = [harness.spread_of(one, " MB/s") for one in rates]
                told.append(
                    Row(
                        f"{what}, {FILE_BYTES >> 20} MiB",
                        f"{texts[0]}; docker cp {texts[1]}: {ratio:.2f} × as fast",
                    )
                )
            return told

    # Many

    def held(self, start: float, first: float, idle: list[float]) -> list[Row]:
        """What containers cost that do nothing, and what is asked about many of them."""
        told = [
            Row(
                "start to SERVING with containers",
                f"{start:.2f} s; the first ever {first:.2f}",
                "≤ 2 s",
                met=start <= 2,
            ),
            Row(
                "idle memory (PSS) with containers",
                f"{sum(idle):.0f} MB ({' + '.join(f'{size:.0f}' for size in idle)})",
                "≤ 150 MB",
                met=sum(idle) <= 150,
            ),
        ]
        before, few_cpu = self._memory(), self._idle_cpu()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: self._spawn(), range(PARALLEL)))
            few = self._list_seconds()
            after = self._memory()
            list(threads.map(lambda _: self._spawn(), range(HELD - PARALLEL)))
        whole = (sum(after.values()) - sum(before.values())) / PARALLEL
        sidecar = after["clawbox-egress"] / PARALLEL
        server = (after["clawbox"] - before["clawbox"]) / PARALLEL
        told.append(
            Row(
                f"memory (PSS) per idle container, {PARALLEL} held",
                f"{whole:.1f} MB more in all; of it a sidecar {sidecar:.1f}, the server {server:.2f}",
            )
        )
        many = self._list_seconds()
        told.append(
            Row(f"List, 10 a page, of {PARALLEL} and of {HELD}", f"{few}; {many}: {many.p50 / few.p50:.2f} ×")
        )
        many_cpu = self._idle_cpu()
        told.append(
            Row(
                f"processor while idle: no container, {HELD}",
                f"{1000 * few_cpu:.0f} and {1000 * many_cpu:.0f} ms a second, all processes",
            )
        )
        return told

    def adopted(self, began: float, expected: int) -> list[Row]:
        """After a crash: until every container is served as before."""
        while True:
            found = list(self._client.list_containers())
            if sum(one.egress == "ready" for one in found) == expected:
                break
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        without = seconds - self._server.start_seconds
        return [
            Row(
                f"adoption of {expected} containers after kill -9",
                f"{seconds:.1f} s from starting the server ({without:.1f} after it serves)",
                "≤ 5 s",
                met=seconds <= 5,
            )
        ]

    def client_ids(self) -> list[str]:
        """Of all containers of this server."""
        return [one.container_id for one in self._client.list_containers()]

    def remove_all(self) -> None:
        """Leave none."""
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(self._remove, self.client_ids()))

    # Parts

    @contextmanager
    def _one(self) -> Iterator[str]:
        container = self._spawn()
        try:
            yield container
        finally:
            self._remove(container)

    def _spawn(self) -> str:
        return self._client.spawn("benchmark", image=self._image, hold=True, network=[]).container_id

    def _remove(self, container: str) -> None:
        self._client.remove_container(container, force=True, delete_workspace=True)

    def _engine_id(self, container: str) -> str:
        (found,) = EngineApi(self._url).container_ids(name=container)
        return found

    def _memory(self) -> dict[str, float]:
        """MB of the server's processes, by name."""
        time.sleep(0.5)
        sizes: dict[str, float] = {}
        for pid in family(self._server.pid):
            name = name_of(pid)
            sizes[name] = sizes.get(name, 0) + pss_mb(pid)
        return sizes

    def _idle_cpu(self) -> float:
        """Seconds of processor that everything here takes in a second."""
        pids = family(self._server.pid)
        before, began = sum(map(harness.cpu_seconds, pids)), time.perf_counter()
        time.sleep(2)
        after = sum(map(harness.cpu_seconds, pids))
        return (after - before) / (time.perf_counter() - began)

    def _list_seconds(self) -> Spread:
        seconds = []
        for _ in range(LISTS):
            began = time.perf_counter()
            next(self._client.list_containers(page_size=10))
            seconds.append(time.perf_counter() - began)
        return Spread.of(seconds)


_Made = tuple[list[float], list[float]]


def _take_turns(ours: Callable[[], Any], theirs: Callable[[], Any], count: int) -> _Made:
    """Seconds of each, after one of each that does not count. What a call returns undoes it, untimed."""
    seconds: _Made = ([], [])
    for number in range(count + (count > FILE_ROUNDS)):
        for times, call in zip(seconds, (ours, theirs), strict=True):
            began = time.perf_counter()
            undo = call()
            took = time.perf_counter() - began
            if undo is not None:
                undo()
            if number or count <= FILE_ROUNDS:
                times.append(took)
    return seconds


def _compared(what: str, seconds: _Made, most: float | None = None) -> Row:
    ours, theirs = map(Spread.of, seconds)
    ratio = ours.p50 / theirs.p50
    return Row(
        what,
        f"{ratio:.2f} × bare Docker: {ours}; bare {theirs}",
        "" if most is None else f"p50 ≤ {most} × bare",
        None if most is None else ratio <= most,
    )


def _archive(name: str, size: int) -> bytes:
    """A tar archive with one file."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, 0o644
        tar.addfile(entry, _Repeated(size))
    return made.getvalue()


class _Repeated(io.RawIOBase):
    """So many bytes."""

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int = -1) -> bytes:
        data = _PIECE[: min(size, self._left, len(_PIECE))] if size >= 0 else _PIECE[: self._left]
        self._left -= len(data)
        return data
