"""The child side of the pool: a process that runs one call at a time, and can do nothing else.

The module is imported, and :data:`KIND` preloaded, in the forkserver; :meth:`WorkerKind.main` runs in each
child, which is confined already: it can open nothing, and whatever is needed must be there by then.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec
import wasmtime
from wasmtime import component

from clawbox.children import filters
from clawbox.children.channel import BlockingChannel, ChannelClosedError, FrameError
from clawbox.children.handing import receive_handed
from clawbox.children.kind import LoadError, Profile
from clawbox.children.linux import Timer, read_statm
from clawbox.egress.messages import Handed
from clawbox.wasm import schema
from clawbox.wasm.artifacts import Artifact, Artifacts, CommandModule
from clawbox.wasm.capture import Capture
from clawbox.wasm.egress import NoEgress, SidecarEgress
from clawbox.wasm.engine import new_engine
from clawbox.wasm.guest import PREPARATION_FUEL, Ended, Guest, failed, near_limit, returned
from clawbox.wasm.host import Host, Session
from clawbox.wasm.messages import (
    MAX_CONTROL_FRAME_BYTES,
    MAX_VIOLATIONS,
    ArtifactSpec,
    Done,
    Prepared,
    Ready,
    Refused,
    RunFrame,
    data_allowance,
)
from clawbox.wasm.model import Abi, Limits, Outcome, OutputStream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox.wasm.egress import Egress

_BLOAT: Final = 16 << 20
"""A worker that keeps so much more memory than it had when it began is replaced."""
_FLUSH_SECONDS: Final = 0.05
_STREAM_FLUSH_SECONDS: Final = 0.01
_WARM_UP: Final = RunFrame(
    digest="",
    abi=Abi.COMMAND_MODULE,
    params=b"{}",
    limits=Limits(timeout_ms=5000, fuel=1_000_000, memory_bytes=1 << 20),
    streamed=False,
    input_schema=None,
    output_schema=None,
)


class _Clock(threading.Thread):
    """Ends what takes too long, and tells control what was written meanwhile; asleep while runs are short."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        super().__init__(name="clock", daemon=True)
        self._engine = engine
        self._timer = Timer()
        self._lock = threading.Lock()
        self._capture: Capture | None = None
        self._deadline = 0.0
        self._interval = _FLUSH_SECONDS
        self.expired = False
        """The run that goes on, or went on last, took too long."""

    def begin(self, capture: Capture, seconds: float, *, streamed: bool) -> None:
        with self._lock:
            self._capture = capture
            self._deadline = time.monotonic() + seconds
            self._interval = _STREAM_FLUSH_SECONDS if streamed else _FLUSH_SECONDS
            self.expired = False
            self._timer.arm(min(self._interval, seconds))

    def end(self) -> None:
        with self._lock:
            self._capture = None
            self._timer.disarm()

    def run(self) -> None:
        while True:
            self._timer.wait()
            with self._lock:
                capture = self._capture
                if capture is None:
                    continue
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self.expired = True
                    self._engine.increment_epoch()
                self._timer.arm(min(self._interval, left) if left > 0 else self._interval)
            try:
                capture.flush()
            except ChannelClosedError:
                os._exit(0)


class _Memory:
    """What this process has of its own, as the kernel counts it against RLIMIT_DATA."""

    def __init__(self) -> None:
        self.descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def data_bytes(self) -> int:
        return read_statm(self.descriptor)[1]

    def allow(self, extra: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (min(self.data_bytes() + extra, hard), hard))


class _Prepared:
    """An instance that stands ready for the next run of the same tool with the same limits."""

    def __init__(
        self, digest: str, limits: Limits, guest: Guest, function: component.Func, base: int
    ) -> None:
        self.key = (digest, limits)
        self.guest = guest
        self.function = function
        self.base = base


class _Worker:
    """The loop of one child."""

    def __init__(
        self,
        engine: wasmtime.Engine,
        artifacts: Artifacts,
        host: Host,
        *,
        channel: int,
        descriptors: int,
        memory: _Memory,
    ) -> None:
        self._engine = engine
        self._artifacts = artifacts
        self._host = host
        self._descriptors = descriptors
        self._handed = msgspec.msgpack.Decoder(Handed)
        decoder = msgspec.msgpack.Decoder(RunFrame)
        self._channel = BlockingChannel(channel, decoder, max_bytes=MAX_CONTROL_FRAME_BYTES)
        self._clock = _Clock(engine)
        self._memory = memory
        self._memory_at_start = memory.data_bytes()
        self._prepared: _Prepared | None = None
        self._finished: Guest | None = None
        self._unpreparable: set[str] = set()

    def serve(self) -> None:
        self._clock.start()
        self._warm_up()
        self._channel.send(Ready())
        while True:
            try:
                frame = self._channel.receive()
                with self._way_out(frame) as egress:
                    done = self._run(frame, egress)
                self._channel.send(done)
                if isinstance(done, Done) and done.prepares:
                    self._channel.send(Prepared(bloated=self._prepare(frame)))
            except ChannelClosedError:
                return

    @contextmanager
    def _way_out(self, frame: RunFrame) -> Iterator[Egress]:
        """What the run may send requests by; it is closed before the run's end is told (65)."""
        way_out = frame.way_out
        if way_out is None:
            yield NoEgress(granted=frame.network)
            return
        handed = receive_handed(self._descriptors, self._handed)
        if handed is None:
            raise ChannelClosedError
        message, descriptor = handed
        if message != Handed("connection", way_out.number):
            raise FrameError("another call's connection")
        egress = SidecarEgress(descriptor, way_out.token, way_out.max_body_bytes)
        try:
            yield egress
        finally:
            egress.close()

    def _warm_up(self) -> None:
        """Run what is this program's own, never a principal's tool (docs/security.md, 65)."""
        limits = _WARM_UP.limits
        for artifact in self._artifacts.own:
            capture = Capture(
                limits,
                streamed=False,
                keep_output=False,
                send=lambda _: None,
                stop=self._engine.increment_epoch,
            )
            session = Session(limits.host_calls, limits.log_bytes, NoEgress(), capture.log)
            guest = Guest(self._artifacts, artifact, limits, limits.fuel)
            self._clock.begin(capture, limits.timeout_ms / 1000, streamed=False)
            try:
                self._call(guest, artifact, _WARM_UP, None, capture=capture, session=session)
            finally:
                self._clock.end()
                self._host.session = None
                guest.close()
        self._memory_at_start = self._memory.data_bytes()

    def _run(self, frame: RunFrame, egress: Egress) -> Done | Refused:
        began = time.monotonic_ns()
        artifact = self._artifacts.get(frame.digest)
        if artifact is None:
            raise LoadError("control sent a tool that this worker does not have")
        limits = frame.limits
        stdout_is_output = isinstance(artifact, CommandModule) or artifact.is_command
        capture = Capture(
            limits,
            streamed=frame.streamed,
            keep_output=stdout_is_output and frame.output_schema is not None,
            send=self._channel.send,
            stop=self._engine.increment_epoch,
        )
        session = Session(limits.host_calls, limits.log_bytes, egress, capture.log)
        self._clock.begin(capture, limits.timeout_ms / 1000, streamed=frame.streamed)
        spent, peak, bloated, prepares = 0, 0, False, False
        try:
            if frame.input_schema is not None:
                found = schema.violations(frame.input_schema, schema.parse(frame.params), MAX_VIOLATIONS)
                if found:
                    return Refused(list(found))
            prepared, self._prepared = self._prepared, None
            if prepared is not None and prepared.key != (frame.digest, limits):
                prepared.guest.close()
                prepared = None
            base = prepared.base if prepared is not None else self._memory.data_bytes()
            answer_bytes = frame.way_out.max_body_bytes if frame.way_out is not None else 0
            self._memory.allow(data_allowance(limits, len(frame.params), answer_bytes))
            if prepared is not None:
                guest = prepared.guest
            else:
                guest = Guest(self._artifacts, artifact, limits, limits.fuel)
            try:
                ended = self._call(guest, artifact, frame, prepared, capture=capture, session=session)
                left = guest.fuel_left()
                spent = limits.fuel - left
                peak = guest.memory_bytes() or max(self._memory.data_bytes() - base, 0)
            finally:
                self._host.session = None
            ended = _conclude(
                ended, limits, capture, session, left=left, peak=peak, expired=self._clock.expired
            )
            ended = _checked(ended, frame, capture)
            prepares = not ended.trapped and self._preparable(artifact, frame.digest)
            if prepares:
                # An interpreter's memory takes a while to free: the answer need not wait for it.
                self._finished = guest
            else:
                guest.close()
                bloated = self._is_bloated()
        except MemoryError:
            ended = Ended(Outcome.MEMORY_EXCEEDED, "the worker ran out of memory beside the tool's own")
            bloated = True
        finally:
            self._clock.end()
        written, logged = capture.rest()
        truncated = [(stream, capture.kept(stream)) for stream in capture.cut]
        if session.logs_cut:
            truncated.append((OutputStream.LOG, session.log_bytes))
        return Done(
            outcome=ended.outcome,
            message=ended.message,
            output=ended.output,
            written=written,
            logged=logged,
            truncated=truncated,
            exit_code=ended.exit_code,
            trapped=ended.trapped,
            bloated=bloated,
            prepares=prepares,
            fuel_consumed=spent,
            peak_memory_bytes=peak,
            host_calls=session.calls,
            egress_calls=session.egress_calls,
            duration_us=(time.monotonic_ns() - began) // 1000,
        )

    def _call(
        self,
        guest: Guest,
        artifact: Artifact,
        frame: RunFrame,
        prepared: _Prepared | None,
        *,
        capture: Capture,
        session: Session,
    ) -> Ended:
        self._host.session = session
        instantiated = False
        try:
            guest.begin(capture, frame.limits.fuel)
            if isinstance(artifact, CommandModule):
                guest.set_wasi(frame.params)
                guest.call_module()
                return Ended(Outcome.OK, exit_code=0)
            if prepared is not None:
                function = prepared.function
            else:
                guest.set_wasi(frame.params if artifact.is_command else b"")
                function = guest.instantiate_component()
            instantiated = True
            params = () if artifact.is_command else (frame.params.decode(),)
            return returned(guest.call_component(function, *params))
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            return failed(error, instantiated=instantiated)

    def _preparable(self, artifact: Artifact, digest: str) -> bool:
        """Only components that take no stdin: that is not known yet, and a core module takes microseconds."""
        return (
            not isinstance(artifact, CommandModule)
            and not artifact.is_command
            and digest not in self._unpreparable
        )

    def _is_bloated(self) -> bool:
        return self._memory.data_bytes() - self._memory_at_start > _BLOAT

    def _prepare(self, frame: RunFrame) -> bool:
        """Free the last instance and make the next; control replaces a worker that is not back soon.

        Returns whether the worker is bloated.
        """
        if self._finished is not None:
            self._finished.close()
            self._finished = None
        if self._is_bloated():
            return True
        artifact = self._artifacts.get(frame.digest)
        assert artifact is not None
        base = self._memory.data_bytes()
        guest = Guest(self._artifacts, artifact, frame.limits, min(PREPARATION_FUEL, frame.limits.fuel))
        try:
            guest.set_wasi(b"")
            function = guest.instantiate_component()
        except (wasmtime.WasmtimeError, wasmtime.Trap):
            # Its start does more than starting. It is instantiated with the call, in the call's own time.
            self._unpreparable.add(frame.digest)
            guest.close()
            return False
        self._prepared = _Prepared(frame.digest, frame.limits, guest, function, base)
        return False


def _conclude(
    ended: Ended,
    limits: Limits,
    capture: Capture,
    session: Session,
    *,
    left: int,
    peak: int,
    expired: bool,
) -> Ended:
    """The outcome, by what this program knows about the run rather than by what the guest says."""
    if capture.overflowed:
        message = f"wrote more than {limits.stdout_bytes} bytes of output"
        return Ended(Outcome.OUTPUT_EXCEEDED, message, trapped=ended.trapped)
    if session.exceeded:
        message = f"made more than {limits.host_calls} host calls"
        return replace(ended, outcome=Outcome.HOST_CALLS_EXCEEDED, message=message)
    if ended.outcome is Outcome.OK:
        return ended
    if ended.trapped and expired:
        message = f"ran longer than {limits.timeout_ms} ms"
        return replace(ended, outcome=Outcome.TIMEOUT, message=message)
    if ended.trapped and left == 0:
        message = f"used more than {limits.fuel} units of fuel"
        return replace(ended, outcome=Outcome.FUEL_EXHAUSTED, message=message)
    if ended.outcome is Outcome.MEMORY_EXCEEDED or near_limit(peak, limits.memory_bytes):
        message = f"needed more than {limits.memory_bytes} bytes of memory"
        if ended.message:
            message += f" ({ended.message})"
        return replace(ended, outcome=Outcome.MEMORY_EXCEEDED, message=message)
    return ended


def _checked(ended: Ended, frame: RunFrame, capture: Capture) -> Ended:
    """The same run once its output was looked at: too large, or not what the output schema says."""
    if ended.output is not None and len(ended.output) > frame.limits.stdout_bytes:
        message = f"returned {len(ended.output)} bytes, more than {frame.limits.stdout_bytes}"
        return replace(ended, outcome=Outcome.OUTPUT_EXCEEDED, message=message, output=None)
    if ended.outcome is not Outcome.OK or frame.output_schema is None:
        return ended
    output = ended.output if ended.output is not None else bytes(capture.output)
    try:
        value = schema.parse(output)
    except (ValueError, RecursionError):
        value = output.decode("utf-8", "replace")
    found = schema.violations(frame.output_schema, value, MAX_VIOLATIONS)
    if not found:
        return ended
    first = found[0]
    message = (
        f"the output breaks the tool's output_schema at {first.path or '/'} ({first.rule}): {first.message}"
    )
    return replace(ended, outcome=Outcome.INVALID_OUTPUT, message=message)


class WorkerKind:
    """The kind of child that runs tools; see :class:`clawbox.children.kind.LoadingKind`."""

    name = "clawbox-worker"
    profile = Profile(filter=filters.compute_only)

    def __init__(self) -> None:
        self._memory: _Memory | None = None

    def preload(self) -> None:
        """Import, warm up, and make the engine and the linkers."""
        # WASI's timers run on a pool of threads, as many as the machine has cores unless this says otherwise.
        os.environ["TOKIO_WORKER_THREADS"] = "1"
        schema.warm_up()
        self._engine = new_engine()
        self._host = Host()
        self._artifacts = Artifacts(self._engine, self._host)
        self._specs = msgspec.msgpack.Decoder(ArtifactSpec)

    def load(self, key: str, spec: bytes) -> None:
        """Load a compiled tool: ``spec`` is an :class:`ArtifactSpec`."""
        artifact = self._specs.decode(spec)
        self._artifacts.load(key, artifact.abi, artifact.path)

    def loaded(self) -> tuple[str, ...]:
        """The digests of what is loaded."""
        return self._artifacts.digests()

    def open_own(self) -> tuple[int, ...]:
        """Open the file in which the kernel says how much memory this process has."""
        self._memory = _Memory()
        return (self._memory.descriptor,)

    def main(self, channel: int, descriptors: int) -> None:
        """Run what control sends."""
        assert self._memory is not None
        _Worker(
            self._engine,
            self._artifacts,
            self._host,
            channel=channel,
            descriptors=descriptors,
            memory=self._memory,
        ).serve()


KIND = WorkerKind()
"""What the forkserver is told to fork: ``clawbox.wasm.worker:KIND``."""
