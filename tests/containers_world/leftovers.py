"""What may be left of containers: at the engine, among processes, on disk, in the state, among mounts."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.engine import EngineApi

_LABEL = "clawbox.installation"


class Leftovers:
    """Looks for what one server (the folder that ``clawbox init`` made) has, or left."""

    def __init__(self, home: Path, engine: EngineApi) -> None:
        self.home = home
        self.engine = engine

    @property
    def installation(self) -> str:
        """The value of the label that this server gives its containers; empty before it ever served any."""
        path = self.home / "containers.installation"
        return path.read_text() if path.exists() else ""

    def containers(self) -> set[str]:
        """Ids of the engine's containers, in whatever state."""
        return (
            self.engine.container_ids(label=f"{_LABEL}={self.installation}") if self.installation else set()
        )

    def folders(self) -> list[str]:
        """Of containers: run folders, and captured output."""
        return sorted(
            str(path.relative_to(self.home))
            for name in ("containers", "output")
            for path in (self.home / name).glob("*")
        )

    def workspaces(self) -> list[str]:
        """Folders of workspaces, without those that are empty hashes of owners."""
        root = self.home / "workspaces"
        return sorted(str(path.relative_to(root)) for path in root.glob("*/*"))

    def rows(self) -> list[tuple[str, str]]:
        """Ids and states in the state file; only while no server holds it."""
        opened = sqlite3.connect(f"file:{self.home}/state.db?mode=ro", uri=True)
        with contextlib.closing(opened) as database:
            return database.execute("SELECT container_id, state FROM containers ORDER BY 1").fetchall()

    def mounts(self) -> list[str]:
        """Mounts on this machine from the server's folder."""
        return [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.home) in line
        ]

    def sidecars(self, pids: list[int]) -> list[int]:
        """Those of a server's processes that are sidecars (``LiveServer.descendants()``)."""
        found = []
        for pid in pids:
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name == "clawbox-egress":
                found.append(pid)
        return found

    def audit(self, kind: str = "") -> list[dict[str, object]]:
        """Rows of the audit log, oldest first."""
        rows = [
            json.loads(line)
            for path in sorted((self.home / "audit").glob("*.jsonl*"))
            for line in path.read_text(errors="replace").replace("\0", "").splitlines()
            if line.startswith("{")
        ]
        return [row for row in rows if not kind or row.get("kind") == kind]
