"""A kind of child that does what it is told and says what came of it, to see its confinement from inside."""

import ctypes
import mmap
import os
import resource
import signal
import socket
import threading

import msgspec

from clawbox.children.channel import BlockingChannel, ChannelClosedError
from clawbox.children.filters import compute_only
from clawbox.children.kind import LoadError, Profile

_libc = ctypes.CDLL(None, use_errno=True)


class Ask(msgspec.Struct, tag="ask"):
    probe: str
    argument: int = 0


class Answer(msgspec.Struct, tag="answer"):
    value: object


def _syscall(number, *arguments):
    """The result, or minus errno, as the kernel has it."""
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    return -ctypes.get_errno() if result == -1 else result


def _attempt(action):
    try:
        result = action()
    except OSError as error:
        return f"errno {error.errno}"
    except ValueError:
        return "refused"  # as setrlimit says EPERM
    return result if isinstance(result, (int, str)) else "worked"


def _status_fields(descriptor):
    text = os.pread(descriptor, 8192, 0).decode()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def _thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append("ran"))
    thread.start()
    thread.join()
    return seen[0]


class ProbeKind:
    name = "probe"
    profile = Profile(filter=compute_only)

    def __init__(self):
        self._status = -1
        self._net = -1
        self._loaded = []

    def preload(self):
        self.secret = os.pipe()  # like anything that the forkserver has and its children must not

    def load(self, key, spec):
        if spec == b"bad":
            raise LoadError("it is bad")
        if spec == b"crash":
            os._exit(9)
        self._loaded.append(key)

    def loaded(self):
        return tuple(self._loaded)

    def open_own(self):
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._net = os.open("/proc/self/net/dev", os.O_RDONLY)
        return (self._status, self._net)

    def main(self, channel, descriptors):
        self._descriptors = descriptors
        decoder = msgspec.msgpack.Decoder(Ask)
        frames = BlockingChannel(channel, decoder, max_bytes=1 << 16)
        frames.send(Answer("ready"))
        while True:
            try:
                ask = frames.receive()
            except ChannelClosedError:
                return
            frames.send(Answer(self._probe(ask.probe, ask.argument, channel)))

    def _probe(self, name, argument, channel):
        me = os.getpid()
        match name:
            case "status":
                return _status_fields(self._status)
            case "net":
                return os.pread(self._net, 8192, 0).decode()
            case "ids":
                # The calls that would say it are refused.
                status = _status_fields(self._status)
                return [int(status["Uid"].split()[0]), int(status["Gid"].split()[0]), me]
            case "syscall":
                return _syscall(argument)
            case "limits":
                return {
                    "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
                    "fsize": resource.getrlimit(resource.RLIMIT_FSIZE)[1],
                    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
                }
            case "environment":
                return sorted(os.environ)
            case "descriptors":
                return [
                    number
                    for number in range(256)
                    if _attempt(lambda n=number: os.get_inheritable(n)) in {0, 1}
                ]
            case "own_descriptors":
                return sorted({0, 1, 2, channel, self._descriptors, self._status, self._net})
            case "socket":
                families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, 40)
                return [_attempt(lambda f=f: socket.socket(f)) for f in families]
            case "socketpair":
                return _attempt(socket.socketpair)
            case "open":
                return _attempt(lambda: os.open("/", os.O_RDONLY))
            case "exec":
                return _attempt(lambda: os.execv("/bin/true", ["true"]))
            case "fork":
                return _attempt(os.fork)
            case "kill":
                return [_attempt(lambda s=s: os.kill(argument, s)) for s in (0, signal.SIGKILL)]
            case "tgkill":
                return _attempt(lambda: _syscall(234, argument, argument, 0))
            case "prlimit_other":
                return _attempt(lambda: resource.prlimit(argument, resource.RLIMIT_CORE))
            case "allocate":
                # Private memory; never touched, so that it costs nothing but the kernel's count.
                return _attempt(lambda: mmap.mmap(-1, argument << 20, mmap.MAP_PRIVATE))
            case "reserve":
                return _attempt(lambda: mmap.mmap(-1, argument << 20, mmap.MAP_PRIVATE, mmap.PROT_READ))
            case "uncounted_memory":
                # Shared, and growing downwards (0x100).
                flags = (mmap.MAP_SHARED, mmap.MAP_PRIVATE | 0x100)
                return [_attempt(lambda f=f: mmap.mmap(-1, 4096, f)) for f in flags]
            case "raise_limits":
                return [
                    _attempt(lambda w=w: resource.setrlimit(w, (-1, -1)))
                    for w in (resource.RLIMIT_DATA, resource.RLIMIT_AS, resource.RLIMIT_STACK)
                ]
            case "executable_memory":
                return [
                    _attempt(lambda: mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)),
                    _attempt(lambda: mmap.mmap(-1, 4096, mmap.MAP_PRIVATE)),
                ]
            case "dumpable":
                return _attempt(lambda: _libc.prctl(3, 0, 0, 0, 0))
            case "thread":
                return _thread()
            case "garbage":
                os.write(channel, b"\x00\x00\x00\x05\xffabcd")
            case "huge":
                os.write(channel, b"\x7f\xff\xff\xff")
            case "hang":
                threading.Event().wait()
        return None


KIND = ProbeKind()
