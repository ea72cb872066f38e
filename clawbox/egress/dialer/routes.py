"""Which addresses are this machine's own, as the kernel itself sees it now.

Asked with RTM_GETROUTE (rtnetlink(7)) for each address before it is dialled and again once connected, so
that nothing has to be kept and kept up to date. What the kernel would deliver to this machine is a route of
type ``local``: the addresses of every interface, and whole networks that were routed here (AnyIP).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clawbox.egress.addresses import Address

_NLMSG_ERROR: Final = 2
_RTM_NEWROUTE: Final = 24
_RTM_GETROUTE: Final = 26
_NLM_F_REQUEST: Final = 1
_RTN_LOCAL: Final = 2
_RTA_DST: Final = 1
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst_len, …, type, flags
_TYPE_AT: Final = _HEADER.size + 7
_ANSWER_BYTES: Final = 8192
# No way there at all, a route that forbids it (prohibit, blackhole), or no IPv6 in this kernel.
_NOT_ROUTED: Final = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EACCES,
        errno.EINVAL,
        errno.EAFNOSUPPORT,
        errno.EOPNOTSUPP,
    }
)


def open_netlink() -> int:
    """The descriptor of a socket for :class:`Routes`. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as opened:
        opened.bind((0, 0))
        return opened.detach()


class Routes:
    """Asks over ``descriptor``, which it owns. The kernel answers before the question's call returns."""

    def __init__(self, descriptor: int) -> None:
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE, fileno=descriptor
        )
        self._sequence = 0

    def own(self, addresses: Iterable[Address]) -> frozenset[Address]:
        """Those that are this machine's own. Raises OSError when the kernel does not say."""
        return frozenset(address for address in addresses if self._is_own(address))

    def close(self) -> None:
        """Close the descriptor."""
        self._netlink.close()

    def _is_own(self, address: Address) -> bool:
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        packed = address.packed
        family = socket.AF_INET if isinstance(address, ipaddress.IPv4Address) else socket.AF_INET6
        message = (
            _ROUTE.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
            + struct.pack("=HH", 4 + len(packed), _RTA_DST)
            + packed
        )
        header = _HEADER.pack(_HEADER.size + len(message), _RTM_GETROUTE, _NLM_F_REQUEST, self._sequence, 0)
        self._netlink.sendto(header + message, (0, 0))
        while True:
            answer, (port, _) = self._netlink.recvfrom(_ANSWER_BYTES, socket.MSG_DONTWAIT)
            _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
            if port != 0 or sequence != self._sequence:
                continue  # not the kernel's, or the answer to a question that was given up
            if kind == _RTM_NEWROUTE:
                return answer[_TYPE_AT] == _RTN_LOCAL
            code = -int(struct.unpack_from("=i", answer, _HEADER.size)[0]) if kind == _NLMSG_ERROR else 0
            if code in _NOT_ROUTED:
                return False
            raise OSError(code or errno.EPROTO, os.strerror(code or errno.EPROTO))
