"""Workers and their forkserver die: only the call in flight is lost, clearly, and the next ones succeed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter

import grpc
from clawbox_client.v1 import sandbox_pb2 as pb

from tests.caller import UNLIMITED, refusal
from tests.faults.conftest import admin
from tests.footprint import BusyWorkers, eventually, forkserver, is_alive, workers

CLIENTS = 8
CALLS = 40


def test_one_of_two_runs_loses_its_process(server, caller):
    busy = BusyWorkers(server)
    calls = [caller.begin("spin", capabilities=UNLIMITED) for _ in range(2)]
    eventually(lambda: len(busy()) == 2)
    os.kill(busy()[0], signal.SIGKILL)
    eventually(lambda: any(call.done() for call in calls))
    lost, other = sorted(calls, key=lambda call: not call.done())
    response = lost.result()
    assert response.outcome == pb.OUTCOME_SANDBOX_LOST
    assert "died" in response.message
    assert caller.execute("echo", "1").output_json == "1"
    assert not other.done()
    other.cancel()


def test_workers_are_killed_under_load(server):
    outcomes: Counter[str] = Counter()
    wrong: list[object] = []
    counting = threading.Lock()

    def work(number):
        with admin(server) as caller:
            for call in range(CALLS):
                try:
                    response = caller.execute("brief", f'"{number}.{call}"')
                except grpc.RpcError as error:
                    wrong.append(error)
                    return
                with counting:
                    outcomes[pb.Outcome.Name(response.outcome)] += 1
                if response.outcome == pb.OUTCOME_OK and response.output_json != '"done"':
                    wrong.append(response)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    kills = 0
    while any(thread.is_alive() for thread in threads):
        # A kill for every twenty calls, wherever it hits.
        if outcomes.total() >= 20 * (kills + 1) and (found := workers(server)):
            with contextlib.suppress(ProcessLookupError):  # the one before needs a moment to die
                os.kill(random.choice(found), signal.SIGKILL)
                kills += 1
        threads[0].join(0.005)
    for thread in threads:
        thread.join()
    assert wrong == []
    assert outcomes.total() == CLIENTS * CALLS
    assert set(outcomes) <= {"OUTCOME_OK", "OUTCOME_SANDBOX_LOST"}
    assert kills >= 10
    assert outcomes["OUTCOME_SANDBOX_LOST"] <= kills
    _recovers(server)


def test_a_worker_that_is_killed_between_two_calls_costs_neither(server, caller):
    for number in range(20):
        for worker in workers(server):
            with contextlib.suppress(ProcessLookupError):  # it had served its time
                os.kill(worker, signal.SIGKILL)
        response = caller.execute("echo", str(number))
        assert (response.outcome, response.output_json) == (pb.OUTCOME_OK, str(number))


def test_the_forkserver_is_killed_while_a_tool_runs(server, caller):
    busy = BusyWorkers(server)
    call = caller.begin("spin", capabilities=UNLIMITED)
    eventually(busy)
    before = _kill_forkserver(server)
    assert call.result().outcome == pb.OUTCOME_SANDBOX_LOST  # its workers die with it
    assert caller.execute("echo", "1").output_json == "1"
    eventually(lambda: forkserver(server) not in {before, None})
    _recovers(server)


def test_the_forkserver_is_killed_again_and_again(server, caller):
    for _ in range(4):
        _kill_forkserver(server)
        eventually(lambda: _runs(caller))
    _recovers(server)


def _kill_forkserver(server):
    eventually(lambda: forkserver(server) is not None)
    pid = forkserver(server)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_alive(pid))
    return pid


def _runs(caller):
    """Whether a call succeeds; one that comes too early is told to come again."""
    try:
        return caller.execute("echo", "1").outcome == pb.OUTCOME_OK
    except grpc.RpcError as error:
        early = refusal(error)
    assert early.kind == ("UNAVAILABLE", "SANDBOX_UNAVAILABLE")
    assert early.retry_after is not None
    return False


def _recovers(server):
    """The pool is as large as it should be, nothing runs, and the server says that all is well."""
    with admin(server) as caller:
        assert caller.execute("echo", "1").output_json == "1"
        eventually(lambda: 2 <= len(workers(server)) <= 3)
        status = caller.status()
        assert (status.status, status.running_executions, status.queued_executions) == ("ok", 0, 0)
