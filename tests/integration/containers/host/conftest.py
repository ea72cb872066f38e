"""Containers on the real engine, made as clawbox makes them but for what a test changes."""

import json
import os
import platform
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest

from clawbox.containers.host.cgroups import Cgroup
from clawbox.containers.host.folders import StateFolder
from clawbox.containers.host.gate_check import GateTerms
from clawbox.containers.host.mounted import OpenedMounts
from clawbox.containers.host.processes import open_process
from clawbox.containers.image_facts import ImageFacts
from clawbox.containers.labels import Identity
from clawbox.containers.narrowing import ContainerGrant, ContainerLimits, Isolation
from clawbox.containers.spec import ContainerPlan, bind_mounts, build
from clawbox.containers.users import User
from clawbox.policy import NetworkGrant
from tests.engine.api import EngineApi

USER = User(912_345, 912_345)


class Started:
    """One container whose gate waits."""

    def __init__(self, api: EngineApi, engine_id, *, folder, opened, fifo):
        self.api, self.engine_id, self.folder = api, engine_id, folder
        self.opened, self.fifo = opened, fifo
        self.pid = self.facts()["State"]["Pid"]
        self.pidfd = open_process(self.pid)
        self.cgroup = Cgroup.of(self.pid, engine_id)

    def facts(self):
        return self.api.container(self.engine_id)

    def terms(self, **changed):
        terms = {
            "pidfd": self.pidfd,
            "user": USER,
            "gate": self.folder.gate,
            "mounts": self.opened,
            "cgroup": self.cgroup,
        }
        return GateTerms(**(terms | changed))

    def output(self):
        query = {"stdout": "1", "stderr": "1"}
        said = self.api.call("GET", f"/containers/{self.engine_id}/logs", query)
        data = b""
        while said:  # frames of 8 bytes with the length last, and that much
            size = int.from_bytes(said[4:8], "big")
            data, said = data + said[8 : 8 + size], said[8 + size :]
        return data.decode(errors="replace")

    def start_exec(self, command, *, user=str(USER)):
        """Start a process inside, detached; its pid."""
        body = {"Cmd": list(command), "User": user}
        path = f"/containers/{self.engine_id}/exec"
        found = json.loads(self.api.call("POST", path, as_json=body))["Id"]
        self.api.call("POST", f"/exec/{found}/start", as_json={"Detach": True})
        while not (pid := json.loads(self.api.call("GET", f"/exec/{found}/json"))["Pid"]):
            pass
        return pid


@pytest.fixture
def state():
    # The path of a Unix socket has 107 bytes at most.
    with tempfile.TemporaryDirectory() as short:
        folder = StateFolder(Path(short) / "containers")
        folder.open()
        yield folder


@pytest.fixture
def start(engine_api, busybox_image, state, tmp_path):
    """Starts containers: ``start(command, change=lambda body: …)``."""
    with ExitStack() as held:

        def start_one(command=("sleep", "1000"), *, change=None, read_only=False, pids=64) -> Started:
            container_id = str(uuid.uuid4())
            folder = state.container(container_id)
            folder.make(USER, "/workspace", platform.machine())
            workspace = tmp_path / f"workspace-{container_id}"
            workspace.mkdir(0o700)
            os.chown(workspace, USER.uid, USER.gid)
            folders = folder.mounts(workspace)
            image = engine_api.image(busybox_image)
            body = build(
                ContainerPlan(
                    identity=_identity(container_id, image["Id"], pids),
                    mac=b"\1",
                    image=ImageFacts(image["Id"], environment=("PATH=/bin",)),
                    command=tuple(command),
                    folders=folders,
                )
            )
            if change is not None:
                change(body)
            opened = held.enter_context(
                OpenedMounts.open(bind_mounts(folders, workspace_read_only=read_only))
            )
            fifo = held.enter_context(folder.fifo())
            query = {"name": f"clawbox-test-host-{container_id}"}
            engine_id = json.loads(engine_api.call("POST", "/containers/create", query, as_json=body))["Id"]
            held.callback(engine_api.remove_container, engine_id)
            engine_api.start(engine_id)
            started = Started(engine_api, engine_id, folder=folder, opened=opened, fifo=fifo)
            held.callback(os.close, started.pidfd)
            return started

        yield start_one


def _identity(container_id, image_id, pids):
    return Identity(
        installation="test",
        container_id=container_id,
        owner="alice",
        task="t",
        image="test",
        image_id=image_id,
        uid=USER.uid,
        gid=USER.gid,
        created_ms=1,
        grant=ContainerGrant(
            isolation=Isolation.CONTAINER,
            network=NetworkGrant(),
            credentials=frozenset(),
            limits=ContainerLimits(memory_mb=128, pids=pids, cpu_shares=1024, max_output_bytes=262_144),
        ),
    )
