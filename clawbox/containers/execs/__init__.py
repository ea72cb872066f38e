"""Processes that callers start inside containers: Exec and RunCommand.

``execs`` has all of them. One begins in ``inside`` (the gate, its cgroup, its end), ``output`` cleans what it
writes, ``life`` says who ends it; ``process`` is what callers attach to, ``run`` what is run to its end.
"""

from __future__ import annotations

from clawbox.containers.execs.calls import ExecCall, RunCall
from clawbox.containers.execs.events import Cut, ExecEvent, Exited, Gap, Output, RunResult, Started
from clawbox.containers.execs.execs import Execs, ExecTimes
from clawbox.containers.execs.process import Exec

__all__ = [
    "Cut",
    "Exec",
    "ExecCall",
    "ExecEvent",
    "ExecTimes",
    "Execs",
    "Exited",
    "Gap",
    "Output",
    "RunCall",
    "RunResult",
    "Started",
]
