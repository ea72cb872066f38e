"""What the demo prints, and what it expects."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator

console = Console(highlight=False, soft_wrap=True)
failures: list[str] = []


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Print what is done, and how long it took."""
    console.print(f"\n[bold]{title}[/]")
    began = time.perf_counter()
    yield
    console.print(f"  [dim]{1000 * (time.perf_counter() - began):.0f} ms[/]")


def show(label: str, text: object) -> None:
    """Print one result."""
    for line in str(text).strip().splitlines() or [""]:
        console.print(f"  [cyan]{label:>12}[/]  ", end="")
        console.print(line, markup=False)
        label = ""


def expect(what: str, *, holds: bool) -> None:
    """Print whether something holds; the demo fails at the end when it does not."""
    mark = "[green]✓[/]" if holds else "[bold red]✗[/]"
    console.print(f"  {mark} {what}")
    if not holds:
        failures.append(what)
