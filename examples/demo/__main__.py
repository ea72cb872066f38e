"""``make demo``: what clawbox does, shown on this machine with a real server, in a few seconds.

Starts a server on free ports with settings of its own in a temporary folder, runs Python and JavaScript in
fresh sandboxes over gRPC, shows that the sandboxes hold, lets code reach one host and no other, with a key
that it never sees, does the same with a container where there is a Docker engine, shows a refused token, and
removes everything, also when it is interrupted.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clawbox_client import ClawboxError, SyncClient

from examples.demo import api as demo_api
from examples.demo import containers, outside
from examples.demo.screen import console, expect, failures, show, step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

CLAWBOX = Path(sys.executable).with_name("clawbox")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def server(home: Path, environment: dict[str, str]) -> Iterator[tuple[str, str]]:
    """A running server with the settings in ``home``: its address and its token."""
    port = free_port()
    env = {**environment, "CLAWBOX_PORT": str(port), "CLAWBOX_METRICS__PORT": str(free_port())}
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [CLAWBOX, "serve", "--config", home / "config.toml"],
            env=env,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends the server
        )
        try:
            address = f"127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            with SyncClient(address) as client:
                while not client.is_serving():
                    if process.poll() is not None or time.monotonic() > deadline:
                        console.print(log.read_text(), markup=False)
                        raise SystemExit("the server did not come up; its log is above")
                    time.sleep(0.02)
            yield address, (home / "token").read_text().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


MANDELBROT = """
rows = []
for y in range(-10, 11, 2):
    row = ""
    for x in range(-40, 21):
        z, c = 0, complex(x / 20, y / 9)
        n = 0
        while abs(z) < 2 and n < 30:
            z, n = z * z + c, n + 1
        row += " .:-=+*#%@"[n // 3 - 1 if n > 2 else 0]
    rows.append(row)
print("\\n".join(rows))
"""


def interpreters(client: SyncClient) -> None:
    """Python and JavaScript, each call in an interpreter of its own."""
    with step("Python, in an interpreter that exists for this call alone"):
        answer = client.run_python(
            "import statistics\nresult = statistics.mean(input['xs'])\nprint('the mean of', *input['xs'])",
            input={"xs": [1, 2, 6]},
        )
        show("stdout", answer.stdout)
        show("result", answer.result)
        expect("the mean is 3", holds=answer.result == 3)
        show("stdout", client.run_python(MANDELBROT).stdout)
    with step("JavaScript likewise"):
        answer = client.run_javascript(
            "result = input.map(w => w.toUpperCase()).join(' ')", input=["fresh", "too"]
        )
        show("result", answer.result)
        expect("it says FRESH TOO", holds=answer.result == "FRESH TOO")
    with step("An exception is a result, with the line in your code"):
        answer = client.run_python("def f(x):\n    return 1 / x\n\nf(0)\n")
        show("outcome", answer.outcome.name)
        show("traceback", answer.error.traceback if answer.error else "")
        expect("the traceback names line 2", holds=bool(answer.error and "line 2" in answer.error.traceback))


def isolation(client: SyncClient) -> None:
    """What untrusted code tries, and what stops it."""
    with step("Nothing survives a call"):
        client.run_python("import builtins\nbuiltins.secret = 'left by call 1'")
        answer = client.run_python("import builtins\nresult = getattr(builtins, 'secret', None)")
        show("call 2 sees", answer.result)
        expect("the state of call 1 is invisible to call 2", holds=answer.result is None)
    with step("No host files, no sockets"):
        for what, code in {
            "read /etc/passwd": "open('/etc/passwd').read()",
            "open a socket": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)",
        }.items():
            answer = client.run_python(code)
            show(what, answer.error.traceback.strip().splitlines()[-1] if answer.error else "it worked!")
            expect(f"to {what} fails", holds=answer.error is not None)
    with step("An endless loop is stopped by its limit"):
        answer = client.run_python("while True: pass", timeout_ms=500)
        show("outcome", f"{answer.outcome.name}: {answer.message}")
        expect("it ended with TIMEOUT", holds=answer.outcome.name == "TIMEOUT")
    with step("A memory bomb is stopped by its limit"):
        answer = client.run_python("x = []\nwhile True: x.append(bytearray(1 << 20))", memory_mb=128)
        show("outcome", f"{answer.outcome.name}: {answer.message}")
        expect("it ended by its memory limit", holds=answer.outcome.name in {"MEMORY_EXCEEDED", "TOOL_ERROR"})
    with step("And the next call is as good as new"):
        expect("print(6*7) says 42", holds=client.run_python("print(6*7)").stdout.strip() == "42")


def refused(address: str) -> None:
    """A call with a token that the server does not know."""
    with step("A wrong token is refused"), SyncClient(address, token="not-the-token") as stranger:  # noqa: S106
        try:
            stranger.run_python("print('hello')")
        except ClawboxError as error:
            show("refused", f"{error.code}, {error.reason}: {error}")
            expect("the reason is TOKEN_INVALID", holds=error.reason == "TOKEN_INVALID")
        else:
            expect("the call is refused", holds=False)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End by unwinding, once: another signal does not end the removal of what there is."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    """Run the demo."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, _interrupt)
    try:
        demo()
    except KeyboardInterrupt:
        console.print("\nInterrupted. The server has ended, and everything is removed.")
        raise SystemExit(130) from None


def demo() -> None:
    """Show everything, and leave nothing."""
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="clawbox-demo-") as folder,
        demo_api.serving() as api,
        containers.ground() as ground,
    ):
        home = Path(folder, "clawbox")
        # Nothing of the caller's settings: the demo shows clawbox, not this machine's configuration.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CLAWBOX_")}
        environment["CLAWBOX_MASTER_KEY"] = secrets.token_hex(32)
        with contextlib.ExitStack() as stack:
            with step("Start a server on a free port"):
                subprocess.run([CLAWBOX, "init", "--dir", home], check=True, stdout=subprocess.DEVNULL)
                outside.settings(home, api)
                containers.settings(home, api)
                address, token = stack.enter_context(server(home, environment))
                show("address", address)
            with SyncClient(address, token=token) as client:
                interpreters(client)
                isolation(client)
                outside.allow(client, home, api, environment)
                outside.requests(client, api)
                outside.audit(client, home)
                containers.containers(client, ground, api)
            refused(address)
            with step("Stop the server and remove its folder"):
                stack.close()
        if failures:
            raise SystemExit(f"{len(failures)} of the demo's promises did not hold: " + "; ".join(failures))
    seconds = time.perf_counter() - began
    console.print(f"\nAll of this took [bold]{seconds:.1f} s[/]. Next: [bold].venv/bin/clawbox init[/]")


if __name__ == "__main__":
    main()
