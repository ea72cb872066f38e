"""asyncio without sockets: coroutines, tasks, timers and queues run; nothing waits for a network."""

import asyncio
import time


class _Clock:
    """Stands where a selector would: all there is to wait for is the next timer."""

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise RuntimeError("deadlock: every task waits, and there is no timer that could wake one")
        if timeout > 0:
            time.sleep(timeout)
        return []

    def close(self) -> None:
        pass


class SandboxEventLoop(asyncio.BaseEventLoop):
    """An event loop that is only ever woken by its own timers."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Clock()

    def _process_events(self, event_list: list[object]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class _Policy(asyncio.events._BaseDefaultEventLoopPolicy):
    _loop_factory = SandboxEventLoop


def install() -> None:
    """Make it the loop that ``asyncio.run`` and ``asyncio.new_event_loop`` create."""
    asyncio.events._set_event_loop_policy(_Policy())
    asyncio.EventLoop = SandboxEventLoop
