"""Runs inside a container, without clawbox: tells as JSON what a program there sees and may do.

``python3 - LISTENER-PORT < inside.py``. Nothing here is asserted; the tests do that, on the host.
"""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import platform
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

NEWUSER, NEWNS, NEWNET, SIGCHLD = 0x1000_0000, 0x2_0000, 0x4000_0000, 17
# Call: (number on x86-64, on arm64, arguments). Arguments are such that a call that is let through by a
# filter says something other than EPERM (no such file, no such address), or ENOSYS of a kernel without it.
CALLS = {
    "add_key": (248, 217, (0, 0, 0, 0, 0)),
    "bpf": (321, 280, (0, 0, 0)),
    "clock_settime": (227, 112, (99, 0)),
    "clone with a user namespace": (56, 220, (NEWUSER | SIGCHLD, 0, 0, 0, 0)),
    "clone3": (435, 435, (0, 0)),
    "delete_module": (176, 106, (0, 0)),
    "finit_module": (313, 273, (-1, 0, 0)),
    "fsopen": (430, 430, (0, 0)),
    "init_module": (175, 105, (0, 0, 0)),
    "io_uring_enter": (426, 426, (-1, 0, 0, 0, 0, 0)),
    "io_uring_register": (427, 427, (-1, 0, 0, 0)),
    "io_uring_setup": (425, 425, (1, 0)),
    "kexec_load": (246, 104, (0, 0, 0, 0)),
    "keyctl": (250, 219, (0, 0, 0, 0, 0)),
    "mount": (165, 40, (0, 0, 0, 0, 0)),
    "mount_setattr": (442, 442, (-1, 0, 0, 0, 0)),
    "move_mount": (429, 429, (-1, 0, -1, 0, 0)),
    "open_by_handle_at": (304, 265, (-1, 0, 0)),
    "open_tree": (428, 428, (-1, 0, 0)),
    "perf_event_open": (298, 241, (0, 0, -1, -1, 0)),
    "personality": (135, 92, (0x0004_0000,)),
    "pivot_root": (155, 41, (0, 0)),
    "process_vm_readv": (310, 270, (1, 0, 0, 0, 0, 0)),
    "process_vm_writev": (311, 271, (1, 0, 0, 0, 0, 0)),
    "ptrace": (101, 117, (0, 0, 0, 0)),
    "quotactl": (179, 60, (0, 0, 0, 0)),
    "reboot": (169, 142, (0, 0, 0, 0)),
    "request_key": (249, 218, (0, 0, 0, 0)),
    "setns": (308, 268, (-1, 0)),
    "sethostname": (170, 161, (0, 0)),
    "swapon": (167, 224, (0, 0)),
    "syslog": (103, 116, (0, 0, 0)),
    "umount2": (166, 39, (0, 0)),
    "unshare a mount namespace": (272, 97, (NEWNS,)),
    "unshare a network namespace": (272, 97, (NEWNET,)),
    "unshare a user namespace": (272, 97, (NEWUSER,)),
    "userfaultfd": (323, 282, (0,)),
}
FAMILIES = {
    "AF_ALG": 38,
    "AF_BLUETOOTH": 31,
    "AF_CAN": 29,
    "AF_KEY": 15,
    "AF_PACKET": 17,
    "AF_RDS": 21,
    "AF_TIPC": 30,
    "AF_VSOCK": 40,
    "AF_X25": 9,
    "AF_XDP": 44,
}
COLUMN = {"x86_64": 0, "aarch64": 1}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(number, *arguments):
    """Name of the error, or the result."""
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result


def called(name):
    number, arguments = CALLS[name][COLUMN], CALLS[name][2]
    result = call(number, *arguments)
    if name.startswith("clone") and result == 0:
        os._exit(0)  # a child that should not be
    return result


def sock(family, kind=socket.SOCK_STREAM, protocol=0):
    """Name of the error, or "open"."""
    try:
        socket.socket(family, kind, protocol).close()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "open"


def in_child(function):
    """What a child of ours ends by: a signal's name, or its exit code."""
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def int_0x80():
    # mov eax, 20 (getpid of 32-bit x86); int 0x80; ret
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000cd80c3"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ctypes.CFUNCTYPE(ctypes.c_int)(address)()


def status(pid="self"):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def mounts():
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, source, options) = left.split(), right.split(" ", 2)
        found[fields[4]] = {
            "kind": kind,
            "root": fields[3],
            "source": source,
            "options": sorted({*fields[5].split(","), *options.split(",")}),
            "own": sorted(fields[5].split(",")),
            "tags": fields[6:],
        }
    return found


def writable():
    """Every folder where a file can be made, and what else can be opened to be written."""
    folders = []
    for folder, names, _ in os.walk("/"):
        if folder in ("/proc", "/sys"):
            names.clear()
            continue
        probe = Path(folder) / ".written"
        with contextlib.suppress(OSError):
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            probe.unlink()
            folders.append(folder)
    files = []
    for root in ("/proc/sys", "/sys", "/proc/irq", "/proc/bus", "/etc", "/run/clawbox"):
        for folder, _, names in os.walk(root):
            for name in names:
                path = f"{folder}/{name}"
                with contextlib.suppress(OSError):
                    if not stat.S_ISFIFO(os.lstat(path).st_mode) and not Path(path).is_symlink():
                        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                        files.append(path)
    return {"folders": sorted(folders), "files": files}


def masked():
    """What of the kernel's says nothing: empty files and folders."""
    paths = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/interrupts")
    folders = ("/proc/acpi", "/proc/scsi", "/proc/asound", "/sys/firmware", "/sys/devices/virtual/powercap")
    found = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            try:
                with Path(path).open("rb") as file:
                    found[path] = len(file.read(16))
            except PermissionError:
                found[path] = 0
    for path in folders:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            found[path] = len(list(Path(path).iterdir()))
    with contextlib.suppress(OSError):
        os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY))
        found["/proc/sysrq-trigger"] = 1
    return found


def tmp():
    """What /tmp does not let be: a program, a setuid bit that counts, a device."""
    program = Path("/tmp/program")
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o4755)
    try:
        subprocess.run([program], check=False)
        ran = "ran"
    except OSError as error:
        ran = errno.errorcode[error.errno or 0]
    try:
        os.mknod("/tmp/disk", stat.S_IFBLK | 0o666, os.makedev(8, 0))
        made = "made"
    except OSError as error:
        made = errno.errorcode[error.errno or 0]
    sizes = {path: os.statvfs(path).f_blocks * os.statvfs(path).f_frsize for path in ("/tmp", "/dev/shm")}
    program.unlink()
    return {"program": ran, "device": made, "sizes": sizes}


def forks(most):
    """How many processes can be there at once, and what stops the next one."""
    children: list[int] = []
    why = "nothing"
    while len(children) < most:
        try:
            pid = os.fork()
        except OSError as error:
            why = errno.errorcode[error.errno or 0]
            break
        if pid == 0:
            signal.pause()
        children.append(pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return {"made": len(children), "why": why}


def orphan():
    """The pid of a process whose parent ended, once it ended itself."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            os.write(writer, str(os.getpid()).encode())
        os._exit(0)
    os.wait()
    pid = os.read(reader, 20).decode()
    # A zombie is still in /proc; init removes it.
    for _ in range(5000):
        if not Path(f"/proc/{pid}").exists():
            return "reaped"
        with contextlib.suppress(InterruptedError):
            signal.sigtimedwait([], 0.001)
    return "a zombie"


def connections(port):
    told = {}
    places = (
        ("the host", "127.0.0.1", port),
        ("a network", "192.0.2.1", 80),
        ("metadata", "169.254.169.254", 80),
    )
    for name, host, number in places:
        with socket.socket() as probe:
            probe.settimeout(3)
            told[name] = errno.errorcode.get(probe.connect_ex((host, number)), "?")
    return told


def sockets():
    """Unix sockets that can be reached by a path, wherever it is."""
    found = []
    for folder, names, files in os.walk("/"):
        if folder in ("/proc", "/sys"):
            names.clear()
            continue
        for name in files:
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.lstat(f"{folder}/{name}").st_mode):
                    found.append(f"{folder}/{name}")
    return found


def tell(port):
    yield "status", status()
    yield "init", status(1)
    yield "mounts", mounts()
    yield "calls", {name: called(name) for name in CALLS}
    yield "families", {name: sock(number) for name, number in FAMILIES.items()}
    wide = call((41, 198)[COLUMN], (1 << 32) + 40, 1, 0)
    yield "a family in bits that the kernel does not read", wide
    yield "netlink", {str(number): sock(socket.AF_NETLINK, socket.SOCK_RAW, number) for number in range(23)}
    yield "raw", sock(socket.AF_INET, socket.SOCK_RAW, 1)
    yield "usual", [sock(family) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)]
    if COLUMN == 0:
        yield "int 0x80", in_child(int_0x80)
        yield "x32", in_child(lambda: call(0x4000_0000 | 39))
    yield "writable", writable()
    yield "masked", masked()
    yield "tmp", tmp()
    names = {"core": resource.RLIMIT_CORE, "nofile": resource.RLIMIT_NOFILE}
    yield "limits", {name: resource.getrlimit(number) for name, number in names.items()}
    yield "hostname", socket.gethostname()
    yield "orphan", orphan()
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    yield "processes", {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids}
    yield "interfaces", sorted(path.name for path in Path("/sys/class/net").iterdir())
    yield "routes", Path("/proc/net/route").read_text().splitlines()[1:]
    yield "connections", connections(port)
    yield "sockets", sockets()
    abstract = re.findall(r" (@.*)", Path("/proc/net/unix").read_text())
    yield "abstract sockets", abstract
    kinds = {path.name: path.stat().st_mode for path in Path("/dev").iterdir()}
    yield "block devices", [name for name, mode in kinds.items() if stat.S_ISBLK(mode)]
    yield "devices", sorted(name for name, mode in kinds.items() if stat.S_ISCHR(mode))
    yield "environment", dict(os.environ)
    yield "folder", str(Path.cwd())
    yield "forks", forks(2000)


json.dump(dict(tell(int(sys.argv[1]))), sys.stdout)
