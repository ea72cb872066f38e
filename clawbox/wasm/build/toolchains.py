"""The compilers: where each is, what is missing, and how it makes WebAssembly out of a project."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from abc import ABC, abstractmethod
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from clawbox.wasm.build import node
from clawbox.wasm.build.commands import BuildError, Progress, run_command

if TYPE_CHECKING:
    from clawbox.wasm.build.project import Project

WIT = Path(__file__).parent.parent / "wit"
WORLD = "tool"
_COMPILE_TIMEOUT = 600.0
_C_STACK = "-Wl,-z,stack-size=1048576"  # of the 16 MiB that zig gives, every instance would pay for all
_INSTALL_HINT = "`pip install 'clawbox[build]'` installs it"


class Toolchain(ABC):
    """Compiles projects of one language."""

    @abstractmethod
    def identity(self) -> str:
        """What, beside the source, decides the result. Raises BuildError where the compiler is missing."""

    @abstractmethod
    def compile(self, project: Project, work: Path, output: Path, progress: Progress) -> None:
        """Writes WebAssembly to ``output``.

        ``project`` is a private copy; ``work`` is an empty folder for whatever the compiler wants to keep.
        Raises BuildError.
        """


class PythonToolchain(Toolchain):
    """CPython in a component: componentize-py, with pure-Python packages from ``requirements.txt``."""

    def identity(self) -> str:
        """The version of componentize-py, and the world of tools."""
        return f"componentize-py {_version('componentize-py')}; {_wit_digest()}"

    def compile(self, project: Project, work: Path, output: Path, progress: Progress) -> None:
        """Bakes the packages in, then builds the component."""
        packages, nothing = work / "packages", work / "nothing"
        packages.mkdir()
        nothing.mkdir()
        requirements = project.folder / "requirements.txt"
        if requirements.is_file() and _has_requirements(requirements):
            progress("installing the packages of requirements.txt")
            _install_packages(requirements, packages, work)
        progress("building the component with componentize-py")
        run_command(
            [
                *(sys.executable, "-c", "import componentize_py; componentize_py.script()"),
                *("--quiet", "-d", WIT, "-w", WORLD, "componentize", Path(project.entry).stem),
                *("-p", (project.folder / project.entry).parent, "-p", packages, "-o", output),
            ],
            what="componentize-py",
            folder=work,
            timeout=_COMPILE_TIMEOUT,
            # Without a folder of its own it would take the packages of the environment that it runs in.
            environment={"VIRTUAL_ENV": str(nothing), "PYTHONPATH": None, "PYTHONHASHSEED": "0"},
        )


class JavaScriptToolchain(Toolchain):
    """SpiderMonkey in a component: componentize-js, which is installed on first use."""

    def identity(self) -> str:
        """The versions that are pinned, and the world of tools."""
        return f"componentize-js {node.pinned_digest()}; {_wit_digest()}"

    def compile(self, project: Project, work: Path, output: Path, progress: Progress) -> None:
        """Installs componentize-js if need be, then builds the component."""
        folder = node.install(progress)
        progress("building the component with componentize-js")
        run_command(
            [node.find().node, folder / node.DRIVER, project.entry, WIT, WORLD, output],
            what="componentize-js",
            folder=project.folder,
            timeout=_COMPILE_TIMEOUT,
            environment={"TMPDIR": str(work), "NODE_OPTIONS": None, "NODE_PATH": None},
        )


class GoToolchain(Toolchain):
    """A command module, by Go itself (``GOOS=wasip1``)."""

    def identity(self) -> str:
        """What `go version` says."""
        return _first_line([self._go(), "version"])

    def compile(self, project: Project, work: Path, output: Path, progress: Progress) -> None:
        """Builds the main package."""
        progress("compiling with go")
        flags = ("-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=")
        run_command(
            [self._go(), "build", *flags, "-o", output, "."],
            what="go build",
            folder=(project.folder / project.entry).parent,
            timeout=_COMPILE_TIMEOUT,
            environment={
                "GOOS": "wasip1",
                "GOARCH": "wasm",
                "CGO_ENABLED": "0",
                "GOFLAGS": None,
                "GOWORK": "off",
                "GOTMPDIR": str(work),
            },
        )

    @staticmethod
    def _go() -> str:
        found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
        if found is None:
            raise BuildError(
                "the Go compiler is missing", hint="Install Go 1.21 or newer from your system or go.dev"
            )
        return found


class RustToolchain(Toolchain):
    """A command module, by cargo (``wasm32-wasip1``)."""

    TARGET = "wasm32-wasip1"

    def identity(self) -> str:
        """What `rustc --version` says, where the target is there."""
        self._cargo()
        return _first_line([self._rustc(), "--version"])

    def compile(self, project: Project, work: Path, output: Path, progress: Progress) -> None:
        """Builds the package's one binary."""
        progress("compiling with cargo")
        target = work / "target"
        run_command(
            [self._cargo(), "build", "--release", "--quiet", "--target", self.TARGET, "--target-dir", target],
            what="cargo build",
            folder=project.folder,
            timeout=_COMPILE_TIMEOUT,
            environment={"CARGO_BUILD_TARGET": None, "RUSTFLAGS": None},
        )
        made = sorted((target / self.TARGET / "release").glob("*.wasm"))
        if len(made) != 1:
            raise BuildError(
                f"cargo made {len(made)} WebAssembly files", hint="The package needs exactly one binary"
            )
        shutil.copyfile(made[0], output)

    def _cargo(self) -> str:
        found = shutil.which("cargo")
        if found is None:
            raise BuildError("cargo is missing", hint="Install Rust with rustup or from your system")
        root = _first_line([self._rustc(), "--print", "sysroot"])
        if not (Path(root) / "lib" / "rustlib" / self.TARGET).is_dir():
            raise BuildError(
                f"Rust has no target {self.TARGET}", hint=f"`rustup target add {self.TARGET}` installs it"
            )
        return found

    @staticmethod
    def _rustc() -> str:
        found = shutil.which("rustc")
        if found is None:
            raise BuildError("rustc is missing", hint="Install Rust with rustup or from your system")
        return found


class CToolchain(Toolchain):
    """A command module, by clang and the WASI libc that come with the ziglang wheel."""

    def identity(self) -> str:
        """The version of the wheel."""
        return f"ziglang {_version('ziglang')}"

    def compile(self, project: Project, work: Path, output: Path, progress: Progress) -> None:
        """Builds all .c files of the project into one module."""
        progress("compiling with zig cc")
        sources = [path for path in project.sources() if path.suffix == ".c"]
        options = ("-target", "wasm32-wasi", "-std=gnu17", "-Os", "-Wall", "-Wextra", "-s", _C_STACK)
        caches = (
            {}
            if "ZIG_GLOBAL_CACHE_DIR" in os.environ
            else {"ZIG_GLOBAL_CACHE_DIR": str(node.cache_folder("zig"))}
        )
        run_command(
            [sys.executable, "-m", "ziglang", "cc", *options, "-o", output, *sources],
            what="zig cc",
            folder=project.folder,
            timeout=_COMPILE_TIMEOUT,
            environment={**caches, "ZIG_LOCAL_CACHE_DIR": str(work / "zig")},
        )


TOOLCHAINS: dict[str, Toolchain] = {
    "python": PythonToolchain(),
    "javascript": JavaScriptToolchain(),
    "go": GoToolchain(),
    "rust": RustToolchain(),
    "c": CToolchain(),
}
"""The toolchain of each language."""


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise BuildError(f"{distribution} is missing", hint=_INSTALL_HINT) from None


def _wit_digest() -> str:
    return node.digest_of(sorted(WIT.rglob("*.wit")))


def _first_line(command: list[str]) -> str:
    return run_command(command, what=command[0], folder=Path("/"), timeout=30).partition("\n")[0]


def _has_requirements(file: Path) -> bool:
    lines = file.read_text(encoding="utf-8").splitlines()
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def _install_packages(requirements: Path, packages: Path, work: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise BuildError("pip is missing, and requirements.txt names packages", hint="`python -m ensurepip`")
    try:
        run_command(
            [
                *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"),
                *("--quiet", "--no-compile", "--target", packages, "--requirement", requirements),
                # Only what runs on any Python and any machine runs in a component.
                *("--only-binary=:all:", "--implementation=py", "--abi=none", "--platform=any"),
                "--python-version=3.14",
            ],
            what="pip",
            folder=work,
            timeout=_COMPILE_TIMEOUT,
            environment={"PIP_TARGET": None, "PIP_USER": None, "PYTHONWARNINGS": "ignore"},
        )
    except BuildError as error:
        hint = "Only packages with a pure-Python wheel (py3-none-any) can be baked in"
        raise BuildError("requirements.txt could not be installed", hint=hint, output=error.output) from None
