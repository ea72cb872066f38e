"""Finding the settings file, reading it, laying the environment over it, saying all that is wrong at once."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from clawbox.config.environment import Setting, is_setting, read_environment
from clawbox.config.explain import translate
from clawbox.config.model import Config, Origin
from clawbox.config.problems import ConfigError, Problem
from clawbox.config.schema import SECTIONS, all_keys, key_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

FILE_VARIABLE = "CLAWBOX_CONFIG"
DEFAULTS = "defaults"

_HOME_FILES = ("~/.clawbox/config.toml", "~/.clawbox/config/clawbox.toml")
_LOCAL_FILE = "config/default.toml"
_LARGEST_FILE = 4 << 20


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings and where each came from."""

    config: Config
    sources: Mapping[str, str]
    """``section.key`` → the file's path, ``environment NAME`` or ``command line``; absent: the default."""

    def source_of(self, key: str) -> str:
        """Where ``section.key`` came from."""
        return self.sources.get(key, DEFAULTS)


def load(
    path: Path | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """Read the settings.

    ``path`` is the file; None looks for one as :func:`find_file` does. ``overrides`` are values by
    ``section.key`` that win over file and environment. ``environ`` is ``os.environ`` unless given.

    Raises ConfigError with every problem of file, environment and rules at once.
    """
    environ = os.environ if environ is None else environ
    own = {name: text for name, text in environ.items() if is_setting(name)}
    return load_from(Origin(find_file(path, environ), dict(overrides or {}), own, _working_folder()))


def _working_folder() -> Path:
    """Where relative paths of the environment start; the root when somebody has removed the folder."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path("/")


def load_from(origin: Origin) -> Loaded:
    """Read the settings that come from there. Raises ConfigError as :func:`load` does."""
    file = origin.file
    problems: list[Problem] = []
    raw: dict[str, object] = {}
    if file is not None:
        try:
            raw = read_file(file)
        except ConfigError as error:
            problems += error.problems
    sources = _file_sources(raw, file)

    from_environment, wrong = read_environment(origin.environ, origin.here)
    problems += wrong
    given = [Setting(key, value, "command line") for key, value in origin.overrides.items()]
    values = _overlay(raw, [*from_environment, *given], sources)

    config, wrong = _check(values, folder_of(file), lambda key: _source(key, sources, file))
    problems += wrong
    if config is None or problems:
        raise ConfigError(problems)
    config._origin = origin  # noqa: SLF001 - set once, here, where the value is made
    return Loaded(config, sources)


def find_file(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The settings file: ``path``, else ``$CLAWBOX_CONFIG``, else the first of the usual places that exists.

    The usual places are ``~/.clawbox/config.toml``, ``~/.clawbox/config/clawbox.toml`` and
    ``config/default.toml``. None: there is no file, and defaults are in force. A usual place that cannot be
    looked into is a ConfigError, since passing over it could pass over a stricter file.
    """
    if path is not None:
        return path.absolute()
    if named := environ.get(FILE_VARIABLE):
        return Path(named).expanduser().absolute()
    for place in (*_HOME_FILES, _LOCAL_FILE):
        try:
            candidate = Path(place).expanduser().absolute()
        except RuntimeError:  # no home folder
            continue
        try:
            if candidate.is_file():
                return candidate
        except OSError as error:
            raise ConfigError([_unreadable(candidate, error)]) from None
    return None


def folder_of(file: Path | None) -> Path:
    """Where relative paths start: the file's folder; without a file, ``~/.clawbox`` if there is a home."""
    if file is not None:
        return file.parent
    try:
        return Path("~/.clawbox").expanduser().absolute()
    except RuntimeError:
        return _working_folder()


def read_file(file: Path) -> dict[str, object]:
    """The tables of a settings file. Raises ConfigError when it cannot be read or is not TOML."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError([_unreadable(file, error)]) from None
    if len(data) > _LARGEST_FILE:
        raise ConfigError([Problem(str(file), "", "a huge file", f"at most {_LARGEST_FILE} bytes")])
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        found = f"bytes that are not UTF-8 at offset {error.start}"
    except tomllib.TOMLDecodeError as error:
        found = f"a syntax error: {error}"
    except RecursionError:
        found = "values nested too deep"
    raise ConfigError([Problem(str(file), "", found, "TOML 1.0 in UTF-8")])


def _unreadable(file: Path, error: OSError) -> Problem:
    """The error's own words, as in ``No such file or directory``."""
    return Problem(
        str(file), "", error.strerror or type(error).__name__, "a TOML file that the server can read"
    )


def check_section(section: str, raw: Mapping[str, object], file: Path) -> None:
    """Raises ConfigError when one section of ``raw``, the tables of ``file``, is not acceptable by itself."""
    values = {name: {} for name in SECTIONS} | {section: raw.get(section, {})}
    _, problems = _check(values, file.parent, lambda _: str(file))
    if problems:
        raise ConfigError(problems)


def _check(
    values: dict[str, object], folder: Path, source_of: Callable[[str], str]
) -> tuple[Config | None, list[Problem]]:
    """The settings, or all that is wrong with them.

    Pydantic looks at rules over several keys only when each key is right. So that those are reported too, a
    second pass leaves out the keys that were wrong, and skips the rules that read one of them.
    """
    context = {"folder": folder}
    try:
        return Config.model_validate(values, context=context), []
    except ValidationError as error:
        first = error
    wrong = {error["loc"][:2] for error in first.errors(include_url=False) if error["loc"]}
    rest: dict[str, object] = {
        section: {key: value for key, value in table.items() if (section, key) not in wrong}
        for section, table in values.items()
        if isinstance(table, dict) and (section,) not in wrong
    }
    problems = translate(first, source_of)
    try:
        Config.model_validate({section: {} for section in SECTIONS} | rest, context=context)
    except ValidationError as second:
        skip = {key_text(location) for location in wrong}
        problems += [one for one in translate(second, source_of, skip) if one not in problems]
    return None, problems


def _file_sources(raw: Mapping[str, object], file: Path | None) -> dict[str, str]:
    return {
        f"{section}.{key}": str(file)
        for section, table in raw.items()
        if isinstance(table, dict)
        for key in table
    }


def _overlay(
    raw: Mapping[str, object], settings: Iterable[Setting], sources: dict[str, str]
) -> dict[str, object]:
    """``raw`` with ``settings`` over it, and every section there, so that defaults are resolved like values.

    ``sources`` is brought up to date.
    """
    values: dict[str, object] = {section: {} for section in SECTIONS}
    values |= {name: dict(table) if isinstance(table, dict) else table for name, table in raw.items()}
    for setting in settings:
        section, _, key = setting.key.partition(".")
        table = values.setdefault(section, {})
        if isinstance(table, dict):  # otherwise the model refuses the section
            table[key] = setting.value
            sources[setting.key] = setting.source
    return values


def _source(key: str, sources: Mapping[str, str], file: Path | None) -> str:
    """Where the value at ``key`` (``auth.tokens[0].name``) came from."""
    top = ".".join(key.split(".")[:2]).partition("[")[0]
    if top in sources:
        return sources[top]
    known = set(all_keys())
    return str(file) if file is not None and top not in known else DEFAULTS
