"""The system calls that containers may make: ``profile.json``, in the engine's format.

docs/seccomp.md says how the list came about.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files


@functools.cache
def seccomp_profile() -> str:
    """The profile as the engine takes it behind ``seccomp=``: JSON on one line."""
    text = files(__package__).joinpath("profile.json").read_text("utf-8")
    return json.dumps(json.loads(text), separators=(",", ":"))
