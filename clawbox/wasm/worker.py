"""The child side of the pool: a process that runs one call at a time, and can do nothing else.

The module is imported, and :data:`KIND` preloaded, in the forkserver; :meth:`WorkerKind.main` runs in each
child, which is confined already: it can open nothing, and whatever is needed must be there by then.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec
import wasmtime

from clawbox.children import filters
from clawbox.children.channel import BlockingChannel, ChannelClosedError, FrameError
from clawbox.children.handing import receive_handed
from clawbox.children.kind import LoadError, Profile
from clawbox.egress.messages import Handed
from clawbox.wasm import schema
from clawbox.wasm.artifacts import Artifact, Artifacts, CommandModule
from clawbox.wasm.capture import Capture
from clawbox.wasm.clock import Clock
from clawbox.wasm.egress import NoEgress, SidecarEgress
from clawbox.wasm.engine import new_engine
from clawbox.wasm.guest import Ended, Guest, failed, returned
from clawbox.wasm.host import Host, Session
from clawbox.wasm.memory import OwnMemory
from clawbox.wasm.messages import (
    BEGUN,
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
from clawbox.wasm.preparation import Preparation
from clawbox.wasm.verdict import checked, conclude

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox.wasm.egress import Egress
    from clawbox.wasm.preparation import PreparedInstance

_WARM_UP: Final = RunFrame(
    digest="",
    abi=Abi.COMMAND_MODULE,
    params=b"{}",
    limits=Limits(timeout_ms=5000, fuel=1_000_000, memory_bytes=1 << 20),
    streamed=False,
    input_schema=None,
    output_schema=None,
)


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
        memory: OwnMemory,
    ) -> None:
        self._engine = engine
        self._artifacts = artifacts
        self._host = host
        self._descriptors = descriptors
        self._handed = msgspec.msgpack.Decoder(Handed)
        decoder = msgspec.msgpack.Decoder(RunFrame)
        self._channel = BlockingChannel(channel, decoder, max_bytes=MAX_CONTROL_FRAME_BYTES)
        self._clock = Clock(engine)
        self._memory = memory
        self._preparation = Preparation(artifacts, memory)

    def serve(self) -> None:
        self._clock.start()
        self._warm_up()
        self._channel.send(Ready())
        while True:
            try:
                frame = self._channel.receive()
                with self._way_out(frame) as egress:
                    self._say_that_it_begins()
                    done = self._run(frame, egress)
                self._channel.send(done)
                if isinstance(done, Done) and done.prepares:
                    self._channel.send(Prepared(bloated=self._preparation.prepare(frame)))
            except ChannelClosedError:
                return

    def _say_that_it_begins(self) -> None:
        try:
            os.write(self._descriptors, BEGUN)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosedError from error

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
                guest.close()
        self._memory.settled()

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
            prepared = self._preparation.take(frame.digest, limits)
            base = prepared.base if prepared is not None else self._memory.data_bytes()
            answer_bytes = frame.way_out.max_body_bytes if frame.way_out is not None else 0
            self._memory.allow(data_allowance(limits, len(frame.params), answer_bytes))
            if prepared is not None:
                guest = prepared.guest
            else:
                guest = Guest(self._artifacts, artifact, limits, limits.fuel)
            ended = self._call(guest, artifact, frame, prepared, capture=capture, session=session)
            left = guest.fuel_left()
            spent = limits.fuel - left
            peak = guest.memory_bytes() or max(self._memory.data_bytes() - base, 0)
            ended = conclude(
                ended, limits, capture, session, left=left, peak=peak, expired=self._clock.expired
            )
            ended = checked(ended, frame, capture)
            prepares = not ended.trapped and self._preparation.is_possible(artifact, frame.digest)
            if prepares:
                self._preparation.free_later(guest)
            else:
                guest.close()
                bloated = self._memory.is_bloated()
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
        prepared: PreparedInstance | None,
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
        finally:
            self._host.session = None


class WorkerKind:
    """The kind of child that runs tools; see :class:`clawbox.children.kind.LoadingKind`."""

    name = "clawbox-worker"
    profile = Profile(filter=filters.compute_only)

    def __init__(self) -> None:
        self._memory: OwnMemory | None = None

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
        self._memory = OwnMemory()
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
