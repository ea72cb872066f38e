"""What programs that embed clawbox import from ``clawbox.containers``."""

import subprocess
import sys

import pytest

import clawbox.containers
from clawbox.containers import ContainerBackend, ContainerError, DockerBackend, EngineError
from clawbox.containers import backend as backends


async def test_the_docker_backend_is_a_backend_and_raises_what_is_exported(tmp_path):
    assert EngineError is ContainerError is backends.EngineError
    assert issubclass(backends.NotThereError, ContainerError)

    backend: ContainerBackend = DockerBackend(f"unix://{tmp_path}/docker.sock")
    await backend.close()


def test_there_is_nothing_else():
    with pytest.raises(AttributeError, match="no attribute 'Docker'"):
        clawbox.containers.Docker  # noqa: B018


def test_importing_the_package_is_cheap():
    program = "import sys, clawbox.containers; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert not {"aiohttp", "aiodocker", "clawbox.containers.backend"} & set(done.stdout.split())
