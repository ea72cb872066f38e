"""The loop of a confined child, here without the confinement; tests/security/egress sees it confined."""

import asyncio
import threading
from pathlib import Path

import pytest

from clawbox.children.confine import open_descriptors
from clawbox.children.event_loop import EventLoop


@pytest.fixture
def loop():
    made = EventLoop()
    yield made
    made._loop.close()


def test_it_runs_work_in_a_thread_of_its_own_and_opens_nothing_more(loop):
    async def work():
        await asyncio.sleep(0)
        return threading.current_thread(), open_descriptors()

    before = open_descriptors()
    thread, during = loop.run(work())
    assert thread is not threading.main_thread()
    assert len(during) == len(before)


def test_what_its_work_raises_is_raised(loop):
    async def work():
        raise KeyError("x")

    with pytest.raises(KeyError):
        loop.run(work())


def test_it_holds_a_descriptor_to_accept_and_close_with_when_there_are_no_others_left(loop):
    """Without it, a listener at the limit would be ready to accept for ever, and the loop would spin."""
    assert Path("/dev/null") in {Path(f"/proc/self/fd/{one}").readlink() for one in loop.descriptors}
