"""A name server on loopback: A and AAAA over UDP, each name as the test wants it."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading

A, CNAME, AAAA = 1, 5, 28
NO_SUCH_NAME = 3


class NameServer(threading.Thread):
    """Answers from ``zone``: a name's addresses for each time that it is asked for IPv4, the last one stays.

    A name with None is never answered; one that is a string is another name for that one.
    """

    def __init__(self, zone: dict[str, list[list[str]] | str | None]) -> None:
        super().__init__(daemon=True)
        self.zone = zone
        self.asked: list[str] = []
        self._latest: dict[str, list[str]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))

    def run(self) -> None:
        while True:
            query, client = self._socket.recvfrom(512)
            answer = self._answer(query)
            if answer is not None:
                self._socket.sendto(answer, client)

    def _answer(self, query: bytes) -> bytes | None:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        kind = struct.unpack_from("!H", query, at + 1)[0]
        question = query[12 : at + 5]
        name = ".".join(labels)
        self.asked.append(name)
        if name not in self.zone:
            return self._message(query, question, [], NO_SUCH_NAME)
        records = []
        given = self.zone[name]
        if isinstance(given, str):
            encoded = b"".join(bytes([len(label)]) + label.encode() for label in given.split(".")) + b"\0"
            records.append(b"\xc0\x0c" + struct.pack("!HHIH", CNAME, 1, 0, len(encoded)) + encoded)
            owner, name, given = encoded, given, self.zone[given]
        else:
            owner = b"\xc0\x0c"
        if given is None:
            return None
        assert not isinstance(given, str)
        if kind == A or name not in self._latest:
            self._latest[name] = given.pop(0) if len(given) > 1 else given[0]
        for text in self._latest[name]:
            address = ipaddress.ip_address(text)
            if kind == (A if address.version == 4 else AAAA):
                records.append(owner + struct.pack("!HHIH", kind, 1, 0, len(address.packed)) + address.packed)
        return self._message(query, question, records, 0)

    @staticmethod
    def _message(query: bytes, question: bytes, records: list[bytes], code: int) -> bytes:
        head = struct.pack("!HHHHHH", int.from_bytes(query[:2]), 0x8580 | code, 1, len(records), 0, 0)
        return head + question + b"".join(records)
