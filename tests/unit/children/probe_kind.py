"""A kind of child that does what it is told and says what came of it, to see its confinement from inside."""

import asyncio
import ctypes
import mmap
import os
import resource
import signal
import socket
import threading
from typing import Any

import msgspec

from clawbox.children.channel import BlockingChannel, ChannelClosedError, FrameError
from clawbox.children.event_loop import EventLoop
from clawbox.children.filters import compute_only, dialing, keeping, serving, working_on_files
from clawbox.children.handing import receive_handed
from clawbox.children.kind import LoadError, Profile

_libc = ctypes.CDLL(None, use_errno=True)


class Ask(msgspec.Struct, tag="ask"):
    probe: str
    argument: int = 0


class Answer(msgspec.Struct, tag="answer"):
    value: object


class Note(msgspec.Struct):
    """Says what the descriptor beside it is."""

    purpose: str
    number: int = 0


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


async def _relay(listener, upstream):
    """Accept one connection and carry bytes between it and ``upstream`` until both have ended."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Queue[Any] = asyncio.Queue()
    up_reader, up_writer = await asyncio.open_connection(sock=upstream)
    server = await asyncio.start_server(lambda *ends: accepted.put_nowait(ends), sock=listener)
    reader, writer = await accepted.get()
    async with asyncio.TaskGroup() as group:
        group.create_task(_carry(reader, up_writer))
        group.create_task(_carry(up_reader, writer))
    server.close()
    return type(loop).__module__


async def _carry(reader, writer):
    while data := await reader.read(65536):
        writer.writelines([data[:10], data[10:]])
        await writer.drain()
    writer.write_eof()


async def _connect(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = await reader.read()
    writer.close()
    return data.decode()


class ProbeKind:
    def __init__(self, name, **profile):
        self.name = name
        self.profile = Profile(**profile)
        self._loop: EventLoop
        self._status = -1
        self._net = -1
        self._loaded = []
        self._opened = []

    def preload(self):
        self.secret = os.pipe()  # like anything that the forkserver has and its children must not

    def load(self, key, spec):
        if spec == b"bad":
            raise LoadError("it is bad")
        if spec == b"crash":
            os._exit(9)
        if spec == b"open":
            self._opened.append(os.open("/proc/self/statm", os.O_RDONLY))
        self._loaded.append(key)

    def loaded(self):
        return tuple(self._loaded)

    def open_own(self):
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._net = os.open("/proc/self/net/dev", os.O_RDONLY)
        self._loop = EventLoop()
        return (self._status, self._net, *self._loop.descriptors)

    def main(self, channel, descriptors):
        self._channel, self._descriptors = channel, descriptors
        self._handed = []
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
                    "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
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
                return sorted(
                    {
                        0,
                        1,
                        2,
                        channel,
                        self._descriptors,
                        self._status,
                        self._net,
                        *self._loop.descriptors,
                        *self._opened,
                    }
                )
            case "take":
                try:
                    handed = receive_handed(self._descriptors, msgspec.msgpack.Decoder(Note))
                except FrameError as error:
                    return f"refused: {error}"
                if handed is None:
                    return "the end"
                note, descriptor = handed
                self._handed.append(descriptor)
                return [note.purpose, note.number, os.get_inheritable(descriptor)]
            case "read_handed":
                return os.read(self._handed[argument], 100).decode()
            case "relay":
                listener, upstream = (socket.socket(fileno=handed) for handed in self._handed)
                return self._loop.run(_relay(listener, upstream))
            case "connect":
                return self._loop.run(_connect(argument))
            case "resolve":
                found = socket.getaddrinfo(b"localhost", 80, type=socket.SOCK_STREAM)
                return sorted({address[0] for *_, address in found})
            case "listen":
                return _attempt(lambda: socket.socket().listen())
            case "write":
                return _attempt(lambda: os.open("/tmp/clawbox-probe", os.O_WRONLY | os.O_CREAT))
            case "options":
                # SO_ATTACH_FILTER, SO_RCVBUFFORCE, TCP_ULP, TCP_REPAIR; then TCP_NODELAY.
                connection = socket.socket(fileno=self._handed[argument])
                tried = [(1, 26), (1, 33), (6, 31), (6, 19), (6, 1)]
                return [_attempt(lambda o=o: connection.setsockopt(o[0], o[1], 1)) for o in tried]
            case "pass_on":
                connection = socket.socket(fileno=self._handed[argument])
                return _attempt(lambda: socket.send_fds(connection, [b"x"], [0]))
            case "raw_socket":
                kinds = (socket.SOCK_RAW, socket.SOCK_SEQPACKET)
                return [
                    *(_attempt(lambda k=k: socket.socket(socket.AF_INET, k)) for k in kinds),
                    _attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)),  # MPTCP
                    _attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)),  # audit
                    _attempt(lambda: socket.socket(socket.AF_UNIX)),
                    _attempt(lambda: socket.socket(40)),  # vsock
                    _attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)),
                ]
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
            case "no such descriptor":
                os.read(999, 1)
            case "hang":
                threading.Event().wait()
        return None


KIND = ProbeKind("probe", filter=compute_only)
SERVING = ProbeKind("serving", filter=serving, descriptors=1200)
DIALING = ProbeKind("dialing", filter=dialing, network=True, empty_root=False)
KEEPING = ProbeKind("keeping", filter=keeping, memory_locked=True)
FILES = ProbeKind("files", filter=working_on_files)
