"""``make bench``: measures a real server on this machine and prints one table.

Targets are ratios wherever the machine would decide otherwise. A miss is printed, not hidden; it does not
fail the run, because a benchmark on a busy machine is no test.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics

from rich.console import Console
from rich.table import Table

from benchmarks import executions, harness


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each row is measured")
    seconds = parser.parse_args().seconds
    console = Console()
    console.print(f"clawbox benchmarks on {harness.machine()}")
    table = Table("what", "measured", "target", "", show_lines=True)
    with harness.workspace() as folder:
        with harness.server(folder) as server:
            executions.upload_echo(server)
            spread = executions.latencies(server, seconds)
            noop, echo, python = spread["no-op"], spread["echo"], spread["python"]
            table.add_row("unary RPC that does nothing, 1 client", str(noop), "", "")
            ratio = echo.p50 / noop.p50
            against = f"{echo}: {ratio:.2f} × no-op"
            _row(table, "Execute echo (core module), 1 client", against, "≤ 2 × no-op", met=ratio <= 2)
            _row(table, "Execute Python print(1+1), 1 client", str(python), "p50 ≤ 5 ms", met=python.p50 <= 5)
            table.add_row("Execute JavaScript console.log(1+1), 1 client", str(spread["javascript"]), "", "")
            rates = [asyncio.run(executions.throughput(server, 8, seconds)) for _ in range(3)]
            rate = statistics.median(rates)
            spread_of_rates = f"{rate:.0f}/s ({min(rates):.0f} to {max(rates):.0f})"
            _row(table, "Execute Python, 8 clients", spread_of_rates, "≥ 300/s", met=rate >= 300)
        starts = []
        for _ in range(5):
            with harness.server(folder) as server:
                starts.append(server.start_seconds)
                memory = harness.idle_memory(server.pid)
        start = statistics.median(starts)
        measured = f"{start:.2f} s ({min(starts):.2f} to {max(starts):.2f})"
        _row(table, "start to SERVING, warm cache", measured, "≤ 2 s", met=start <= 2)
        total = sum(memory)
        shares = " + ".join(f"{size:.0f}" for size in memory)
        _row(
            table,
            "idle memory (PSS): server + children",
            f"{total:.0f} MB ({shares})",
            "≤ 150 MB",
            met=total <= 150,
        )
    console.print(table)


def _row(table: Table, what: str, measured: str, target: str, *, met: bool) -> None:
    table.add_row(what, measured, target, "met" if met else "[bold red]missed[/]")


if __name__ == "__main__":
    main()
