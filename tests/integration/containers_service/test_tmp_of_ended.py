"""/tmp of a container that ends while somebody asks for it: it is gone, not kept from callers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from clawbox_client.v1 import containers_pb2

from clawbox.containers import files


@pytest.fixture
def program(service):
    """The first process of every container that is made; it runs until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as process:
        service.manager.pid, service.manager.pidfd = process.pid, os.pidfd_open(process.pid)
        yield process
        os.close(service.manager.pidfd)


def end(program, *, is_reaped):
    program.stdin.close()
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    if is_reaped:
        program.wait()


async def refused(service, made):
    stat = containers_pb2.StatFileRequest(container_id=made.container_id, path=b"/tmp")
    return await service.refused(service.containers.StatFile(stat, **service.as_("ann")))


@pytest.mark.parametrize("is_reaped", [False, True])
async def test_a_program_that_has_just_ended_has_no_tmp(service, program, is_reaped) -> None:
    made = await service.spawned()
    end(program, is_reaped=is_reaped)
    refusal = await refused(service, made)
    assert refusal.reason == "WRONG_STATE"
    assert [one.subject for one in refusal.precondition.violations] == [made.container_id]


async def test_one_that_ends_and_is_let_go_while_it_is_looked_at_has_none(
    service, program, monkeypatch
) -> None:
    made = await service.spawned()
    quarters = service.manager.quarters(made.container_id)
    service.manager.rooms[made.container_id] = quarters
    theirs = os.dup(quarters.pidfd)
    quarters.pidfd = theirs
    looks = files.open_tmp

    def ends_first(*process):
        end(program, is_reaped=True)
        quarters.pid, quarters.pidfd = 0, -1
        os.close(theirs)
        return looks(*process)

    monkeypatch.setattr(files, "open_tmp", ends_first)
    assert (await refused(service, made)).reason == "WRONG_STATE"
