"""What the engine's bytes mean, for what no engine here says."""

import dataclasses
import struct

import pytest

from clawbox.containers.backend import ConflictError, EngineError, LogEntry, NotThereError, PullStep, Stream
from clawbox.containers.docker.address import EngineAddress
from clawbox.containers.docker.answers import container_facts, engine_event, image_found, usage_sample
from clawbox.containers.docker.connection import negotiate, refusal
from clawbox.containers.docker.frames import LogReader, nanoseconds
from clawbox.containers.docker.pulls import PullProgress
from clawbox.errors import ClawboxError

ENTRIES = [
    (1, b"2026-01-02T03:04:05.000000001Z ", b"one\n", 1_767_323_045_000_000_001),
    (2, b"2026-01-02T03:04:05.5Z ", b"\n", 1_767_323_045_500_000_000),
    (1, b"2026-01-02T05:04:06+02:00 ", b"\xff\x00 x", 1_767_323_046_000_000_000),
    (1, b"2026-01-02T03:04:05.123456789Z ", b"", 1_767_323_045_123_456_789),
]
STREAMS = {1: Stream.STDOUT, 2: Stream.STDERR}


def frame(number, data):
    return struct.pack(">BxxxL", number, len(data)) + data


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 31, 1000])
def test_a_log_may_be_cut_anywhere(size):
    raw = b"".join(frame(number, time + data) for number, time, data, _ in ENTRIES)
    reader = LogReader()

    read = [entry for begin in range(0, len(raw), size) for entry in reader.feed(raw[begin : begin + size])]

    assert read == [LogEntry(STREAMS[number], at, data) for number, _, data, at in ENTRIES]
    assert not reader.within


def test_a_log_that_ends_within_an_entry_is_not_whole():
    reader = LogReader()
    assert list(reader.feed(frame(1, b"2026-01-02T03:04:05Z one")[:-1])) == []
    assert reader.within


@pytest.mark.parametrize(
    "raw",
    [
        frame(7, b"2026-01-02T03:04:05Z x"),
        b"HTTP/1.1 what",
        frame(1, b"no-time x"),
        frame(1, b"2026-01-02T03:04:05Z"),
        struct.pack(">BxxxL", 1, 1 << 31),
        frame(3, b"Error grabbing logs: no such file"),
    ],
)
def test_what_is_no_log_is_an_error(raw):
    with pytest.raises(EngineError):
        list(LogReader().feed(raw))


def test_the_year_one_is_never():
    assert nanoseconds(b"0001-01-01T00:00:00Z") is None


@pytest.mark.parametrize(
    ("newest", "oldest", "spoken"),
    [("1.41", "1.12", "1.41"), ("1.43", "1.12", "1.43"), ("1.52", "1.44", "1.44"), ("1.60", "1.50", "1.50")],
)
def test_the_api_is_what_both_speak(newest, oldest, spoken):
    assert negotiate(newest, oldest) == spoken


@pytest.mark.parametrize("newest", ["1.40", "1.9", "", "x"])
def test_an_engine_that_is_too_old_is_not_asked(newest):
    with pytest.raises(EngineError):
        negotiate(newest, "1.12")


def test_what_a_failure_is_called():
    assert isinstance(refusal(404, ""), NotThereError)
    assert isinstance(refusal(409, ""), ConflictError)
    assert isinstance(refusal(500, "Container abc is not paused"), ConflictError)
    assert type(refusal(500, "disk")) is EngineError
    assert isinstance(refusal(503, ""), ClawboxError)


@pytest.mark.parametrize(
    ("setting", "environment", "address"),
    [
        ("", {}, EngineAddress(path="/var/run/docker.sock")),
        (
            "",
            {"DOCKER_HOST": "unix:///run/user/1/docker.sock"},
            EngineAddress(path="/run/user/1/docker.sock"),
        ),
        ("unix:///a.sock", {"DOCKER_HOST": "tcp://127.0.0.1:1"}, EngineAddress(path="/a.sock")),
        ("tcp://127.0.0.1:2375", {}, EngineAddress(host="127.0.0.1", port=2375)),
        ("tcp://[::1]:2375", {}, EngineAddress(host="::1", port=2375)),
        ("tcp://localhost:2375/", {}, EngineAddress(host="localhost", port=2375)),
    ],
)
def test_where_the_engine_is(setting, environment, address):
    assert EngineAddress.parse(setting, environment) == address


@pytest.mark.parametrize(
    "setting",
    [
        "/var/run/docker.sock",
        "unix://docker.sock",
        "unix:///" + "x" * 107,
        "http://127.0.0.1:2375",
        "ssh://host",
        "npipe:////./pipe/docker_engine",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:2375/path",
        "tcp://user@127.0.0.1:2375",
        "tcp://10.0.0.1:2375",
        "tcp://engine.example:2375",
    ],
)
def test_where_no_engine_is_looked_for(setting):
    with pytest.raises(ValueError, match=r"containers\.docker_url"):
        EngineAddress.parse(setting, {})
    with pytest.raises(ValueError, match="DOCKER_HOST"):
        EngineAddress.parse("", {"DOCKER_HOST": setting})


def test_usage_with_cgroup_v2():
    sample = usage_sample(
        {
            "read": "2026-01-02T03:04:05.5Z",
            "pids_stats": {"current": 3, "limit": 18446744073709551615},
            "memory_stats": {"usage": 1000, "limit": 5000, "stats": {"inactive_file": 400, "file": 700}},
            "cpu_stats": {"cpu_usage": {"total_usage": 77}},
            "blkio_stats": {
                "io_service_bytes_recursive": [
                    {"major": 8, "minor": 0, "op": "read", "value": 10},
                    {"major": 8, "minor": 16, "op": "read", "value": 5},
                    {"major": 8, "minor": 0, "op": "write", "value": 7},
                ]
            },
        }
    )

    assert sample is not None
    assert (sample.memory_bytes, sample.memory_limit_bytes) == (600, 5000)
    assert (sample.pids, sample.pids_limit, sample.cpu_ns) == (3, 0, 77)
    assert (sample.block_read_bytes, sample.block_write_bytes) == (15, 7)
    assert sample.time_ns == 1_767_323_045_500_000_000


def test_an_image_without_a_configuration_asks_for_nothing():
    found = image_found({"Id": "sha256:x", "Config": None, "RepoDigests": None})
    assert found.facts.image_id == "sha256:x"
    assert found.digests == ()


def test_events_that_nobody_asked_about_are_passed_over():
    assert engine_event({"Type": "network", "Action": "connect"}) is None
    assert engine_event({"Type": "container", "Action": "exec_die"}) is None
    assert engine_event({"Type": "container", "Action": "exec_start: sh -c true"}) is None
    assert engine_event({"status": "pull"}) is None


def test_a_layer_that_begins_again_does_not_fall_back():
    progress = PullProgress()

    def said(name, status, current=0, total=0):
        detail = {"current": current, "total": total} if total else {}
        return progress.step({"id": name, "status": status, "progressDetail": detail})

    said("a", "Downloading", 50, 100)
    assert said("a", "Downloading", 10, 100) == PullStep(50, 100, "a: Downloading")
    said("b", "Downloading", 1, 10)
    assert said("a", "Verifying Checksum") == PullStep(101, 110, "a: Verifying Checksum")
    assert said("a", "Extracting", 5, 100) == PullStep(101, 110, "a: Extracting")
    assert said("b", "Download complete").received_bytes == 110


@pytest.mark.parametrize(
    "words",
    ["manifest for x:y not found: manifest unknown", "pull access denied for x, repository does not exist"],
)
def test_what_a_registry_does_not_have_is_told_apart_within_a_pull(words):
    with pytest.raises(NotThereError):
        PullProgress().step({"errorDetail": {"message": words}, "error": words})
    with pytest.raises(EngineError) as failed:
        PullProgress().step({"error": "unexpected EOF"})
    assert not isinstance(failed.value, NotThereError)


def test_what_a_registry_says_comes_without_control_characters():
    assert PullProgress().step({"status": "a\x1b[2J\nb" + "c" * 500}).detail == ("a[2Jb" + "c" * 500)[:200]


def test_the_token_in_a_containers_environment_goes_no_further():
    said = {
        "Id": "e" * 64,
        "Name": "/one",
        "Image": "sha256:" + "1" * 64,
        "Path": "/run/clawbox/gate",
        "Args": ["go", "true"],
        "State": {"Status": "running", "Pid": 7},
        "Config": {"Env": ["CLAWBOX_TOKEN=the-token"], "WorkingDir": "/workspace"},
    }

    facts = dataclasses.asdict(container_facts(said))

    assert (facts["pid"], facts["working_dir"]) == (7, "/workspace")
    assert "the-token" not in str(facts)
