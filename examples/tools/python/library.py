"""The standard library, and the packages baked into this tool, kept in the component's memory.

A component has no files. componentize-py keeps the modules that were imported while it was built, and this
keeps all others: compiled, compressed, and loaded when a run imports them. Importing everything in advance
would make every call pay for what few use.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.resources.abc
import io
import marshal
import os
import sys
import zlib

STDLIB = "/python"

# Parts of the standard library that are of no use without a screen, an installer or its own test suite.
_LEFT_OUT = frozenset(
    {"__pycache__", "config", "ensurepip", "idlelib", "lib-dynload", "site-packages", "test", "tests", "tkinter"}
    | {"turtle", "turtledemo", "venv", "__phello__", "pydoc_data"}
)
_MAX_DATA_FILE = 1 << 20

# What code imports most, with what those modules import in turn: loaded before the first call.
PRELOADED = """
    abc argparse ast asyncio base64 binascii bisect calendar cmath collections.abc concurrent.futures contextlib
    copy csv dataclasses datetime decimal difflib email.message email.utils enum fractions functools glob gzip
    hashlib heapq html html.parser http.client inspect io itertools json json.tool keyword linecache locale
    logging math numbers operator os.path pathlib pickle pprint queue random re secrets shlex shutil socket
    sqlite3 statistics string struct subprocess sys tempfile textwrap threading time timeit traceback types
    typing unicodedata unittest.mock urllib.parse urllib.request uuid warnings weakref xml.etree.ElementTree
    zipfile zlib zoneinfo
""".split()


class _Code:
    """One module: its packed code, where it came from, and whether it is a package."""

    __slots__ = ("filename", "is_package", "packed")

    def __init__(self, filename: str, packed: bytes, is_package: bool) -> None:
        self.filename = filename
        self.packed = packed
        self.is_package = is_package


_modules: dict[str, _Code] = {}
_data: dict[str, bytes] = {}
"""Packed data files by path, of baked packages only: time zones, templates, word lists."""


class Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads what is kept here; stands behind the built-in modules."""

    def find_spec(self, fullname, path=None, target=None):  # noqa: ANN001, ANN201, ARG002
        module = _modules.get(fullname)
        if module is None:
            return None
        spec = importlib.machinery.ModuleSpec(
            fullname, self, origin=module.filename, is_package=module.is_package
        )
        spec.has_location = True
        if module.is_package:
            spec.submodule_search_locations = [os.path.dirname(module.filename)]
        return spec

    def exec_module(self, module) -> None:  # noqa: ANN001
        exec(self.get_code(module.__name__), module.__dict__)
        if module.__name__ == "asyncio":
            import eventloop

            eventloop.install()

    def get_code(self, fullname):  # noqa: ANN001, ANN201
        return marshal.loads(zlib.decompress(_modules[fullname].packed))

    def get_source(self, fullname):  # noqa: ANN001, ANN201, ARG002
        return None

    def is_package(self, fullname) -> bool:  # noqa: ANN001
        return _modules[fullname].is_package

    def get_data(self, path: str) -> bytes:
        try:
            return zlib.decompress(_data[path])
        except KeyError:
            raise FileNotFoundError(2, "not kept in this tool", path) from None

    def get_resource_reader(self, fullname):  # noqa: ANN001, ANN201
        return _Reader(os.path.dirname(_modules[fullname].filename))


class _Reader(importlib.resources.abc.TraversableResources):
    """Lets ``importlib.resources`` read the data files of a baked package."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def files(self):  # noqa: ANN201
        return _Path(self._folder)


class _Path(importlib.resources.abc.Traversable):
    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return os.path.basename(self._path)

    def is_file(self) -> bool:
        return self._path in _data

    def is_dir(self) -> bool:
        return any(path.startswith(self._path + "/") for path in _data)

    def iterdir(self):  # noqa: ANN201
        start = len(self._path) + 1
        names = {p[start:].split("/")[0] for p in _data if p.startswith(self._path + "/")}
        return (self.joinpath(name) for name in sorted(names))

    def joinpath(self, *parts: str):  # noqa: ANN201
        return _Path("/".join([self._path, *map(str, parts)]))

    def __truediv__(self, part: str):  # noqa: ANN204
        return self.joinpath(part)

    def open(self, mode="r", *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN201
        try:
            data = io.BytesIO(zlib.decompress(_data[self._path]))
        except KeyError:
            raise FileNotFoundError(2, "not kept in this tool", self._path) from None
        return data if "b" in mode else io.TextIOWrapper(data, *args, **kwargs)

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding=None) -> str:  # noqa: ANN001
        return self.read_bytes().decode(encoding or "utf-8")


def install() -> None:
    """Keep every module on ``sys.path``, load the common ones, and leave the build's folders behind."""
    for root in sys.path:
        # /python is the standard library; /0, /1 … are the project and its packages.
        if root == STDLIB or root.strip("/").isdigit():
            _keep_folder(root, "", keep_data=root != STDLIB)
    finder = Finder()
    sys.meta_path.insert(2, finder)
    for name in PRELOADED:
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        if name in _modules:  # no call imports these again: only their code would be asked for, by tracebacks
            spec = getattr(module, "__spec__", None)
            if spec is not None and spec.loader is not finder:
                module.__loader__ = spec.loader = finder
    sys.path[:] = []
    sys.path_importer_cache.clear()


def _keep_folder(folder: str, package: str, *, keep_data: bool) -> None:
    for name in sorted(os.listdir(folder)):
        path = f"{folder}/{name}"
        stem, extension = os.path.splitext(name)
        if name in _LEFT_OUT or stem in _LEFT_OUT or name.endswith((".dist-info", ".egg-info")):
            continue
        if os.path.isdir(path):
            if name.isidentifier():
                _keep_folder(path, f"{package}{name}.", keep_data=keep_data)
            elif keep_data and package:
                _keep_data_folder(path)
        elif extension == ".py":
            is_package = stem == "__init__"
            fullname = package[:-1] if is_package else package + stem
            if fullname and fullname not in _modules:
                _keep_module(fullname, path, is_package)
        elif keep_data and package and extension not in {".so", ".pyd", ".dll", ".pyc"}:
            _keep_data(path)


def _keep_module(fullname: str, path: str, is_package: bool) -> None:
    with open(path, "rb") as file:
        source = file.read()
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return  # a template or a file for another version; importing it would fail as well
    _modules[fullname] = _Code(path, zlib.compress(marshal.dumps(code), 9), is_package)


def _keep_data_folder(folder: str) -> None:
    for name in sorted(os.listdir(folder)):
        path = f"{folder}/{name}"
        if os.path.isdir(path):
            _keep_data_folder(path)
        else:
            _keep_data(path)


def _keep_data(path: str) -> None:
    if os.path.getsize(path) <= _MAX_DATA_FILE:
        with open(path, "rb") as file:
            _data[path] = zlib.compress(file.read(), 9)
