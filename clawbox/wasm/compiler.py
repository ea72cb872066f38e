"""Compiles tools ahead of time, each binary once, without trusting it and without holding anything up.

The bytes go to a fresh process (``compile_child``) with neither network nor privileges and come back
compiled; only this process writes the cache. As a command, ``python -m clawbox.wasm.compiler --builtin``
fills the cache with the interpreters that ship with clawbox.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
import structlog

from clawbox.children import program
from clawbox.children.uids import UidRange, UidsExhaustedError
from clawbox.config.running import default_cache_dir
from clawbox.errors import ClawboxError, Reason
from clawbox.wasm.cache import Artifact, ArtifactCache, CacheError
from clawbox.wasm.compile_child import HEADER, Answer, Order

if TYPE_CHECKING:
    from types import TracebackType

log = structlog.get_logger("clawbox.wasm.compiler")

MEMORY_BYTES = 1 << 30
"""Private memory of a process that compiles what is not trusted (docs/security.md, 90)."""
DEFAULT_TIMEOUT_MS = 120_000
UPLOAD_TIMEOUT_MS = 60_000
"""Most time that compiling an upload may take, whatever the server's setting."""
BUILTIN_FOLDER = Path(__file__).parent / "builtin"
"""The interpreters that ship: ``NAME.wasm`` and ``NAME.json``, built by set-up."""
_MAX_HEAD = 16 << 10
_MAX_STDERR = 8 << 10
_CHUNK = 1 << 18


@dataclass(slots=True)
class _Job:
    """One binary that is being compiled, and how many wait for it."""

    task: asyncio.Task[Artifact]
    waiters: int = 0


@dataclass(slots=True)
class CompilerStats:
    """Counters since the start."""

    compiled: int = 0
    from_cache: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a compile process ended."""

    status: int
    stdout: bytearray
    stderr: bytes
    timed_out: bool = field(default=False)


class Compiler:
    """Compiles through a cache. An async context manager: leaving it kills what still compiles.

    ``timeout_ms`` and ``memory_bytes`` bound what is not trusted; ``uids`` is the range from which each such
    process has a uid of its own, None where it cannot have one; ``parallel`` is how many binaries are
    compiled at once.
    """

    def __init__(
        self,
        cache_dir: Path,
        *,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        memory_bytes: int = MEMORY_BYTES,
        uids: UidRange | None = None,
        parallel: int = 2,
    ) -> None:
        self._cache = ArtifactCache(cache_dir)
        self._timeout_ms = timeout_ms
        self._memory_bytes = memory_bytes
        self._uids = uids
        self._slots = asyncio.Semaphore(parallel)
        self._jobs: dict[tuple[str, bool], _Job] = {}
        self.stats = CompilerStats()

    async def __aenter__(self) -> Self:
        """Make or check the cache folder; raises CacheError when it cannot be used safely."""
        await asyncio.to_thread(self._cache.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what still compiles."""
        tasks = [job.task for job in self._jobs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def compile(
        self, binary: bytes, *, trusted: bool = False, timeout_ms: int | None = None
    ) -> Artifact:
        """The artifact of a module or component, from the cache or compiled now.

        ``trusted`` is for what this program's set-up built: no limits. All who wait for the same bytes wait
        for one process; when the last of them is cancelled, it is killed.

        Raises INVALID_MODULE with what is wrong, COMPILE_LIMIT, or OSError when the cache cannot be written.
        """
        digest = await asyncio.to_thread(_digest, binary)
        allowed_ms = min(self._timeout_ms, timeout_ms or self._timeout_ms)
        job = self._jobs.get((digest, trusted))
        if job is None:
            task = asyncio.create_task(self._compile(digest, binary, allowed_ms, trusted=trusted))
            job = self._jobs[digest, trusted] = _Job(task)
            task.add_done_callback(lambda _: self._forget(digest, trusted, job))
        job.waiters += 1
        try:
            return await asyncio.shield(job.task)
        finally:
            job.waiters -= 1
            if job.waiters == 0 and not job.task.done():
                self._forget(digest, trusted, job)
                job.task.cancel()
                await asyncio.wait([job.task])

    async def find(self, binary: bytes) -> Artifact | None:
        """The artifact if it is in the cache; None: it would have to be compiled."""
        digest = await asyncio.to_thread(_digest, binary)
        found = await asyncio.to_thread(self._cache.load, digest)
        if found is not None:
            self.stats.from_cache += 1
        return found

    def _forget(self, digest: str, trusted: bool, job: _Job) -> None:  # noqa: FBT001 - the key's second half
        if self._jobs.get((digest, trusted)) is job:
            del self._jobs[digest, trusted]

    async def _compile(self, digest: str, binary: bytes, allowed_ms: int, *, trusted: bool) -> Artifact:
        found = await asyncio.to_thread(self._cache.load, digest)
        if found is not None:
            self.stats.from_cache += 1
            return found
        async with self._slots:
            started = time.monotonic()
            try:
                artifact = await self._compile_anew(digest, binary, allowed_ms, trusted=trusted)
            except ClawboxError as error:
                self.stats.failed += 1
                log.info("compile_refused", digest=digest, reason=error.reason.name, why=error.message)
                raise
        self.stats.compiled += 1
        log.info("compiled", digest=digest, bytes=len(binary), seconds=round(time.monotonic() - started, 3))
        return artifact

    async def _compile_anew(self, digest: str, binary: bytes, allowed_ms: int, *, trusted: bool) -> Artifact:
        with self._own_uid(trusted=trusted) as uid:
            order = Order(
                trusted=trusted,
                parent=os.getpid(),
                uid=uid,
                data_bytes=self._memory_bytes,
                # A second more than the clock on the wall allows: the answer is the same, whichever is first.
                cpu_seconds=math.ceil(allowed_ms / 1000) + 1,
            )
            ended = await _run_child(order, binary, timeout=None if trusted else allowed_ms / 1000)
        answer, artifact = _read_answer(ended, allowed_ms, self._memory_bytes)
        if answer.abi is None:
            raise ClawboxError(
                Reason.INVALID_MODULE, "the module cannot run here: {problem}", problem=answer.error
            )
        return await asyncio.to_thread(self._cache.store, digest, answer.abi, len(binary), artifact)

    @contextlib.contextmanager
    def _own_uid(self, *, trusted: bool) -> Iterator[int | None]:
        """A uid that no other living child has, for as long as the context is entered."""
        if trusted or self._uids is None:
            yield None
            return
        try:
            uid = self._uids.take()
        except UidsExhaustedError:
            raise ClawboxError(
                Reason.SANDBOX_UNAVAILABLE,
                "no sandbox can be started: {why}",
                retry_after=1.0,
                why="every uid of the configured range is in use",
            ) from None
        try:
            yield uid
        finally:
            self._uids.give_back(uid)


def _digest(binary: bytes) -> str:
    return hashlib.sha256(binary).hexdigest()


async def _run_child(order: Order, binary: bytes, *, timeout: float | None) -> _Ended:  # noqa: ASYNC109
    """Run one compile process to its end; whatever happens here, it is dead and reaped afterwards."""
    process = await asyncio.create_subprocess_exec(
        *program.command("clawbox.wasm.compile_child", msgspec.json.encode(order).decode()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={},
        cwd="/",
        start_new_session=True,  # the terminal's Ctrl-C is the server's to handle
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    # A child that writes without end is stopped by this, not by the server's memory.
    most = (64 << 20) + 64 * len(binary)
    try:
        async with asyncio.timeout(timeout):
            async with asyncio.TaskGroup() as group:
                group.create_task(_feed(process.stdin, binary))
                stdout = group.create_task(_read(process.stdout, most, process.kill))
                stderr = group.create_task(_read(process.stderr, _MAX_STDERR, process.kill))
            status = await process.wait()  # within its time, too: to end its answer is not to end
    except TimeoutError:
        return _Ended(0, bytearray(), b"", timed_out=True)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # Not interruptible: SIGKILL ends it at once, and a child that is not reaped is left behind.
            await asyncio.shield(process.wait())
        process.stdin.close()
    return _Ended(status, stdout.result(), bytes(stderr.result()))


async def _feed(stream: asyncio.StreamWriter, binary: bytes) -> None:
    # It died: its status says why. RuntimeError is what uvloop raises for a pipe that it has closed.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, RuntimeError):
        for start in range(0, len(binary), _CHUNK):
            stream.write(binary[start : start + _CHUNK])
            await stream.drain()
        stream.close()
        await stream.wait_closed()


async def _read(stream: asyncio.StreamReader, most: int, too_much: Callable[[], None]) -> bytearray:
    data = bytearray()
    while chunk := await stream.read(_CHUNK):
        if len(data) + len(chunk) > most:
            too_much()
            break
        data += chunk
    return data


def _read_answer(ended: _Ended, allowed_ms: int, memory_bytes: int) -> tuple[Answer, memoryview]:
    """What the child says, which is not believed beyond its form."""
    if ended.timed_out or ended.status == -signal.SIGXCPU:
        raise ClawboxError(
            Reason.COMPILE_LIMIT, "compiling took longer than {allowed_ms} ms", allowed_ms=allowed_ms
        )
    # A failed allocation aborts; the kernel kills when the machine has no more.
    if ended.status in {-signal.SIGABRT, -signal.SIGKILL} or b"MemoryError" in ended.stderr:
        raise ClawboxError(
            Reason.COMPILE_LIMIT,
            "compiling needed more than {memory_mb} MiB of memory",
            memory_mb=memory_bytes >> 20,
        )
    try:
        (size,) = HEADER.unpack_from(ended.stdout)
        if ended.status != 0 or size > _MAX_HEAD:
            raise ValueError("no answer")  # noqa: TRY301 - one way out for every kind of nonsense
        view = memoryview(ended.stdout)[HEADER.size :]
        answer = msgspec.json.decode(view[:size], type=Answer)
        artifact = view[size:]
        if len(artifact) != answer.artifact_bytes or (answer.abi is None) != (not artifact):
            raise ValueError("another size than announced")  # noqa: TRY301
    except (ValueError, msgspec.MsgspecError, OSError) as error:
        stderr = ended.stderr.decode("utf-8", "replace")
        log.error(  # noqa: TRY400 - the traceback is ours, the story is in stderr
            "compile_process_failed", status=ended.status, why=str(error), stderr=stderr
        )
        raise ClawboxError(
            Reason.INVALID_MODULE, "the compiler broke on the module (status {status})", status=ended.status
        ) from None
    return answer, artifact


Progress = Callable[[str], None]
"""Takes one line about what is being done."""


async def warm_builtin(cache_dir: Path, progress: Progress, *, folder: Path = BUILTIN_FOLDER) -> int:
    """Compile the interpreters that ship into the cache; returns how many were compiled anew.

    They are this program's own, so there is no limit on time or memory. When all are there, nothing is done.
    Raises CacheError, and an exception group of ClawboxErrors for those that do not compile.
    """
    paths = await asyncio.to_thread(lambda: sorted(folder.glob("*.wasm")))
    async with Compiler(cache_dir) as compiler, asyncio.TaskGroup() as group:
        for path in paths:
            group.create_task(_warm(compiler, path, progress))
    return compiler.stats.compiled


async def _warm(compiler: Compiler, path: Path, progress: Progress) -> None:
    started = time.monotonic()
    binary = await asyncio.to_thread(path.read_bytes)
    if await compiler.find(binary) is not None:
        progress(f"{path.stem}: compiled already")
        return
    progress(f"{path.stem}: compiling {len(binary) / 1e6:.1f} MB, once")
    ticker = asyncio.create_task(_tick(progress, path.stem, started))
    try:
        await compiler.compile(binary, trusted=True)
    finally:
        ticker.cancel()
        await asyncio.wait([ticker])
    progress(f"{path.stem}: compiled in {time.monotonic() - started:.1f} s")


async def _tick(progress: Progress, name: str, started: float) -> None:
    while True:
        await asyncio.sleep(5)
        progress(f"{name}: compiling, {time.monotonic() - started:.0f} s so far")


def main(arguments: list[str] | None = None) -> int:
    """The command: compile the interpreters that ship, with progress on stderr."""
    parser = argparse.ArgumentParser(prog="python -m clawbox.wasm.compiler", description=main.__doc__)
    parser.add_argument("--builtin", action="store_true", required=True, help="the interpreters that ship")
    parser.add_argument("--cache-dir", type=Path, help="default: as the server's sandbox.cache_dir")
    options = parser.parse_args(arguments)
    cache_dir = options.cache_dir or default_cache_dir().expanduser()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    failed = False
    try:
        asyncio.run(warm_builtin(cache_dir, lambda line: print(line, file=sys.stderr, flush=True)))  # noqa: T201
    except* (CacheError, ClawboxError, OSError) as errors:
        failed = True
        for error in errors.exceptions:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
