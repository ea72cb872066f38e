"""What the server says of its containers: status, health and metrics."""

from __future__ import annotations

import urllib.request

from clawbox_client import Health

from tests.integration.containers_live.world import container, until


def samples(world, name):
    """The numbers of a metric, by labels."""
    url = f"http://127.0.0.1:{world.server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if line.startswith((f"{name}{{", f"{name} ")))
    return {key.removeprefix(name): float(value) for key, _, value in pairs}


def test_the_status_tells_of_engine_and_containers(world, held):
    status = world.ann.status()
    (docker,) = (part for part in status.components if part.name == "docker")
    assert docker.state == "ok"
    assert docker.detail
    before = status.active_containers
    with container(world.ann):
        assert world.ann.status().active_containers == before + 1
    assert world.ann.status().active_containers == before


def test_containers_are_served(world):
    assert world.ann.health("clawbox.v1.Containers") is Health.SERVING


def test_metrics_count_what_was_done(world, held):
    def count(name, labels=""):
        return samples(world, name).get(labels, 0)

    spawned, killed = (
        count("clawbox_containers_total", f'{{status="{word}"}}') for word in ("spawned", "killed")
    )
    active = count("clawbox_containers_active")
    took = count("clawbox_container_spawn_duration_seconds_count")
    with container(world.ann) as made:
        assert count("clawbox_containers_total", '{status="spawned"}') == spawned + 1
        assert count("clawbox_containers_active") == active + 1
        assert count("clawbox_container_spawn_duration_seconds_count") == took + 1
        world.ann.run_command(made.container_id, ["true"])
        durations = samples(world, "clawbox_container_exec_duration_seconds_count")
        assert sum(durations.values()) > 0
        world.ann.kill_container(made.container_id)
    until(lambda: count("clawbox_containers_total", '{status="killed"}') == killed + 1)
    until(lambda: count("clawbox_containers_active") == active)
