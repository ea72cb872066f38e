"""The component's export: answers ``run`` of the world ``clawbox:tool/tool`` with the interpreter.

Everything above ``WitWorld`` runs once, while the component is built: componentize-py keeps the memory of the
started interpreter in the component, so that a call begins with all of it loaded.
"""

import atexit
import gc

import wit_world
from componentize_py_types import Err

import interpreter
import library

library.install()
interpreter.prepare()
atexit._clear()  # what the standard library registered while it was imported has no end to wait for
gc.collect()
gc.freeze()  # a collection during a call then leaves these pages alone, and they stay shared between calls


class WitWorld(wit_world.WitWorld):
    """The export."""

    def run(self, params: str) -> str:
        ok, answer = interpreter.run(params)
        if ok:
            return answer
        raise Err(answer)
