"""Callers who want the same image at the same time, some of whom leave."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from clawbox.containers.backend import EngineError, ImageFound, PullStep
from clawbox.containers.image_facts import ImageFacts
from clawbox.containers.images import Reference
from clawbox.containers.pulling import Images
from clawbox.errors import ClawboxError, Reason

FOUND = ImageFound(ImageFacts("sha256:" + "1" * 64))
WANTED = Reference.parse("alpine")


class OnePull:
    """A pull that goes on, and ends, when the test lets it."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.given_up = asyncio.Event()
        self.may_end = asyncio.Event()


class Engine:
    """It has the image once a pull of it was complete."""

    def __init__(self) -> None:
        self.pulls: list[OnePull] = []
        self.has_it = False
        self.begun = asyncio.Semaphore(0)

    async def image(self, name):
        return FOUND if self.has_it else None

    async def pull(self, name):
        pull = OnePull()
        self.pulls.append(pull)
        self.begun.release()
        try:
            yield PullStep(1, 2, "downloading")
            await pull.goes_on.wait()
            self.has_it = True
        except asyncio.CancelledError:
            pull.given_up.set()
            await pull.may_end.wait()
            raise


@pytest.fixture
async def engine():
    return Engine()


@pytest.fixture
async def ask(engine):
    """Begins to ask for the image; whoever still waits in the end is cancelled."""
    images, asked = Images(engine, "missing"), []

    async def told(pull):
        pass

    def ask():
        asked.append(asyncio.create_task(images.resolve(WANTED, told)))
        return asked[-1]

    yield ask
    for pull in engine.pulls:
        pull.may_end.set()
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def a_turn():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_why_an_image_cannot_be_pulled_is_for_the_log(engine, ask, monkeypatch, caplog) -> None:
    async def refuses(name):
        if name:
            raise EngineError(500, "cannot write /var/lib/engine")
        yield PullStep(0, 0, "")

    monkeypatch.setattr(engine, "pull", refuses)
    with pytest.raises(ClawboxError) as caught:
        await ask()
    assert caught.value.reason is Reason.IMAGE_NOT_FOUND
    assert "/var/lib" not in str(caught.value)
    assert "cannot write /var/lib/engine" in caplog.text


async def test_those_who_want_the_same_share_a_pull_and_one_may_leave(engine, ask) -> None:
    first, second = ask(), ask()
    await engine.begun.acquire()
    await a_turn()
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    engine.pulls[0].goes_on.set()
    assert await asyncio.wait_for(second, 10) is FOUND
    assert len(engine.pulls) == 1


async def test_who_comes_while_a_pull_is_given_up_has_one_of_their_own(engine, ask) -> None:
    first = ask()
    await engine.begun.acquire()
    await a_turn()
    first.cancel()
    await engine.pulls[0].given_up.wait()  # and it has not ended
    second = ask()
    await asyncio.wait_for(engine.begun.acquire(), 10)
    engine.pulls[0].may_end.set()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    third = ask()  # the end of the first pull is not that of the second
    await a_turn()
    assert len(engine.pulls) == 2
    engine.pulls[1].goes_on.set()
    for one in (second, third):
        assert await asyncio.wait_for(one, 10) is FOUND
