"""``make demo`` keeps its promises: it fails when one does not hold."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MADE = re.compile(r"made +([0-9a-f-]{36}) from")


@pytest.fixture
def demo(tmp_path):
    """Starts the demo with a Docker engine at a URL."""
    running = []

    def start(engine: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "examples.demo"],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(tmp_path), "DOCKER_HOST": engine},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def demo_images(engine_api) -> set[str]:
    filters = json.dumps({"reference": ["clawbox/demo-*"]})
    return {one["Id"] for one in json.loads(engine_api.call("GET", "/images/json", {"filters": filters}))}


def test_the_demo_runs_to_its_end_and_leaves_nothing(demo, tmp_path, engine_url, engine_api):
    before = demo_images(engine_api)
    process = demo(engine_url)

    stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 0, stdout + stderr
    assert stderr == ""
    assert list(tmp_path.iterdir()) == []
    (made,) = MADE.findall(stdout)
    for promise in (
        "there is no network card",
        "the API was sent its key",
        "the reason is host_not_allowed",
        "what came out is what went in",
        "the engine does not know it any more",
        "there is a row for each",
    ):
        assert f"✓ {promise}" in stdout
    assert engine_api.container_ids(name=f"clawbox-{made}") == set()
    assert demo_images(engine_api) <= before


def test_an_interrupted_demo_leaves_nothing_either(demo, tmp_path, engine_url, engine_api):
    before = demo_images(engine_api)
    process = demo(engine_url)
    assert process.stdout is not None
    made = next(found[1] for line in process.stdout if (found := MADE.search(line)))

    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 130, stdout + stderr
    assert stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert engine_api.container_ids(name=f"clawbox-{made}") == set()
    assert demo_images(engine_api) <= before


def test_without_an_engine_the_demo_says_how_to_get_one(demo, tmp_path):
    process = demo(f"unix://{tmp_path}/docker.sock")

    stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 0, stdout + stderr
    (line,) = [line for line in stdout.splitlines() if "no Docker engine answers" in line]
    assert "apt install docker.io" in line
    assert "✓ the log is whole" in stdout
