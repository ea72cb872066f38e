"""Pulling by the backend: a real engine and a registry of the test's own."""

import asyncio
import contextlib
import os
import secrets
from contextlib import aclosing

import pytest

from clawbox.containers.backend import EngineError, NotThereError
from clawbox.errors import ClawboxError, Reason
from tests.engine.images import tar_of
from tests.integration.containers.docker.registry import Registry


@pytest.fixture
def registry(engine_api):
    with Registry() as opened:
        yield opened
        for reference in opened.pulled:
            with contextlib.suppress(Exception):
                engine_api.remove_image(reference)


@pytest.fixture
def pushed(registry):
    """The image's name at the registry, its digest and its layers' digests; random, so never there before."""
    name = f"some/{secrets.token_hex(6)}"
    layers = [tar_of({f"data{number}": os.urandom(3_000_000)}) for number in range(2)]
    config = {"Env": ["PATH=/bin"], "Cmd": ["/bin/x"], "StopSignal": "SIGQUIT", "Volumes": {"/v": {}}}
    digest, blobs = registry.push(name, "one", layers, config)
    registry.pulled += [f"{registry.host}/{name}:one", f"{registry.host}/{name}@{digest}"]
    return f"{registry.host}/{name}", digest, blobs


async def pulled(backend, reference):
    async with asyncio.timeout(90), aclosing(backend.pull(reference)) as steps:
        return [step async for step in steps]


async def test_a_pull_tells_how_far_it_is_and_then_the_image_is_there(backend, registry, pushed):
    name, digest, _ = pushed
    assert await backend.image(f"{name}:one") is None

    steps = await pulled(backend, f"{name}:one")

    received = [step.received_bytes for step in steps]
    totals = [step.total_bytes for step in steps]
    assert received == sorted(received)
    assert totals == sorted(totals)
    assert all(step.received_bytes <= step.total_bytes for step in steps)
    assert received[-1] == totals[-1] > 5_900_000
    assert len(set(received)) > 2
    assert any("Pull complete" in step.detail for step in steps)
    found = await backend.image(f"{name}:one")
    assert found.digests == (f"{name}@{digest}",)
    assert found.facts.stop_signal == "SIGQUIT"
    assert found.facts.volumes == ("/v",)
    assert not any("authorization" in key.lower() for _, headers in registry.asked for key in headers)

    again = await pulled(backend, f"{name}:one")
    assert again[-1].received_bytes == again[-1].total_bytes == 0


async def test_an_image_is_pulled_by_what_it_holds(backend, pushed):
    name, digest, _ = pushed

    await pulled(backend, f"{name}@{digest}")

    assert (await backend.image(f"{name}@{digest}")).digests == (f"{name}@{digest}",)
    assert await backend.image(f"{name}:one") is None


async def test_a_tag_beside_a_digest_changes_nothing(backend, pushed):
    name, digest, _ = pushed

    await pulled(backend, f"{name}:other@{digest}")

    assert (await backend.image(f"{name}:other@{digest}")).digests == (f"{name}@{digest}",)


async def test_what_the_registry_does_not_have(backend, registry, pushed):
    name, _, _ = pushed
    for missing in (f"{name}:two", f"{registry.host}/no/such:one", f"{name}@sha256:{'0' * 64}"):
        with pytest.raises(NotThereError):
            await pulled(backend, missing)


async def test_a_registry_that_does_not_answer(backend, pushed, registry):
    with pytest.raises(EngineError) as refused:
        await pulled(backend, "127.0.0.1:9/some/image:one")

    assert not isinstance(refused.value, NotThereError)
    assert "refused" in refused.value.words


async def test_a_blob_that_the_registry_lost_is_an_error_in_the_stream(backend, registry, pushed):
    name, _, blobs = pushed
    del registry._blobs[blobs[1]]

    with pytest.raises(EngineError):
        await pulled(backend, f"{name}:one")
    assert await backend.image(f"{name}:one") is None


async def test_every_tag_is_never_asked_for(backend, pushed):
    with pytest.raises(ValueError, match="neither a tag nor a digest"):
        await pulled(backend, pushed[0])


async def test_a_pull_that_breaks_off_is_no_pull(behind, door, registry, pushed):
    name, _, _ = pushed
    registry.held.clear()
    async with asyncio.timeout(60), aclosing(behind.pull(f"{name}:one")) as steps:
        await anext(steps)
        await asyncio.to_thread(registry.reached.wait, 30)
        await door.slam()
        with pytest.raises(ClawboxError) as broken:
            async for _ in steps:
                pass
    assert broken.value.reason is Reason.DOCKER_UNAVAILABLE


async def test_closing_the_iteration_ends_the_pull(backend, registry, pushed):
    name, _, _ = pushed
    registry.held.clear()
    async with asyncio.timeout(60), aclosing(backend.pull(f"{name}:one")) as steps:
        await anext(steps)
        await asyncio.to_thread(registry.reached.wait, 30)
    # Not before the engine has left: what it had asked for it would get, and have the image.
    assert await asyncio.to_thread(registry.left.wait, 30)
    registry.held.set()
    assert await backend.image(f"{name}:one") is None
    # The engine has nothing of it: all of it comes anew.
    assert (await pulled(backend, f"{name}:one"))[-1].received_bytes > 5_900_000
