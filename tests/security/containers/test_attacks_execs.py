"""Attacks by a caller with many processes inside one container."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from clawbox_client import SyncClient
from clawbox_client.containers import Gap
from clawbox_client.execs import ExecExited
from clawbox_client.results import Stderr, Stdout

from clawbox.containers.execs.execs import MAX_REMEMBERED_BYTES
from tests.containers_world import containers_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
LOUD = "head -c 1048576 /dev/zero; head -c 1048576 /dev/zero >&2; exit 7"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, engine_url: str) -> Iterator[SyncClient]:
    home: Path = tmp_path_factory.mktemp("execs")
    with (
        containers_server(home, engine_url) as server,
        SyncClient(server.address, token=server.token) as one,
    ):
        yield one


def test_what_ended_processes_wrote_is_remembered_up_to_a_bound(
    client: SyncClient, busybox_image: str
) -> None:
    """Each leaves 2 MiB for a minute to whoever attaches again: a thousand of them were 2 GiB."""
    container = client.spawn("attack", image=busybox_image, hold=True).container_id
    most = MAX_REMEMBERED_BYTES // (2 * MIB)

    def run(number: int) -> None:
        with client.exec(container, ["sh", "-c", LOUD], exec_id=f"loud-{number}") as process:
            assert [event for event in process if isinstance(event, ExecExited)]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(most + 8)))

    def left(number: int) -> int:
        with client.attach_exec(f"loud-{number}") as process:
            events = list(process)
        assert isinstance(events[-1], ExecExited)
        assert events[-1].exit_code == 7
        kept = sum(len(event.data) for event in events if isinstance(event, Stdout | Stderr))
        missed = sum(event.length for event in events if isinstance(event, Gap))
        assert kept + missed == 2 * MIB
        return kept

    assert left(0) == 0
    assert left(most + 7) == 2 * MIB
    assert sum(map(left, range(most + 8))) <= MAX_REMEMBERED_BYTES + 8 * MIB
    client.remove_container(container, force=True)
