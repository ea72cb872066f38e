"""What an image may not bring with it."""

import pytest

from clawbox.containers.image_facts import ImageFacts, check_image, stop_signal
from clawbox.errors import ClawboxError, Reason

ID = "sha256:" + "a" * 64


def refused(**facts):
    with pytest.raises(ClawboxError) as caught:
        check_image(ImageFacts(ID, **facts))
    assert caught.value.reason is Reason.IMAGE_REFUSED
    return caught.value.metadata["problems"]


def test_an_ordinary_image_is_taken():
    check_image(
        ImageFacts(
            ID,
            volumes=("/data", "/var/lib/db/", "/tmpfiles", "/run/other", "/devices"),
            labels=("org.opencontainers.image.title", "clawboxy"),
            working_dir="/app/",
        )
    )


@pytest.mark.parametrize("label", ["clawbox.policy", "clawbox.mac", "clawbox.", "Clawbox.Policy"])
def test_rule_83_an_image_with_labels_of_ours_is_refused(label):
    assert repr(label) in refused(labels=("a", label))


@pytest.mark.parametrize(
    "volume",
    [
        *("/workspace", "/workspace/", "/workspace/x", "/run/clawbox", "/run", "/tmp", "/tmp/x", "/", "/etc"),
        *(
            "/proc",
            "/proc/self",
            "/sys/fs",
            "/dev",
            "/dev/shm",
            "/etc/passwd",
            "data",
            "/a/../workspace",
            "//tmp",
            "",
        ),
    ],
)
def test_rule_84_a_volume_where_we_mount_something_is_refused(volume):
    assert refused(volumes=("/data", volume))


def test_rule_84_volumes_are_bounded():
    assert "more than 16" in refused(volumes=tuple(f"/v{n}" for n in range(17)))


@pytest.mark.parametrize(
    "folder", ["/proc/self/fd/7", "/proc/self/fd/7/", "/sys", "/dev/fd/3", "/a/../proc", "app"]
)
def test_rule_85_an_image_with_a_working_folder_of_the_kernels_is_refused(folder):
    assert repr(folder) in refused(working_dir=folder)


def test_everything_that_is_wrong_is_said_in_ascii():
    problems = refused(labels=("clawbox.\u202e",), volumes=("/tmp",), working_dir="/proc")

    assert problems.count(";") == 2
    assert problems.isascii()


@pytest.mark.parametrize(
    ("given", "signal"),
    [
        ("", "SIGTERM"),
        ("SIGQUIT", "SIGQUIT"),
        ("WINCH", "SIGWINCH"),
        ("SIGRTMIN+3", "SIGRTMIN+3"),
        ("SIGSTOP", "SIGTERM"),
        ("9; rm", "SIGTERM"),
        ("37", "SIGTERM"),
    ],
)
def test_the_stop_signal_is_the_images_where_it_is_one(given, signal):
    assert stop_signal(ImageFacts(ID, stop_signal=given)) == signal
