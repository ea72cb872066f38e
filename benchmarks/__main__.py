"""``make bench``: measures a real server on this machine and prints one table.

Targets are ratios wherever the machine would decide otherwise. A miss is printed, not hidden; it does not
fail the run, because a benchmark on a busy machine is no test.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks import containers, egress, executions, harness
from benchmarks.harness import Row

if TYPE_CHECKING:
    from pathlib import Path

_MET = {None: "", True: "met", False: "[bold red]missed[/]"}


def main() -> None:
    """Run all measurements, or one part of them."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="how long each row of a server is measured"
    )
    parser.add_argument("--only", choices=("server", "egress", "containers"), help="one part alone")
    arguments = parser.parse_args()
    console = Console()
    console.print(f"clawbox benchmarks on {harness.machine()}")
    table = Table("what", "measured", "target", "", show_lines=True)
    with harness.workspace() as folder:
        rows: list[Row] = []
        if arguments.only in (None, "server"):
            rows += _server(folder, arguments.seconds)
        if arguments.only in (None, "egress"):
            rows += egress.rows(folder)
        if arguments.only in (None, "containers"):
            rows += containers.rows(folder)
    for row in rows:
        table.add_row(row.what, row.measured, row.target, _MET[row.met])
    console.print(table)


def _server(folder: Path, seconds: float) -> list[Row]:
    rows: list[Row] = []
    with harness.server(folder) as server:
        executions.upload_echo(server)
        spread = executions.latencies(server, seconds)
        noop, echo, python = spread["no-op"], spread["echo"], spread["python"]
        rows.append(Row("unary RPC that does nothing, 1 client", str(noop)))
        ratio = echo.p50 / noop.p50
        against = f"{echo}: {ratio:.2f} × no-op"
        rows.append(Row("Execute echo (core module), 1 client", against, "≤ 2 × no-op", met=ratio <= 2))
        rows.append(
            Row("Execute Python print(1+1), 1 client", str(python), "p50 ≤ 5 ms", met=python.p50 <= 5)
        )
        rows.append(Row("Execute JavaScript console.log(1+1), 1 client", str(spread["javascript"])))
        rates = [asyncio.run(executions.throughput(server, 8, seconds)) for _ in range(3)]
        measured = harness.spread_of(rates, "/s")
        rows.append(
            Row("Execute Python, 8 clients", measured, "≥ 300/s", met=statistics.median(rates) >= 300)
        )
    starts = []
    for _ in range(5):
        with harness.server(folder) as server:
            starts.append(server.start_seconds)
            memory = harness.idle_memory(server.pid)
    start = statistics.median(starts)
    measured = f"{start:.2f} s ({min(starts):.2f} to {max(starts):.2f})"
    rows.append(Row("start to SERVING, warm cache", measured, "≤ 2 s", met=start <= 2))
    total = sum(memory)
    shares = " + ".join(f"{size:.0f}" for size in memory)
    rows.append(
        Row(
            "idle memory (PSS): server + children",
            f"{total:.0f} MB ({shares})",
            "≤ 150 MB",
            met=total <= 150,
        )
    )
    return rows


if __name__ == "__main__":
    main()
