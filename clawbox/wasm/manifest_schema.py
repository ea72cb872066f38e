"""Whether a JSON Schema can be used for a tool's input or output: checked once, when a manifest is read.

The schema must be a valid one of a known draft, of bounded depth and size, and complete in itself: every
``$ref`` points into the same document and at something that is there. Values are checked against it
elsewhere, in the worker, because a pattern can take seconds.

Checking runs in this process, so it has a time of its own: a pattern of a few bytes that names all of Unicode
takes milliseconds to compile, and thousands of anchors take a look at everything each.
"""

from __future__ import annotations

import re
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import referencing
import referencing.exceptions
import referencing.jsonschema
from jsonschema import (
    Draft3Validator,
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
    FormatChecker,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_PROBLEMS = 50
MAX_PATTERN = 1000
"""Characters of a regular expression."""
MAX_SECONDS = 2.0
"""How long checking may take. Nothing of it is more than MAX_PATTERN characters away from the next look."""
DEFAULT_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_DRAFTS = {
    DEFAULT_DRAFT: Draft202012Validator,
    "https://json-schema.org/draft/2019-09/schema": Draft201909Validator,
    "http://json-schema.org/draft-07/schema": Draft7Validator,
    "http://json-schema.org/draft-06/schema": Draft6Validator,
    "http://json-schema.org/draft-04/schema": Draft4Validator,
    "http://json-schema.org/draft-03/schema": Draft3Validator,
}
# Flags in a pattern are Python's, not JSON Schema's; with (?i) classes take far longer to compile.
_INLINE_FLAGS = re.compile(r"\(\?[aiLmsux-]")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def pointer(path: Iterable[str | int]) -> str:
    """The JSON pointer (RFC 6901) of a path; empty for the whole document."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def schema_problems(schema: dict[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with a schema, as pairs of a JSON pointer into it and a text; empty when nothing is."""
    problems: list[tuple[str, str]] = []
    for nodes, (path, value) in enumerate(_walk(schema), start=1):
        if len(path) > MAX_DEPTH:
            return [(pointer(path[:8]), f"deeper than {MAX_DEPTH} levels")]
        if nodes > MAX_NODES:
            return [("", f"more than {MAX_NODES} values")]
        if path and path[-1] in _REFERENCES and isinstance(value, str) and not value.startswith("#"):
            problems.append((pointer(path), f"{value[:200]!r} is outside the document; use #/$defs/…"))
    draft = schema.get("$schema", DEFAULT_DRAFT)
    validator = _DRAFTS.get(draft.removesuffix("#")) if isinstance(draft, str) else None
    if validator is None:
        return [*problems, ("/$schema", f"unknown draft; known are {', '.join(_DRAFTS)}")]
    deadline = time.monotonic() + MAX_SECONDS
    try:
        metaschema = validator(validator.META_SCHEMA, format_checker=_patterns_only(deadline))
        for error in metaschema.iter_errors(schema):
            problems.append((pointer(tuple(error.absolute_path)), error.message[:300]))
            if len(problems) >= MAX_PROBLEMS:
                break
        if not problems:
            problems += islice(_dangling(schema, draft, deadline), MAX_PROBLEMS)
    except _TooSlowError:
        problems.append(("", f"takes more than {MAX_SECONDS:g} s to check"))
    except (ArithmeticError, RecursionError, ValueError, TypeError, AttributeError, LookupError) as error:
        # The validator's own limits: a pattern with too many repeats, a reference that goes round in circles.
        problems.append(("", f"cannot be checked ({type(error).__name__})"))
    return problems[:MAX_PROBLEMS]


class _TooSlowError(Exception):
    pass


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise _TooSlowError


def _patterns_only(deadline: float) -> FormatChecker:
    """Checks the one format of metaschemas that matters here: that a pattern is one that Python compiles."""
    checker = FormatChecker(formats=())

    @checker.checks("regex", raises=(re.error, ValueError))
    def is_pattern(value: object) -> bool:
        if isinstance(value, str):
            if len(value) > MAX_PATTERN:
                raise ValueError(f"longer than {MAX_PATTERN} characters")
            if _INLINE_FLAGS.search(value):
                raise ValueError("flags are not part of JSON Schema")
            _check_time(deadline)
            re.compile(value)
        return True

    return checker


def _walk(value: object) -> Iterator[tuple[tuple[str | int, ...], object]]:
    stack: list[tuple[tuple[str | int, ...], object]] = [((), value)]
    while stack:
        path, node = stack.pop()
        yield path, node
        if isinstance(node, dict):
            stack += [((*path, key), child) for key, child in node.items()]
        elif isinstance(node, list):
            stack += [((*path, index), child) for index, child in enumerate(node)]


def _dangling(schema: dict[str, Any], draft: str, deadline: float) -> Iterator[tuple[str, str]]:
    """References that lead nowhere. The registry has no way to fetch, so nothing is ever asked for."""
    specification = referencing.jsonschema.specification_with(draft)
    root = specification.create_resource(schema)
    registry: referencing.Registry[Any] = referencing.Registry().with_resource(root.id() or "", root).crawl()
    stack = [(root, registry.resolver_with_root(root))]
    while stack:
        _check_time(deadline)
        resource, resolver = stack.pop()
        contents = resource.contents
        if isinstance(contents, dict):
            for keyword in _REFERENCES:
                target = contents.get(keyword)
                if isinstance(target, str):
                    _check_time(deadline)
                    try:
                        resolver.lookup(target)
                    except referencing.exceptions.Unresolvable:
                        yield "", f"{keyword} {target[:200]!r} points at nothing"
        stack += [(child, resolver.in_subresource(child)) for child in resource.subresources()]
