"""Spawn, Get, List, Watch, Wait, Stop, Kill, Remove, Pause, Resume, ListTemplates over a real channel."""

from __future__ import annotations

import asyncio

import pytest
from clawbox_client.v1 import capabilities_pb2, containers_pb2

from clawbox.containers.states import State

from .fakes import IMAGE_ID


async def test_a_container_is_told_with_its_grant_and_its_owner(service) -> None:
    made = await service.spawned(
        image="alpine",
        command=["sh", "-c", "secret argument"],
        hold=False,
        env={"MINE": "secret value"},
        labels={"team": "blue"},
        capabilities=capabilities_pb2.Capabilities(
            network=capabilities_pb2.NetworkCapabilities(
                rules=[capabilities_pb2.NetworkRule(host="api.example")]
            ),
            credentials=["github"],
            resources=capabilities_pb2.Resources(memory_mb=128, pids=32),
        ),
    )
    assert made.state == containers_pb2.CONTAINER_STATE_RUNNING
    assert made.image == "docker.io/library/alpine:latest"
    assert made.owner == "ann"
    assert made.name == f"clawbox-{made.container_id}"
    assert made.grant.resources.memory_mb == 128
    assert made.grant.credentials == ["github"]
    assert [rule.host for rule in made.grant.network.rules] == ["api.example"]
    assert made.policy == capabilities_pb2.EXECUTION_POLICY_CONTAINER
    assert not made.HasField("exit_code")
    assert not made.HasField("finish_time")
    got = await service.containers.Get(
        containers_pb2.ContainersGetRequest(container_id=made.container_id), **service.as_("ann")
    )
    assert got == made
    row = service.audit.rows[-1]
    assert (row["kind"], row["decision"]) == ("container_spawn", "allowed")
    assert row["image_id"] == IMAGE_ID
    assert row["program"] == "sh"
    assert row["arguments"] == 2
    assert row["env_names"] == ["MINE"]
    assert "secret" not in str(row)


async def test_the_same_request_id_makes_one_container(service) -> None:
    first = await service.spawned(request_id="once")
    again = await service.spawned(request_id="once")
    assert again.container_id == first.container_id
    assert len(service.manager.spawned) == 1
    other = containers_pb2.SpawnRequest(task="another", hold=True, request_id="once")
    refusal = await service.refused(service.containers.Spawn(other, **service.as_("ann")))
    assert refusal.reason == "INVALID_FIELD"
    assert [one.field for one in refusal.bad_request.field_violations] == ["request_id"]
    # Ids belong to their principal.
    assert (await service.spawned("bob", request_id="once")).container_id != first.container_id


async def test_a_repeated_spawn_returns_the_container_as_it_is_and_not_found_once_it_is_forgotten(
    service,
) -> None:
    made = await service.spawned(request_id="once")
    await service.manager.finish(made.container_id, State.COMPLETED)
    again = await service.spawned(request_id="once")
    assert again.state == containers_pb2.CONTAINER_STATE_COMPLETED
    await service.manager.registry.forget(made.container_id)
    request = containers_pb2.SpawnRequest(task="a test", hold=True, request_id="once")
    refusal = await service.refused(service.containers.Spawn(request, **service.as_("ann")))
    assert refusal.reason == "CONTAINER_NOT_FOUND"


async def test_two_spawns_of_one_id_at_the_same_time_make_one_container(service) -> None:
    service.manager.hold_spawn = asyncio.Event()
    calls = [asyncio.ensure_future(service.spawned(request_id="twice")) for _ in range(2)]
    await service.until(lambda: len(service.server.calls) == 2)
    service.manager.hold_spawn.set()
    first, second = await asyncio.gather(*calls)
    assert first.container_id == second.container_id
    assert len(service.manager.spawned) == 1


async def test_pages_are_newest_first_and_tokens_are_for_their_filter(service) -> None:
    made = [await service.spawned(labels={"n": str(number)}) for number in range(5)]
    ids = [one.container_id for one in reversed(made)]
    seen, token = [], ""
    while True:
        page = await service.containers.List(
            containers_pb2.ContainersListRequest(page_size=2, page_token=token), **service.as_("ann")
        )
        seen += [one.container_id for one in page.containers]
        token = page.next_page_token
        if not token:
            break
        assert len(page.containers) == 2
    assert seen == ids
    page = await service.containers.List(
        containers_pb2.ContainersListRequest(page_size=2), **service.as_("ann")
    )
    other = containers_pb2.ContainersListRequest(
        page_token=page.next_page_token, filter=containers_pb2.ContainerFilter(include_finished=True)
    )
    refusal = await service.refused(service.containers.List(other, **service.as_("ann")))
    assert refusal.reason == "INVALID_PAGE_TOKEN"


async def test_a_page_of_long_commands_fits_into_a_message(service) -> None:
    for _ in range(40):
        await service.spawned(hold=False, command=["x" * 100_000])
    page = await service.containers.List(containers_pb2.ContainersListRequest(), **service.as_("ann"))
    assert 0 < len(page.containers) < 40
    rest = await service.containers.List(
        containers_pb2.ContainersListRequest(page_token=page.next_page_token), **service.as_("ann")
    )
    assert rest.containers[0].container_id < page.containers[-1].container_id
    snapshot = []
    async for message in service.containers.Watch(
        containers_pb2.ContainersWatchRequest(), **service.as_("ann")
    ):
        snapshot += message.snapshot.containers
        assert bool(message.revision) == message.snapshot.complete
        if message.snapshot.complete:
            break
    assert len(snapshot) == 40


async def test_nobody_sees_the_containers_of_others(service) -> None:
    made = await service.spawned("ann")
    wanted = {"container_id": made.container_id}
    for method, request in (
        ("Get", containers_pb2.ContainersGetRequest(**wanted)),
        ("Wait", containers_pb2.ContainersWaitRequest(**wanted)),
        ("Stop", containers_pb2.ContainersStopRequest(**wanted)),
        ("Kill", containers_pb2.ContainersKillRequest(**wanted)),
        ("Remove", containers_pb2.ContainersRemoveRequest(force=True, **wanted)),
        ("Pause", containers_pb2.ContainersPauseRequest(**wanted)),
        ("Resume", containers_pb2.ContainersResumeRequest(**wanted)),
        ("RunCommand", containers_pb2.RunCommandRequest(command=["true"], **wanted)),
        ("Logs", containers_pb2.ContainersLogsRequest(**wanted)),
        ("Stats", containers_pb2.ContainersStatsRequest(**wanted)),
        ("StatFile", containers_pb2.StatFileRequest(path=b"/workspace", **wanted)),
        ("ListFiles", containers_pb2.ListFilesRequest(path=b"/workspace", **wanted)),
        ("ReadFile", containers_pb2.ReadFileRequest(path=b"/workspace/a", **wanted)),
        ("MakeDirectory", containers_pb2.MakeDirectoryRequest(path=b"/workspace/a", **wanted)),
        ("RemoveFile", containers_pb2.RemoveFileRequest(path=b"/workspace/a", **wanted)),
    ):
        refusal = await service.refused(getattr(service.containers, method)(request, **service.as_("bob")))
        assert refusal.reason == "CONTAINER_NOT_FOUND", method
        # Permission comes before existence.
        refusal = await service.refused(getattr(service.containers, method)(request, **service.as_("eve")))
        assert refusal.reason == "SCOPE_MISSING", method
    page = await service.containers.List(containers_pb2.ContainersListRequest(), **service.as_("bob"))
    assert not page.containers
    everyone = await service.containers.List(containers_pb2.ContainersListRequest(), **service.as_("root"))
    assert [one.container_id for one in everyone.containers] == [made.container_id]


async def test_a_watch_tells_what_is_there_what_changes_and_what_is_forgotten(service) -> None:
    made = await service.spawned()
    watch = service.containers.Watch(containers_pb2.ContainersWatchRequest(), **service.as_("ann"))
    snapshot = await watch.read()
    assert [one.container_id for one in snapshot.snapshot.containers] == [made.container_id]
    assert snapshot.snapshot.complete
    await service.manager.finish(made.container_id, State.COMPLETED)
    changed = await watch.read()
    assert changed.changed.state == containers_pb2.CONTAINER_STATE_COMPLETED
    watch.cancel()
    resumed = service.containers.Watch(
        containers_pb2.ContainersWatchRequest(after_revision=snapshot.revision), **service.as_("ann")
    )
    assert (await resumed.read()).revision == changed.revision
    resumed.cancel()


@pytest.mark.parametrize("grace_ms", [60_000])
async def test_watch_and_wait_end_at_once_when_the_server_drains(service) -> None:
    made = await service.spawned()
    watch = service.containers.Watch(containers_pb2.ContainersWatchRequest(), **service.as_("ann"))
    await watch.read()
    wait = service.containers.Wait(
        containers_pb2.ContainersWaitRequest(container_id=made.container_id), **service.as_("ann")
    )
    waiting = asyncio.ensure_future(service.refused(wait))
    await service.until(lambda: len(service.server.calls) == 2)
    async with asyncio.timeout(20):  # of a minute's grace
        draining = asyncio.ensure_future(service.server.drain())
        assert (await waiting).reason == "SHUTTING_DOWN"
        assert (await service.refused(watch.read())).reason == "SHUTTING_DOWN"
    await draining


async def test_wait_returns_the_container_that_ended(service) -> None:
    made = await service.spawned()
    call = service.containers.Wait(
        containers_pb2.ContainersWaitRequest(container_id=made.container_id), **service.as_("ann")
    )
    waiting = asyncio.ensure_future(_result(call))
    await service.manager.finish(made.container_id, State.FAILED, 3)
    assert (await waiting).exit_code == 3


async def _result(call):
    return await call


async def test_kill_returns_the_end_of_the_output_and_what_was_found(service) -> None:
    made = await service.spawned()
    answer = await service.containers.Kill(
        containers_pb2.ContainersKillRequest(container_id=made.container_id), **service.as_("ann")
    )
    assert answer.container.state == containers_pb2.CONTAINER_STATE_KILLED
    assert answer.container.exit_code == 137
    assert answer.stdout == b"the end"
    assert answer.truncations[0].kept_bytes == 7
    assert answer.sanitization.issues_found == 2
    assert answer.sanitization.findings[0].location == "stderr"
    assert service.output.max_bytes == made.grant.resources.max_output_bytes
    sample = service.metrics.registry.get_sample_value
    assert sample("clawbox_containers_total", {"status": "killed"}) == 1
    assert sample("clawbox_containers_total", {"status": "spawned"}) == 1


async def test_an_active_container_is_removed_by_force_only(service) -> None:
    made = await service.spawned()
    request = containers_pb2.ContainersRemoveRequest(container_id=made.container_id)
    refusal = await service.refused(service.containers.Remove(request, **service.as_("ann")))
    assert refusal.reason == "WRONG_STATE"
    assert refusal.precondition.violations[0].subject == made.container_id
    request.force = True
    request.delete_workspace = False
    await service.containers.Remove(request, **service.as_("ann"))
    assert service.manager.delete_workspace is False
    assert [row["decision"] for row in service.audit.rows if row["kind"] == "container_remove"] == [
        "failed",
        "allowed",
    ]


async def test_pause_resume_and_stop(service) -> None:
    made = await service.spawned()
    wanted = {"container_id": made.container_id}
    paused = await service.containers.Pause(
        containers_pb2.ContainersPauseRequest(**wanted), **service.as_("ann")
    )
    assert paused.state == containers_pb2.CONTAINER_STATE_PAUSED
    resumed = await service.containers.Resume(
        containers_pb2.ContainersResumeRequest(**wanted), **service.as_("ann")
    )
    assert resumed.state == containers_pb2.CONTAINER_STATE_RUNNING
    stopped = await service.containers.Stop(
        containers_pb2.ContainersStopRequest(grace_ms=0, **wanted), **service.as_("ann")
    )
    assert stopped.state == containers_pb2.CONTAINER_STATE_STOPPED
    assert service.manager.grace_ms == 0


async def test_templates_are_listed_by_name_in_pages(service) -> None:
    first = await service.containers.ListTemplates(
        containers_pb2.ListTemplatesRequest(page_size=2), **service.as_("ann")
    )
    assert [one.name for one in first.templates] == ["builder", "runner"]
    assert first.templates[0].capabilities.network.rules[0].host == "api.example"
    rest = await service.containers.ListTemplates(
        containers_pb2.ListTemplatesRequest(page_token=first.next_page_token), **service.as_("ann")
    )
    assert [one.name for one in rest.templates] == ["tester"]
    assert not rest.next_page_token


async def test_only_an_administrator_asks_for_the_containers_of_somebody_else(service) -> None:
    made = await service.spawned("ann")
    wanted = containers_pb2.ContainersListRequest(filter=containers_pb2.ContainerFilter(owner="ann"))
    assert (await service.refused(service.containers.List(wanted, **service.as_("bob")))).reason == (
        "SCOPE_MISSING"
    )
    page = await service.containers.List(wanted, **service.as_("root"))
    assert [one.container_id for one in page.containers] == [made.container_id]
