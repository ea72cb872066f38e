"""Containers by the backend, on a real engine."""

import asyncio
import os
import secrets
import time
from contextlib import aclosing
from dataclasses import replace

import pytest

from clawbox.containers.backend import ConflictError, EngineAction, EngineError, NotThereError
from clawbox.containers.gate import behind_gate, gate_binary, hold_binary
from clawbox.containers.image_facts import ImageFacts
from clawbox.containers.labels import Identity
from clawbox.containers.narrowing import ContainerGrant, ContainerLimits, Isolation
from clawbox.containers.spec import ContainerPlan, EngineTerms, HostFolders, build, engine_name
from clawbox.policy import NetworkGrant
from tests.integration.containers.docker.conftest import LABEL, until

SECOND = 1_000_000_000


async def ended(backend, engine_id):
    async def over():
        facts = await backend.inspect(engine_id)
        return facts if facts.status == "exited" else None

    return await until(over)


async def test_the_engine_says_what_it_is(backend, engine_api):
    facts = await backend.about()

    assert facts.version
    assert tuple(map(int, facts.api_version.split("."))) >= (1, 41)
    assert "runc" in facts.runtimes
    assert facts.default_runtime in facts.runtimes
    assert facts.runc_version
    assert facts.cgroup_version in {1, 2}
    assert facts.cgroup_driver in {"cgroupfs", "systemd"}
    assert "seccomp" in facts.security
    assert facts.engine_id == engine_api.info()["ID"]


async def test_a_container_from_its_making_to_its_end(backend, make):
    engine_id = await make("sh", "-c", "exit 7", start=False, User="65534:65534")

    made = await backend.inspect(engine_id)
    assert made.status == "created"
    assert (made.pid, made.exit_code, made.started_ms, made.finished_ms) == (0, None, None, None)
    assert made.command == ("sh", "-c", "exit 7")
    assert made.user == "65534:65534"
    assert made.image_id.startswith("sha256:")
    assert made.runtime
    assert not made.runs

    before = time.time() * 1000
    await backend.start(engine_id)
    over = await ended(backend, engine_id)

    assert over.exit_code == 7
    assert over.pid == 0
    assert before - 2000 <= over.started_ms <= over.finished_ms <= time.time() * 1000 + 2000


async def test_what_runs_has_a_pid_and_no_exit_code_and_is_found_by_name(backend, make):
    engine_id = await make("sleep", "300")

    facts = await backend.inspect(engine_id)
    assert facts.runs
    assert facts.pid > 1
    assert (facts.exit_code, facts.finished_ms) == (None, None)
    assert await backend.inspect(facts.name) == facts

    await backend.start(engine_id)
    assert (await backend.inspect(engine_id)).pid == facts.pid


async def test_what_a_container_was_before_it_ran_again_is_not_said(backend, make):
    engine_id = await make("sh", "-c", "test -e /tmp/again && sleep 300; mkdir -p /tmp; touch /tmp/again")
    await ended(backend, engine_id)

    await backend.start(engine_id)

    facts = await backend.inspect(engine_id)
    assert facts.runs
    assert (facts.exit_code, facts.finished_ms) == (None, None)


async def test_a_signal_ends_it_and_then_there_is_nothing_to_signal(backend, make):
    engine_id = await make("sleep", "300")

    await backend.signal(engine_id, "SIGKILL")

    assert (await ended(backend, engine_id)).exit_code == 137
    for refused in (
        backend.signal(engine_id, "SIGTERM"),
        backend.pause(engine_id),
        backend.unpause(engine_id),
        backend.usage(engine_id),
        backend.create_exec(engine_id, {"Cmd": ["true"]}),
    ):
        with pytest.raises(ConflictError):
            await refused


async def test_a_frozen_container_is_frozen_once_and_let_go_once(backend, make):
    engine_id = await make("sleep", "300")

    await backend.pause(engine_id)
    assert (await backend.inspect(engine_id)).status == "paused"
    assert (await backend.inspect(engine_id)).runs
    with pytest.raises(ConflictError):
        await backend.pause(engine_id)
    with pytest.raises(ConflictError):
        await backend.create_exec(engine_id, {"Cmd": ["true"]})

    await backend.unpause(engine_id)
    assert (await backend.inspect(engine_id)).status == "running"
    with pytest.raises(ConflictError):
        await backend.unpause(engine_id)


async def test_names_are_taken_once(backend, make):
    engine_id = await make("true", start=False)
    facts = await backend.inspect(engine_id)

    with pytest.raises(ConflictError):
        await backend.create(facts.name, {"Image": facts.image_id, "Cmd": ["true"]})


async def test_what_is_not_there(backend, busybox_image):
    missing = "f" * 64

    assert await backend.inspect(missing) is None
    assert await backend.image(f"clawbox-test/{secrets.token_hex(8)}:none") is None
    await backend.remove(missing)
    for refused in (
        backend.start(missing),
        backend.signal(missing, "SIGTERM"),
        backend.pause(missing),
        backend.usage(missing),
        backend.create_exec(missing, {"Cmd": ["true"]}),
        backend.inspect_exec(missing),
        backend.resize_exec(missing, rows=1, columns=1),
        backend.start_exec(missing, tty=False),
        backend.create("clawbox-test-no-image", {"Image": "sha256:" + "f" * 64}),
        anext(backend.logs(missing)),
    ):
        with pytest.raises(NotThereError):
            await refused


async def test_a_body_that_the_engine_refuses(backend, busybox_image):
    with pytest.raises(EngineError) as refused:
        await backend.create("clawbox-test-refused", {"Image": busybox_image, "HostConfig": {"Memory": 1}})

    assert refused.value.status == 400
    assert "memory" in refused.value.words.lower()


async def test_only_what_has_the_label_is_listed_in_whatever_state(backend, make):
    other = {"clawbox-test.other": "1"}
    runs, new = await make("sleep", "300"), await make("true", start=False)
    await make("true", start=False, Labels=other)

    listed = {one.engine_id: one for one in await backend.list(LABEL)}

    assert {one.engine_id: one.status for one in listed.values()} == {runs: "running", new: "created"}
    assert listed[runs].name == (await backend.inspect(runs)).name
    key, _, value = LABEL.partition("=")
    assert listed[runs].labels[key] == value
    assert set(listed) <= {one.engine_id for one in await backend.list(key)}
    assert await backend.list(f"{key}=other") == []


async def test_what_runs_is_removed_and_removing_it_again_does_nothing(backend, make):
    engine_id = await make("sleep", "300")

    await backend.remove(engine_id)

    assert await backend.inspect(engine_id) is None
    await backend.remove(engine_id)


async def test_many_may_remove_one_container_and_all_return_when_it_is_gone(backend, make):
    engine_id = await make("sleep", "300")

    async def removed():
        await backend.remove(engine_id)
        assert await backend.inspect(engine_id) is None

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(removed())


async def test_events_tell_of_a_life_from_when_one_asks(backend, make):
    since = time.time_ns()
    engine_id = await make("sleep", "300")
    await backend.pause(engine_id)
    await backend.unpause(engine_id)
    await backend.signal(engine_id, "SIGKILL")
    await ended(backend, engine_id)
    await backend.remove(engine_id)

    seen = []
    async with asyncio.timeout(20), aclosing(backend.events(since)) as events:
        async for event in events:
            if event.engine_id == engine_id:
                seen.append(event)
                if event.action is EngineAction.DESTROY:
                    break

    assert [event.action for event in seen if event.action is not EngineAction.OOM] == [
        EngineAction.START,
        EngineAction.PAUSE,
        EngineAction.UNPAUSE,
        EngineAction.KILL,
        EngineAction.DIE,
        EngineAction.DESTROY,
    ]
    key, _, value = LABEL.partition("=")
    assert all(event.labels == {key: value} for event in seen)
    times = [event.time_ns for event in seen]
    assert times == sorted(times)
    assert since - SECOND < times[0]
    by_action = {event.action: event for event in seen}
    assert by_action[EngineAction.KILL].signal == 9
    assert by_action[EngineAction.DIE].exit_code == 137

    async with asyncio.timeout(20), aclosing(backend.events(by_action[EngineAction.DIE].time_ns)) as events:
        async for event in events:
            if event.engine_id == engine_id:
                assert event == by_action[EngineAction.DIE]
                break


async def test_events_come_as_they_happen(backend, make):
    engine_id = await make("sleep", "300")
    async with asyncio.timeout(20), aclosing(backend.events(time.time_ns())) as events:
        waiting = asyncio.ensure_future(anext(events))
        await backend.signal(engine_id, "SIGKILL")
        event = await waiting
        while event.engine_id != engine_id:
            event = await anext(events)

    assert event.action is EngineAction.KILL


async def test_what_a_container_uses(backend, make):
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; echo ready; sleep 300"
    engine_id = await make(
        "sh",
        "-c",
        script,
        HostConfig={
            "NetworkMode": "none",
            "Memory": 256 << 20,
            "PidsLimit": 33,
            "ShmSize": 64 << 20,
        },
    )
    async with asyncio.timeout(20), aclosing(backend.logs(engine_id, follow=True)) as logs:
        await anext(logs)

    before = time.time_ns()
    usage = await backend.usage(engine_id)
    after = time.time_ns()

    assert before - SECOND < usage.time_ns < after + SECOND
    assert 20 << 20 <= usage.memory_bytes < 60 << 20
    assert usage.memory_limit_bytes == 256 << 20
    assert 1 <= usage.pids <= 3
    assert usage.pids_limit == 33
    assert usage.cpu_ns > 0
    # It waits for no second sample, a second later; where the machine was too busy to show that, once more.
    for _ in range(5):
        if after - before < SECOND:
            break
        await asyncio.sleep(2)  # so long Docker 20.10 measures on, and whoever asks waits for its next turn
        before = time.time_ns()
        await backend.usage(engine_id)
        after = time.time_ns()
    assert after - before < SECOND


async def test_an_image_is_what_its_author_said(backend, images):
    reference = images(
        [
            "ENV A=1 B=two",
            "VOLUME /data /var/lib/db",
            "LABEL some.label=x",
            "WORKDIR /app",
            'ENTRYPOINT ["/bin/sh"]',
            'CMD ["-c", "true"]',
        ]
    )

    found = await backend.image(reference)

    assert {"A=1", "B=two"} <= set(found.facts.environment)
    assert replace(found.facts, environment=()) == ImageFacts(
        found.facts.image_id,
        entrypoint=("/bin/sh",),
        command=("-c", "true"),
        volumes=("/data", "/var/lib/db"),
        labels=("some.label",),
        working_dir="/app",
    )
    assert await backend.image(found.facts.image_id) == found


async def test_the_whole_body_of_a_hardened_container_is_accepted(backend, busybox_image, tmp_path):
    for folder in ("run", "workspace"):
        (tmp_path / folder).mkdir(mode=0o755)
    for name, content in (
        ("gate", gate_binary(os.uname().machine)),
        ("hold", hold_binary(os.uname().machine)),
    ):
        (tmp_path / "run" / name).write_bytes(content)
        (tmp_path / "run" / name).chmod(0o555)
    for name in ("passwd", "group"):
        (tmp_path / name).write_text("")
    image = (await backend.image(busybox_image)).facts
    key, _, value = LABEL.partition("=")
    container_id = "6a1e1c4e-0f4e-4f66-9c53-" + secrets.token_hex(6)
    plan = ContainerPlan(
        identity=Identity(
            installation=f"{key}-{value}",
            container_id=container_id,
            owner="alice",
            task="t",
            image="docker.io/clawbox/test:latest",
            image_id=image.image_id,
            uid=65_534,
            gid=65_534,
            created_ms=1,
            grant=ContainerGrant(
                isolation=Isolation.CONTAINER,
                network=NetworkGrant(),
                credentials=frozenset(),
                limits=ContainerLimits(memory_mb=64, pids=32, cpu_shares=512, max_output_bytes=1 << 18),
            ),
        ),
        mac=b"mac",
        image=image,
        command=("true",),
        folders=HostFolders(
            run=str(tmp_path / "run"),
            passwd=str(tmp_path / "passwd"),
            group=str(tmp_path / "group"),
            workspace=str(tmp_path / "workspace"),
        ),
        engine=EngineTerms(open_files=1024),
    )
    body = build(plan)
    engine_id = await backend.create(engine_name(container_id), body)
    try:
        facts = await backend.inspect(engine_id)
        assert facts.command == tuple(behind_gate(("true",)))
        assert facts.labels == body["Labels"]
        assert facts.image_id == image.image_id
        assert facts.name == f"clawbox-{container_id}"
    finally:
        await backend.remove(engine_id)
