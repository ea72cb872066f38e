"""The gate, run for real: it waits, lets go, finds the command, and leaves everything else as it was."""

import fcntl
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from clawbox.containers.gate import NOT_EXECUTABLE, NOT_FOUND, behind_gate, gate_binary, hold_binary
from clawbox.containers.gate.elf import MACHINES, pack
from tools.assemble_gate import PROGRAMS, assemble

TOLD = """
import json, os, sys
print(json.dumps({
    "pid": os.getpid(),
    "arguments": sys.orig_argv,
    "environment": dict(os.environ),
    "stdin": sys.stdin.read(),
    "descriptors": [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                    if os.path.exists(f"/proc/self/fd/{fd}")],
}))
"""


class Gate:
    """A gate and its FIFO in a folder."""

    def __init__(self, machine, folder):
        self.folder, self.go, self.path = folder, folder / "go", folder / "gate"
        self.path.write_bytes(gate_binary(machine))
        self.path.chmod(0o555)
        self.command = [str(self.path)]
        if machine != platform.machine():
            emulator = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
            if emulator is None:
                pytest.skip(f"there is no qemu-{machine} to run this gate with")
            self.command = [emulator, *self.command]
        os.mkfifo(self.go, 0o444)
        self.holder = os.open(self.go, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.started = []

    def start(self, *arguments, **options):
        """Start it, and return when it has the FIFO open."""
        process = subprocess.Popen(
            [*self.command, self.go, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **{"stdin": subprocess.DEVNULL, "env": {"PATH": os.defpath}, **options},
        )
        self.started.append(process)
        for _ in range(4000):
            if process.poll() is not None or self.holds(process):
                break
            time.sleep(0.005)
        return process

    def holds(self, process):
        return str(self.go) in descriptors(process)

    def let_go(self):
        os.write(self.holder, b"g")

    def unread(self):
        return struct.unpack("i", fcntl.ioctl(self.holder, termios.FIONREAD, b"\0" * 4))[0]

    def run(self, *arguments, **options):
        """Exit code, stdout and stderr of a gate that is let go."""
        process = self.start(*arguments, **options)
        self.let_go()
        out, err = process.communicate(timeout=20)
        return process.returncode, out.decode(), err.decode()


def descriptors(process):
    """What the process has open; nothing when it has ended meanwhile."""
    try:
        return [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
    except OSError:
        return []


@pytest.fixture(params=MACHINES)
def machine(request):
    return request.param


@pytest.fixture
def gate(machine, tmp_path):
    gate = Gate(machine, tmp_path)
    yield gate
    for process in gate.started:
        process.kill()
        process.communicate()
    os.close(gate.holder)


def program(folder, name, *, mode=0o755, says=None):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {says or folder.name}\n")
    path.chmod(mode)
    return path


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_committed_code_is_what_the_source_makes(machine, program):
    binary = {"gate": gate_binary, "hold": hold_binary}[program](machine)

    assert binary == pack(machine, assemble(program, machine))


def test_a_machine_without_a_gate_is_said():
    with pytest.raises(ValueError, match="no gate for mips64"):
        gate_binary("mips64")


def test_nothing_of_it_is_both_written_and_executed_and_it_needs_no_loader(machine):
    binary = gate_binary(machine)
    entry, headers, count = struct.unpack_from("<24xQQ16xH", binary)[0], 64, 2
    assert struct.unpack_from("<H", binary, 56) == (count,)
    segments = [struct.unpack_from("<II8xQ8xQ", binary, headers + 56 * index) for index in range(count)]

    [(flags, address, size)] = [segment[1:] for segment in segments if segment[0] == 1]
    assert flags == 0b101  # read, execute
    assert address <= entry < address + size == address + len(binary)
    assert [segment[1] for segment in segments if segment[0] == 0x6474E551] == [0b110]  # read, write


def test_it_waits_until_it_is_let_go(gate):
    process = gate.start("/bin/cat", gate.folder / "made-later")
    assert process.poll() is None
    (gate.folder / "made-later").write_text("it waited")
    gate.let_go()

    assert process.communicate(timeout=20) == (b"it waited", b"")
    assert gate.unread() == 0


def test_one_byte_lets_one_gate_go(gate):
    one, other = gate.start("/bin/true"), gate.start("/bin/true")
    gate.let_go()
    while one.poll() is None and other.poll() is None:
        time.sleep(0.005)
    waiting = other if one.poll() is not None else one

    assert gate.holds(waiting)
    gate.let_go()
    assert waiting.wait(20) == 0


def test_when_who_holds_the_fifo_goes_away_the_command_does_not_run(gate):
    process = gate.start("/usr/bin/touch", gate.folder / "ran")
    os.close(gate.holder)
    gate.holder = os.open("/dev/null", os.O_RDONLY)

    assert process.communicate(timeout=20) == (b"", b"clawbox: not started: the server went away\n")
    assert process.returncode == NOT_FOUND
    assert not (gate.folder / "ran").exists()


def test_without_a_fifo_the_command_does_not_run(gate):
    gate.go.unlink()
    process = gate.start("/usr/bin/touch", gate.folder / "ran")

    assert process.communicate(timeout=20) == (b"", f"clawbox: {gate.go}: cannot be opened\n".encode())
    assert process.returncode == NOT_FOUND
    assert not (gate.folder / "ran").exists()


def test_without_a_command_it_ends_at_once(gate):
    process = gate.start()

    assert process.communicate(timeout=20) == (b"", b"clawbox: there is no command\n")
    assert process.returncode == NOT_FOUND


def test_the_command_gets_pid_arguments_environment_and_descriptors_as_they_were(gate):
    environment = {"PATH": os.defpath, "A": "1", "EMPTY": "", "LC_ALL": "C.UTF-8"}
    python = [sys.executable, "-I", "-S", "-c", TOLD, "an argument", ""]
    process = gate.start(*python, env=environment, stdin=subprocess.PIPE)
    gate.let_go()
    out, err = process.communicate(b"what it reads", timeout=20)

    told = json.loads(out)
    assert told.pop("pid") == process.pid
    assert told.pop("arguments") == python
    assert environment == told.pop("environment")
    assert told.pop("stdin") == "what it reads"
    assert str(gate.go) not in told.pop("descriptors")
    assert err == b""


def test_a_command_without_a_slash_is_looked_for_in_path(gate):
    first, second = gate.folder / "first", gate.folder / "second"
    program(second, "tool")
    path = f"{first}:{second}:/usr/bin"
    assert gate.run("tool", env={"PATH": path}) == (0, "second\n", "")
    assert gate.run("tool", env={"XPATH": "/", "PATH": path, "PAT": "H"}) == (0, "second\n", "")

    program(first, "tool")
    assert gate.run("tool", env={"PATH": path}) == (0, "first\n", "")


def test_the_usual_folders_are_looked_in_when_there_is_no_path(gate):
    assert gate.run("echo", "found", env={}) == (0, "found\n", "")


@pytest.mark.parametrize("path", ["", ":", ".", "bin", "./bin::", ":bin:"])
def test_elements_of_path_that_are_empty_or_relative_are_passed_over(gate, path):
    program(gate.folder / "bin", "tool")
    program(gate.folder, "tool")

    result = gate.run("tool", env={"PATH": path}, cwd=gate.folder)

    assert result == (NOT_FOUND, "", "clawbox: tool: not found\n")


def test_a_command_with_a_slash_is_executed_as_it_is_named(gate):
    program(gate.folder / "bin", "tool")

    assert gate.run("bin/tool", env={"PATH": ""}, cwd=gate.folder) == (0, "bin\n", "")


@pytest.mark.parametrize("command", ["absent", "/absent", "/bin/sh/x", ""])
def test_a_command_that_is_not_there_is_127(gate, command):
    result = gate.run(command, env={"PATH": f"/bin/sh:{gate.folder}:/usr/bin:/usr/bin"})

    assert result == (NOT_FOUND, "", f"clawbox: {command}: not found\n")


def test_a_command_that_may_not_be_executed_is_passed_over_for_a_later_one(gate):
    first, second = gate.folder / "first", gate.folder / "second"
    program(first, "tool", mode=0o644)
    program(second, "tool")

    assert gate.run("tool", env={"PATH": f"{first}:{second}"}) == (0, "second\n", "")


def test_a_command_that_cannot_be_executed_is_126(gate):
    first, empty = gate.folder / "first", gate.folder / "empty"
    forbidden = program(first, "forbidden", mode=0o644)
    (first / "garbage").write_bytes(b"\x7fELF?")
    (first / "garbage").chmod(0o755)
    (first / "folder").mkdir()

    for command in ("forbidden", "garbage", "folder", str(forbidden), str(first), "./"):
        result = gate.run(command, env={"PATH": f"{first}:{empty}"}, cwd=gate.folder)
        assert result == (NOT_EXECUTABLE, "", f"clawbox: {command}: cannot be executed\n")


def test_what_is_too_long_for_a_path_is_passed_over(gate):
    bin_ = gate.folder / "bin"
    program(bin_, "tool")
    # The longest that fits: element, slash, command and NUL are 4096 bytes.
    longest = "/" + "x/" * 2045

    for length in (4090, 4091, 4092, 5000, 70000):
        path = f"{longest.ljust(length, 'x')}:{bin_}"
        assert gate.run("tool", env={"PATH": path}) == (0, "bin\n", ""), length
    code, _, _ = gate.run("y" * 5000, env={"PATH": str(bin_)})
    assert code == NOT_FOUND
    code, _, _ = gate.run("y" * 300, env={"PATH": "/:/usr/bin"})
    assert code == NOT_EXECUTABLE  # the kernel says that the name is too long


UNDER_A_LIST = """
import os, struct, sys
from clawbox.children import linux, seccomp
load, equal, ret = 0x20, 0x15, 0x06
allowed = [int(number) for number in sys.argv[1].split(",")]
program = struct.pack("=HBBI", load, 0, 0, 0)
for number in allowed:
    program += struct.pack("=HBBI", equal, 0, 1, number) + struct.pack("=HBBI", ret, 0, 0, 0x7FFF0000)
program += struct.pack("=HBBI", ret, 0, 0, 0x80000000)
linux.prctl(38, 1)
arguments = sys.argv[2:]
seccomp.install(program)
os.execv(arguments[0], arguments)
"""

CALLS = {
    "x86_64": {"read": 0, "write": 1, "execve": 59, "exit_group": 231, "openat": 257},
    "aarch64": {"read": 63, "write": 64, "execve": 221, "exit_group": 94, "openat": 56},
}


def test_it_makes_five_system_calls_and_needs_neither_shell_nor_libc(tmp_path):
    gate = Gate(platform.machine(), tmp_path)
    # Every other call kills. The command is another gate: a static program, which without arguments says so.
    allowed = ",".join(str(number) for number in CALLS[platform.machine()].values())
    gate.command = [sys.executable, "-c", UNDER_A_LIST, allowed, *gate.command]
    try:
        code, out, err = gate.run(gate.path, env=dict(os.environ))
    finally:
        os.close(gate.holder)

    assert (code, out, err) == (NOT_FOUND, "", "clawbox: there is no command\n")


def test_what_is_held_stays_until_a_signal_ends_it(gate):
    hold = gate.folder / "hold"
    hold.write_bytes(hold_binary(platform.machine()))
    hold.chmod(0o555)
    process = gate.start(hold)
    gate.let_go()
    while not Path(f"/proc/{process.pid}/exe").readlink().match("hold"):
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGCONT)
    process.terminate()

    assert process.wait(20) == -signal.SIGTERM


def test_a_command_is_put_behind_the_gate_of_its_own_fifo():
    assert behind_gate(["a", "b"]) == ["/run/clawbox/gate", "/run/clawbox/go", "a", "b"]
    assert behind_gate(["a"], fifo="/run/clawbox/go-1") == ["/run/clawbox/gate", "/run/clawbox/go-1", "a"]
