"""What one sandbox's way out costs: its start, its memory, its requests, its streams.

Keeper, dialer and sidecar are the server's own, this process is their control, audit log included, and the
client and the upstream are processes beside them (:mod:`benchmarks.egress_peers`). Ways take turns, in short
rounds within one run. The processor's time that a request takes in the sidecar is printed beside rates: on a
machine with fewer processors than processes it says more than they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import ipaddress
import os
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks.egress_peers import Order, Outcome, Ports
from benchmarks.harness import Row, Spread, cpu_seconds, family, name_of, pss_mb, spread_of
from clawbox.audit import AuditLog
from clawbox.children.enforcement import can_have_own_uids
from clawbox.children.uids import UidRange
from clawbox.egress.credentials import Credential, Secret
from clawbox.egress.dialer.messages import AddressPolicySpec
from clawbox.egress.keeper.bootstrap import open_keys
from clawbox.egress.messages import Grant, Limits
from clawbox.egress.standalone import listen_tcp
from clawbox.egress.supervisor import EgressSetup, EgressSupervisor
from clawbox.egress.vault import MasterKey, Vault
from clawbox.network_rules import NetworkRule
from clawbox.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SIDECARS = 50
CLIENTS = 16
ROUNDS = 5
STREAM_BYTES = 256 << 20
STREAMS = 3
_KEY = "5e" * 32
_TOKEN = "benchmark-token"
_HOST = "127.0.0.1"
_UNLIMITED = Limits(requests_per_second=10**7, burst=10**7, max_tunnels=256)


def rows(folder: Path) -> list[Row]:
    """All rows of the table."""
    return uvloop.run(_rows(folder))


async def _rows(folder: Path) -> list[Row]:
    certificate = _certificate(folder)
    async with _upstream(folder) as ports, _supervisor(folder, certificate) as supervisor:
        async with supervisor.sandbox(_grant(0, ports)):
            pass  # from here on keeper and dialer are up
        starts = await _starts(supervisor, ports)
        async with supervisor.sandbox(_grant(0, ports)) as door:
            door.admit(hashlib.sha256(_TOKEN.encode()).digest())
            listener = listen_tcp(_HOST, 0)
            port: int = listener.getsockname()[1]
            door.listen_tcp(listener)
            trusted = folder / "trusted.pem"
            trusted.write_text(certificate + door.ca_pem)
            async with _client(trusted) as client:
                bench = _Bench(client, ports, port, _sidecars()[0])
                return [*starts, *await _latencies(bench), *await _rates(bench), *await _streams(bench)]


# Start and memory -------------------------------------------------------------------------------------------


async def _starts(supervisor: EgressSupervisor, ports: Ports) -> list[Row]:
    """Start one sidecar after the other, and see what each takes."""
    seconds: list[float] = []
    async with contextlib.AsyncExitStack() as open_ones:
        for number in range(SIDECARS):
            began = time.perf_counter()
            await open_ones.enter_async_context(supervisor.sandbox(_grant(number, ports)))
            seconds.append(time.perf_counter() - began)
            if number == 0:
                (only,) = _sidecars()
                alone = pss_mb(only)
                shared = [(name_of(pid), pss_mb(pid)) for pid in family(os.getpid())[1:] if pid != only]
        memory = [pss_mb(pid) for pid in _sidecars()]
    start = Spread.of(seconds)
    beside = ", ".join(f"{name.removeprefix('clawbox-')} {size:.0f}" for name, size in shared)
    each = f"{statistics.median(memory):.1f} MB each ({min(memory):.1f} to {max(memory):.1f})"
    return [
        Row(f"sidecar start, {SIDECARS} in turn", str(start), "p50 ≤ 25 ms", met=start.p50 <= 25),
        Row(
            "idle memory (PSS) of a sidecar alone",
            f"{alone:.1f} MB (beside it {beside})",
            "≤ 10 MB",
            met=alone <= 10,
        ),
        Row(f"idle memory (PSS) of {SIDECARS} sidecars", f"{each}, {sum(memory):.0f} MB in all"),
    ]


def _sidecars() -> list[int]:
    return [pid for pid in family(os.getpid()) if name_of(pid) == "clawbox-egress"]


# Requests ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Round:
    outcome: Outcome
    sidecar: float
    """Seconds of processor time."""
    control: float


@dataclass(frozen=True)
class _Way:
    """Rounds of one way, summed up."""

    rounds: list[_Round]

    @property
    def latency(self) -> Spread:
        return Spread.of([latency for one in self.rounds for latency in one.outcome.latencies])

    @property
    def per_second(self) -> float:
        return statistics.median(self._rates())

    @property
    def cpu(self) -> str:
        requests = sum(len(one.outcome.latencies) for one in self.rounds)
        sidecar = sum(one.sidecar for one in self.rounds) / requests
        control = sum(one.control for one in self.rounds) / requests
        return f"CPU a request: sidecar {1e6 * sidecar:.0f} µs, control {1e6 * control:.0f}"

    def __str__(self) -> str:
        return f"{spread_of(self._rates(), '/s')}; {self.cpu}"

    def _rates(self) -> list[float]:
        return [len(one.outcome.latencies) / one.outcome.seconds for one in self.rounds]


class _Bench:
    """One sidecar, and what stands on both of its sides."""

    def __init__(self, client: asyncio.subprocess.Process, ports: Ports, port: int, sidecar: int) -> None:
        self._client = client
        self.ports = ports
        self._port = port
        self._sidecar = sidecar

    async def take_turns(self, ways: dict[str, Order], seconds: float) -> dict[str, _Way]:
        """Carry each order out in some rounds of so many seconds, after a short one that does not count."""
        done: dict[str, list[_Round]] = {way: [] for way in ways}
        for number in range(ROUNDS + 1):
            for way, order in ways.items():
                length = seconds if number else 0.2
                one = await self.carry_out(msgspec.structs.replace(order, seconds=length))
                if number:
                    done[way].append(one)
        return {way: _Way(rounds) for way, rounds in done.items()}

    async def carry_out(self, order: Order) -> _Round:
        """Have the client do it. Raises RuntimeError when it cannot."""
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        sidecar, control = cpu_seconds(self._sidecar), time.process_time()
        self._client.stdin.write(msgspec.json.encode(order) + b"\n")
        outcome = msgspec.json.decode(await self._client.stdout.readline(), type=Outcome)
        if outcome.failure:
            raise RuntimeError(outcome.failure)
        return _Round(outcome, cpu_seconds(self._sidecar) - sidecar, time.process_time() - control)

    def direct(self, port: int, **fields: Any) -> Order:
        """Without a sidecar."""
        return Order(port, _get(_path(fields), port), **fields)

    def plain(self, **fields: Any) -> Order:
        """Through the sidecar, in clear text."""
        port = self.ports.plain
        url = f"http://{_HOST}:{port}{_path(fields)}"
        return Order(self._port, _get(url, port, f"Proxy-Authorization: Bearer {_TOKEN}"), **fields)

    def connect(self, port: int, **fields: Any) -> Order:
        """Through a tunnel, which the sidecar reads or does not, as its rule for the port says."""
        connect = (
            f"CONNECT {_HOST}:{port} HTTP/1.1\r\nHost: {_HOST}:{port}\r\n"
            f"Proxy-Authorization: Bearer {_TOKEN}\r\n\r\n"
        )
        return Order(self._port, _get(_path(fields), port), connect, **fields)


def _path(fields: dict[str, Any]) -> str:
    return f"/stream/{STREAM_BYTES}" if fields.get("stream") else "/"


def _get(target: str, port: int, *lines: str) -> str:
    head = [f"GET {target} HTTP/1.1", f"Host: {_HOST}:{port}", *lines, "User-Agent: bench", "Accept: */*"]
    return "\r\n".join([*head, "", ""])


async def _latencies(bench: _Bench) -> list[Row]:
    ports = bench.ports
    ways = await bench.take_turns(
        {
            "direct": bench.direct(ports.plain),
            "plain": bench.plain(),
            "direct with TLS": bench.direct(ports.tls, tls=True),
            "intercepted": bench.connect(ports.tls, tls=True),
        },
        0.4,
    )
    rows = []
    for way, without in (("plain", "direct"), ("intercepted", "direct with TLS")):
        through, beside = ways[way].latency, ways[without].latency
        added = through.p50 - beside.p50
        rows.append(
            Row(
                f"request through the sidecar, {way}, 1 client",
                f"{added:.2f} ms added: {through}; {without} p50 {beside.p50:.2f}",
                "p50 ≤ 0.6 ms added",
                met=added <= 0.6,
            )
        )
    return rows


async def _rates(bench: _Bench) -> list[Row]:
    ports = bench.ports
    kept = await bench.take_turns(
        {
            "plain": bench.plain(clients=CLIENTS),
            "intercepted": bench.connect(ports.tls, tls=True, clients=CLIENTS),
            "tunnel": bench.connect(ports.tunnelled, tls=True, clients=CLIENTS),
        },
        0.6,
    )
    fresh = await bench.take_turns(
        {
            "intercepted": bench.connect(ports.tls, tls=True, clients=CLIENTS, fresh=True),
            "tunnel": bench.connect(ports.tunnelled, tls=True, clients=CLIENTS, fresh=True),
        },
        0.8,
    )
    rows = [
        Row(
            f"requests, {way}, {CLIENTS} clients",
            str(kept[way]),
            f"≥ {least:,}/s",
            kept[way].per_second >= least,
        )
        for way, least in (("plain", 6000), ("intercepted", 4000))
    ]
    for name, ways, most in (("kept alive", kept, 40), ("a connection each", fresh, 25)):
        read, unread = ways["intercepted"], ways["tunnel"]
        loses = 100 * (1 - read.per_second / unread.per_second)
        measured = f"loses {loses:.0f} %: {read}; tunnel {unread}"
        rows.append(Row(f"interception against tunnel, {name}", measured, f"loses ≤ {most} %", loses <= most))
    return rows


async def _streams(bench: _Bench) -> list[Row]:
    ports = bench.ports
    orders = {
        "direct": bench.direct(ports.raw, stream=STREAM_BYTES, hello=True),
        "through a tunnel": bench.connect(ports.raw, stream=STREAM_BYTES, hello=True),
        "direct with TLS": bench.direct(ports.tls, stream=STREAM_BYTES, tls=True),
        "through a tunnel, TLS inside": bench.connect(ports.tunnelled, stream=STREAM_BYTES, tls=True),
        "intercepted and scanned": bench.connect(ports.tls, stream=STREAM_BYTES, tls=True),
    }
    rates: dict[str, list[float]] = {way: [] for way in orders}
    cpu: dict[str, float] = dict.fromkeys(orders, 0.0)
    for _ in range(STREAMS):
        for way, order in orders.items():
            one = await bench.carry_out(order)
            rates[way].append(STREAM_BYTES / 1e6 / one.outcome.latencies[0])
            cpu[way] += one.sidecar / STREAMS / STREAM_BYTES * 1e9
    least = {"through a tunnel": 400, "intercepted and scanned": 150}
    rows = []
    for way, of in rates.items():
        measured = spread_of(of, " MB/s")
        if not way.startswith("direct"):
            measured += f"; CPU of the sidecar {cpu[way]:.1f} s/GB"
        needed = least.get(way)
        met = None if needed is None else statistics.median(of) >= needed
        rows.append(Row(f"stream, {way}", measured, "" if needed is None else f"≥ {needed} MB/s", met))
    return rows


# What stands around it --------------------------------------------------------------------------------------


def _grant(number: int, ports: Ports) -> Grant:
    read = {"host": _HOST, "ports": [ports.plain, ports.tls]}
    unread = {"host": _HOST, "ports": [ports.tunnelled, ports.raw], "tls_mode": "tunnel"}
    rules = tuple(NetworkRule.parse(rule) for rule in (read, unread))
    return Grant(f"bench-{number}", "bench", rules, ("token",), limits=_UNLIMITED)


@contextlib.asynccontextmanager
async def _supervisor(folder: Path, certificate: str) -> AsyncIterator[EgressSupervisor]:
    store = folder / "credentials.enc"
    secret = Secret("not-a-secret-but-as-long-as-one")
    Vault(store, MasterKey(_KEY)).put(Credential("token", secret, ("api.example.test",)))
    setup = EgressSetup(store, AddressPolicySpec(trusted=("127.0.0.0/8",)), (certificate,))
    uids = UidRange(910_000, 2 * SIDECARS) if can_have_own_uids() else None
    with open_keys(folder, None, {"CLAWBOX_MASTER_KEY": _KEY}) as keys:
        async with (
            AuditLog(folder / "audit") as audit,
            EgressSupervisor(setup, keys, audit=audit, metrics=Metrics(), uids=uids) as supervisor,
        ):
            yield supervisor


@contextlib.asynccontextmanager
async def _peer(*arguments: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "benchmarks.egress_peers", *map(str, arguments))
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=64 << 20)
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def _client(trusted: Path) -> contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return _peer("client", trusted)


@contextlib.asynccontextmanager
async def _upstream(folder: Path) -> AsyncIterator[Ports]:
    async with _peer("upstream", folder / "upstream.pem") as process:
        assert process.stdout is not None
        yield msgspec.json.decode(await process.stdout.readline(), type=Ports)


def _certificate(folder: Path) -> str:
    """The upstream's certificate, which is its own authority; with its key it is in ``upstream.pem``."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _HOST)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(_HOST))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "upstream.pem").write_bytes(private + pem)
    return pem.decode()
