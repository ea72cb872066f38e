"""Images of local parts, and an engine that is left as it was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine import EngineApi, EngineError, ImageMaker, make_image
from tests.engine.images import busybox

if TYPE_CHECKING:
    from collections.abc import Callable


def test_commands_run_in_the_image_with_a_shell(engine_api: EngineApi, busybox_image: str) -> None:
    assert engine_api.run(busybox_image, ["sh", "-c", "echo $((6 * 7)); exit 3"]) == (3, "42\n")


def test_no_shell_is_in_the_image_without_one(engine_api: EngineApi, shell_less_image: str) -> None:
    assert engine_api.run(shell_less_image, ["/bin/echo", "here"]) == (0, "here\n")
    for shell in (["sh"], ["/bin/sh"], ["busybox", "sh"], ["/bin/cat", "--help", "sh"]):
        with pytest.raises((EngineError, AssertionError)):
            assert engine_api.run(shell_less_image, [*shell, "-c", "exit 0"])[0] == 0


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("VOLUME /data", "Volumes", {"/data": {}}),
        ("LABEL clawbox.owner=somebody", "Labels", {"clawbox.owner": "somebody"}),
        ("USER root", "User", "root"),
        ("WORKDIR /proc/self/fd/8", "WorkingDir", "/proc/self/fd/8"),
        ("ENV LD_PRELOAD=/evil.so", "Env", ["PATH=/bin", "LD_PRELOAD=/evil.so"]),
        ('ENTRYPOINT ["/bin/sleep"]', "Entrypoint", ["/bin/sleep"]),
        ("HEALTHCHECK CMD true", "Healthcheck", {"Test": ["CMD-SHELL", "true"]}),
    ],
)
def test_an_image_says_of_itself_what_a_test_wants(
    engine_api: EngineApi, images: Callable[..., str], change: str, key: str, value: object
) -> None:
    assert value == engine_api.image(images([change]))["Config"][key]


def test_files_are_added(engine_api: EngineApi, images: Callable[..., str]) -> None:
    image = images(files={"opt/hello": b"#!/bin/sh\necho hello\n", "link": "/etc"})
    assert engine_api.run(image, ["/opt/hello"]) == (0, "hello\n")
    assert engine_api.run(image, ["readlink", "/link"]) == (0, "/etc\n")


def test_only_what_was_made_here_is_removed(engine_api: EngineApi) -> None:
    others = make_image(engine_api)
    other = engine_api.create(others, ["true"])
    maker = ImageMaker(engine_api)
    try:
        image = maker()
        container = engine_api.create(image, ["sleep", "1000"])
        engine_api.start(container)
        maker.remove()
        assert container not in engine_api.container_ids()
        with pytest.raises(EngineError) as refused:
            engine_api.image(image)
        assert refused.value.status == 404
        assert other in engine_api.container_ids()
        assert engine_api.image(others)["RepoTags"] == [others]
    finally:
        engine_api.remove_container(other)
        engine_api.remove_image(others)


def test_busybox_needs_no_library() -> None:
    assert busybox().startswith(b"\x7fELF")
