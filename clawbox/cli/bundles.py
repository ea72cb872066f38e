"""Options that several commands share, each group of which a command gets as one value.

typer reads signatures at run time, so such modules leave ``annotations`` of ``__future__`` out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def bundled(function: Callable[..., None], **makers: Callable[..., object]) -> Callable[..., None]:
    """A command that takes what ``function`` takes, with options in place of each parameter in ``makers``.

    They are the parameters of the parameter's maker, which makes its value of them.
    """
    own = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in makers
    ]
    groups = {name: inspect.signature(maker).parameters for name, maker in makers.items()}
    added = [parameter for group in groups.values() for parameter in group.values()]

    def command(**values: Any) -> None:
        made = {
            name: makers[name](**{option: values.pop(option) for option in group})
            for name, group in groups.items()
        }
        function(**made, **values)

    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *added)]
    )
    command.__annotations__ = {}
    return command
