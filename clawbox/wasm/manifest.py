"""A tool's manifest: what it is, what it may reach, its limits, and what it accepts and returns.

The schema is that of the Rust clawbox, with rule objects beside host strings and ``default_fuel`` and
``max_fuel`` under ``resources``. Reading is strict: JSON only, no repeated or unknown keys, no coercion, and
every problem is reported at once. What a manifest *may* say is here; what of it is granted is for
``clawbox.policy`` to say. Checking a large schema takes up to a second: read manifests off the event loop.
"""

from __future__ import annotations

import difflib
import json
import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from clawbox.errors import ClawboxError, FieldViolation, Reason
from clawbox.network_rules import MAX_RULES, NetworkRule
from clawbox.wasm.manifest_schema import MAX_DEPTH, schema_problems

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BYTES = 256 << 10
"""Size of a manifest in bytes of JSON."""
NAME_PATTERN = r"^[A-Za-z0-9_-]{1,64}\z"
_MAX_VALUES = 50_000
_MAX_SHOWN = 100

Positive = Annotated[int, Field(ge=1, le=(1 << 63) - 1)]


def _parse_rule(value: object, info: ValidationInfo) -> NetworkRule:
    any_host = bool(info.context and info.context.get("any_host"))
    return NetworkRule.parse(value, any_host=any_host)


Rule = Annotated[NetworkRule, PlainValidator(_parse_rule), PlainSerializer(NetworkRule.to_json)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ToolSection(_Section):
    """Name, description and version."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: Annotated[str, Field(max_length=4096)]
    version: Annotated[str, Field(min_length=1, max_length=128)] = "0.1.0"


class NetworkSection(_Section):
    """Where the tool may connect."""

    allowlist: Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES)] = ()
    max_concurrent: Positive | None = None
    """Requests in flight at once for one call; None: 5."""


class CredentialsSection(_Section):
    """Which credentials the tool may ask for."""

    available: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=MAX_RULES)
    ] = ()


class ResourcesSection(_Section):
    """The tool's limits; None takes the server's."""

    default_timeout_ms: Positive | None = None
    max_timeout_ms: Positive | None = None
    default_memory_mb: Positive | None = None
    max_memory_mb: Positive | None = None
    default_fuel: Positive | None = None
    max_fuel: Positive | None = None

    @model_validator(mode="after")
    def _default_within_maximum(self) -> ResourcesSection:
        for what in ("timeout_ms", "memory_mb", "fuel"):
            default, maximum = getattr(self, f"default_{what}"), getattr(self, f"max_{what}")
            if default is not None and maximum is not None and default > maximum:
                raise PydanticCustomError(
                    "default_over_maximum",
                    "default_{what} ({default}) is more than max_{what} ({maximum})",
                    {"what": what, "default": default, "maximum": maximum},
                )
        return self


class Manifest(_Section):
    """A tool's manifest. Satisfies :class:`clawbox.policy.ManifestTerms`."""

    tool: ToolSection
    network: NetworkSection = NetworkSection()
    credentials: CredentialsSection = CredentialsSection()
    resources: ResourcesSection = ResourcesSection()
    input_schema: dict[str, Any] | None = None
    """JSON Schema of the parameters; None accepts everything. Not to be changed."""
    output_schema: dict[str, Any] | None = None
    """JSON Schema of the result; None accepts everything. Not to be changed."""

    @field_validator("input_schema", "output_schema", mode="after")
    @classmethod
    def _usable_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        problems = schema_problems(schema) if schema is not None else []
        if problems:
            raise PydanticCustomError(
                "schema", "{text}", {"text": "not a usable JSON Schema", "problems": problems}
            )
        return schema

    @classmethod
    def parse(cls, data: bytes, *, any_host: bool = False) -> Manifest:
        """Reads a manifest from JSON in UTF-8.

        ``any_host``: whether the operator's own policy holds a bare ``*``; without that one is refused.
        Raises INVALID_MANIFEST with every violation.
        """
        value = _strict_json(data)
        try:
            # As JSON again: strictness then lets a list become a tuple, and nothing else.
            return cls.model_validate_json(json.dumps(value), context={"any_host": any_host})
        except ValidationError as error:
            found = [violation for detail in error.errors() for violation in _violations(detail)]
            raise _invalid(found) from None

    @classmethod
    def from_value(cls, value: Mapping[str, object], *, any_host: bool = False) -> Manifest:
        """Reads a manifest from values that JSON can hold; raises as :meth:`parse`."""
        try:
            data = json.dumps(value, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise _invalid(
                [FieldViolation("", f"cannot be written as JSON: {error}"[:300], "json")]
            ) from None
        return cls.parse(data, any_host=any_host)

    @classmethod
    def automatic(cls, name: str) -> Manifest:
        """The manifest of a module that has none: no network, no credentials, any input."""
        return cls(tool=ToolSection(name=name, description="Auto-loaded WASM tool", version="0.0.0"))

    def to_json(self) -> bytes:
        """JSON that :meth:`parse` reads back as an equal manifest; what is left out stays so."""
        value = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.tool.name

    @property
    def network_rules(self) -> tuple[NetworkRule, ...]:
        """Where the tool may connect."""
        return self.network.allowlist

    @property
    def max_concurrent(self) -> int | None:
        """Requests in flight at once for one call; None: the default."""
        return self.network.max_concurrent

    @property
    def credential_names(self) -> tuple[str, ...]:
        """Credentials that the tool may ask for."""
        return self.credentials.available

    @property
    def default_timeout_ms(self) -> int | None:
        """Time limit where a request names none."""
        return self.resources.default_timeout_ms

    @property
    def max_timeout_ms(self) -> int | None:
        """Largest time limit that a request may name."""
        return self.resources.max_timeout_ms

    @property
    def default_memory_mb(self) -> int | None:
        """Memory limit in MiB where a request names none."""
        return self.resources.default_memory_mb

    @property
    def max_memory_mb(self) -> int | None:
        """Largest memory limit in MiB that a request may name."""
        return self.resources.max_memory_mb

    @property
    def default_fuel(self) -> int | None:
        """Fuel where a request names none."""
        return self.resources.default_fuel

    @property
    def max_fuel(self) -> int | None:
        """Most fuel that a request may name."""
        return self.resources.max_fuel


def _strict_json(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise _invalid([FieldViolation("", f"larger than {MAX_BYTES} bytes", "size")])
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        problem = _beyond_bounds(value)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start}"
    except RecursionError:
        problem = f"deeper than {MAX_DEPTH} levels"
    except ValueError as error:
        problem = f"not JSON: {error}"[:300]
    if problem:
        raise _invalid([FieldViolation("", problem, "json")])
    if not isinstance(value, dict):
        raise _invalid([FieldViolation("", "not a JSON object", "type")])
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated[:_MAX_SHOWN]!r} occurs twice in one object")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _beyond_bounds(value: object) -> str | None:
    stack, values = [(value, 1)], 0
    while stack:
        node, depth = stack.pop()
        values += 1
        if depth > MAX_DEPTH + 4:
            return f"deeper than {MAX_DEPTH} levels"
        if values > _MAX_VALUES:
            return f"more than {_MAX_VALUES} values"
        if isinstance(node, dict):
            stack += [(item, depth + 1) for pair in node.items() for item in pair]
        elif isinstance(node, list):
            stack += [(item, depth + 1) for item in node]
        elif isinstance(node, str):
            node.encode()  # a lone surrogate is no text; the UnicodeEncodeError is a ValueError
        elif isinstance(node, int) and node.bit_length() > 1024:
            return "a number is too large"
    return None


def _violations(detail: ErrorDetails) -> list[FieldViolation]:
    field = _field(detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"][:-1])
        nearest = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}"
        return [FieldViolation(field, f"unknown key; {hint}", "unknown_key")]
    if detail["type"] == "schema":
        return [FieldViolation(field + at, text, "schema") for at, text in detail["ctx"]["problems"]]
    if detail["type"] == "value_error":
        return [FieldViolation(field, str(detail["ctx"]["error"]), "rule")]
    return [FieldViolation(field, detail["msg"], detail["type"])]


def _field(location: tuple[int | str, ...]) -> str:
    text = "".join(
        f"[{step}]" if isinstance(step, int) else f".{str(step)[:_MAX_SHOWN]}" for step in location
    )
    return text.removeprefix(".")


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Manifest
    for step in location:
        kind = model.model_fields[str(step)].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        model = kind
    return list(model.model_fields)


def _invalid(violations: list[FieldViolation]) -> ClawboxError:
    problems = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations[:5])
    more = f" (and {len(violations) - 5} more)" if len(violations) > 5 else ""
    return ClawboxError(
        Reason.INVALID_MANIFEST,
        "the manifest is not valid: {problems}",
        violations=violations,
        problems=(problems + more)[:2000],
    )
