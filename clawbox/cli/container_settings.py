"""What is wrong with the settings of containers that a server only finds when it begins to serve them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from clawbox.config import Problem
from clawbox.config.containers import FOLDER_WORDS
from clawbox.containers.docker.address import EngineAddress
from clawbox.containers.images import ImageAllowlist, Reference
from clawbox.containers.mounts import is_template_folder
from clawbox.containers.wanted import FOLDER_KEYS
from clawbox.errors import ClawboxError
from clawbox.network_rules import intersect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clawbox.config import Config, ImageTemplate
    from clawbox.config.load import Loaded

_LIMITS = {
    "memory_mb": "max_memory_mb",
    "pids": "max_pids",
    "cpu_millis": "max_cpu_millis",
    "timeout_ms": "max_timeout_ms",
    "max_output_bytes": "max_output_bytes",
}
"""Of a template, and the most that the server gives; 0 there is no limit."""


def container_problems(loaded: Loaded) -> tuple[Problem, ...]:
    """Names of engine and images that are none, and what templates have beyond what any container may."""
    if not loaded.config.containers.enabled:
        return ()
    return tuple(
        Problem(loaded.source_of(_setting(key)), key, found, accepted)
        for key, found, accepted in _faults(loaded.config)
    )


def _setting(key: str) -> str:
    """``section.key`` of ``section.key[0]`` or ``section.key.name``."""
    section, setting, *_ = key.split(".")
    return f"{section}.{setting.partition('[')[0]}"


def _faults(config: Config) -> Iterator[tuple[str, str, str]]:
    url = config.containers.docker_url
    try:
        EngineAddress.parse(url, {})
    except ValueError:
        yield (
            "containers.docker_url",
            _quoted(url),
            "unix:///PATH, or tcp:// with a loopback address and a port",
        )
    for number, entry in enumerate(config.images.allowed):
        try:
            ImageAllowlist.parse([entry])
        except ValueError as error:
            yield (
                f"images.allowed[{number}]",
                f"a fault: {error}",
                "a repository such as alpine, or a prefix that ends with /",
            )
    yield from _image("images.default", config.images.default)
    for name, template in config.images.templates.items():
        yield from _image(f"images.templates.{name}.image", template.image)
        for folder in FOLDER_KEYS:
            if not is_template_folder(path := getattr(template, folder)):
                yield f"images.templates.{name}.{folder}", _quoted(path), FOLDER_WORDS
        yield from _beyond(f"images.templates.{name}", template, config)


def _image(key: str, text: str) -> Iterator[tuple[str, str, str]]:
    try:
        Reference.parse(text)
    except ClawboxError as error:
        yield key, f"a fault: {error.metadata['description']}", "an image reference"


def _beyond(key: str, template: ImageTemplate, config: Config) -> Iterator[tuple[str, str, str]]:
    """What no container of the template would be given, without a word."""
    policy = config.container_policy
    for number, rule in enumerate(template.network_allowlist):
        if not any(intersect(rule, allowed) for allowed in policy.network_allowlist):
            yield (
                f"{key}.network_allowlist[{number}]",
                _quoted(str(rule)),
                "what container_policy.network_allowlist covers",
            )
    for number, credential in enumerate(template.credentials):
        if credential not in policy.allowed_credentials:
            yield (
                f"{key}.credentials[{number}]",
                _quoted(credential),
                "one of container_policy.allowed_credentials",
            )
    limits = {
        f"resources.{name}": (getattr(template.resources, name), most) for name, most in _LIMITS.items()
    }
    limits["max_lifetime_ms"] = template.max_lifetime_ms, "max_lifetime_ms"
    for name, (value, most_name) in limits.items():
        most = getattr(config.containers, most_name)
        if value is not None and most and value > most:
            yield f"{key}.{name}", str(value), f"at most containers.{most_name}, which is {most}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
