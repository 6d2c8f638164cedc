"""Numbered UDP datagrams at a steady rate, counted where they arrive.

    python -m vpnd_lab.traffic send    --to ADDRESS --port PORT --stream ID --rate R --size BYTES
    python -m vpnd_lab.traffic receive --family 4|6 --stream ID --silence SECONDS

Both speak JSON lines: a command on stdin, an answer on stdout, and they end when stdin ends, so
none outlives its harness. Standard library only, and one system call or two for each datagram: it
must not take the processor from what it measures. vpnd_lab.meter is the other end of the pipes.

A datagram's number is used up when the sender tries to send it. What the kernel refuses to send
(no route, an `unreachable` route, a filter) is counted by error and counts as lost, since the
application's data did not arrive. The clock is CLOCK_MONOTONIC, the same for both ends.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

# magic (4 bytes), stream (8), number (8); the rest of a datagram is zeros.
_HEADER = struct.Struct("!4sQQ")
_MAGIC = b"vlab"
# Sent after the last datagram, again and again: where one has arrived, the path has been emptied.
_END = 2**64 - 1
# Bounds the receiver's memory, one byte for each number.
NUMBER_LIMIT = 2**26
SIZE_MIN = _HEADER.size
SIZE_MAX = 65507
# A datagram that was overtaken by the end mark may still come within this time.
_AFTER_END_SECONDS = 0.1
_END_EVERY_SECONDS = 0.02
_GAPS_MAX = 10_000
_MISSING_MAX = 100
# From <asm-generic/socket.h>; Python has no names for them.
_SO_RCVBUFFORCE = 33
_SO_RXQ_OVFL = 40


def encode(stream: int, number: int, size: int) -> bytes:
    """A datagram of `size` bytes."""
    return _HEADER.pack(_MAGIC, stream, number).ljust(size, b"\0")


def decode_untrusted(data: bytes, stream: int) -> int:
    """The number in a datagram of ours. Raises ValueError for any other datagram."""
    if len(data) < _HEADER.size:
        raise ValueError("too short")
    magic, its_stream, number = _HEADER.unpack_from(data)
    if magic != _MAGIC or its_stream != stream:
        raise ValueError("not of this stream")
    if number >= NUMBER_LIMIT and number != _END:
        raise ValueError("number out of range")
    return int(number)


def holds_datagram(data: bytes) -> bool:
    """Whether a datagram of any stream stands in `data`, wherever it begins.

    The chance that random bytes look like one is 2^-70 at each place.
    """
    start = data.find(_MAGIC)
    while start >= 0:
        if len(data) - start >= _HEADER.size:
            number = _HEADER.unpack_from(data, start)[2]
            if number < NUMBER_LIMIT or number == _END:
                return True
        start = data.find(_MAGIC, start + 1)
    return False


@dataclass(frozen=True, slots=True)
class Gap:
    """A silence at the receiver: after which number, before which (None: not over), how long."""

    after: int
    before: int | None
    at: float
    seconds: float


class Counter:
    """What has arrived of one stream. No I/O: `now` is in seconds on any steady clock."""

    def __init__(self, *, silence: float) -> None:
        self._silence = silence
        self._seen = bytearray()
        self._repeats: dict[int, int] = {}
        self._late: set[int] = set()
        self._gaps: list[Gap] = []
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None
        self.received = 0
        self.ended = False

    def arrived(self, number: int, now: float) -> None:
        """A datagram has arrived."""
        if number == _END:
            self.ended = True
            return
        if number >= len(self._seen):
            self._seen.extend(bytes(number + 1 - len(self._seen)))
        elif self._seen[number]:
            self._repeats[number] = self._repeats.get(number, 0) + 1
            return
        else:
            self._late.add(number)  # a higher number came before it
        self._seen[number] = 1
        self.received += 1
        if self._last is None:
            self._first = (number, now)
        elif now - self._last[1] > self._silence and len(self._gaps) < _GAPS_MAX:
            self._gaps.append(Gap(self._last[0], number, self._last[1], now - self._last[1]))
        self._last = (number, now)

    @property
    def last_arrival(self) -> float | None:
        """When the last new datagram came."""
        return None if self._last is None else self._last[1]

    def count(self, start: int, end: int, *, since: float, until: float) -> dict[str, Any]:
        """Of the numbers from `start` to before `end`: what came, what is missing, the gaps.

        `since` and `until` are when sending began and ended (or now), for the gaps at the ends.
        """
        seen = self._seen[start:end]
        received = len(seen) - seen.count(0)
        return {
            "received": received,
            "lost": end - start - received,
            "repeated": sum(n for number, n in self._repeats.items() if start <= number < end),
            "reordered": sum(1 for number in self._late if start <= number < end),
            "missing": self._missing(start, end),
            "gaps": [
                {"after": g.after, "before": g.before, "at": g.at, "seconds": g.seconds}
                for g in self._all_gaps(since, until)
                # A gap belongs to the numbers that did not come in it.
                if g.after < end - 1 and (g.before is None or g.before > start)
            ],
        }

    def _all_gaps(self, since: float, until: float) -> list[Gap]:
        if self._first is None or self._last is None:
            edges = [Gap(-1, None, since, until - since)]
        else:
            edges = [
                Gap(-1, self._first[0], since, self._first[1] - since),
                Gap(self._last[0], None, self._last[1], until - self._last[1]),
            ]
        return [*self._gaps, *(gap for gap in edges if gap.seconds > self._silence)]

    def _missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """The first runs of numbers that did not come: first and last of each."""
        padded = bytes(self._seen[start:end]).ljust(end - start, b"\0")
        runs: list[tuple[int, int]] = []
        position = padded.find(0)
        while position >= 0 and len(runs) < _MISSING_MAX:
            stop = padded.find(1, position)
            stop = len(padded) if stop < 0 else stop
            runs.append((start + position, start + stop - 1))
            position = padded.find(0, stop)
        return runs


class Commands:
    """JSON lines from stdin, answers to stdout."""

    def __init__(self) -> None:
        self._buffer = b""
        os.set_blocking(0, False)

    def read(self) -> list[dict[str, Any]]:
        """The commands that have come. Raises EOFError when there will be no more."""
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    @staticmethod
    def answer(document: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


def _udp_socket(family: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock


class Sender:
    """Sends until told to stop, then marks the end until its stdin ends."""

    def __init__(self, to: str, port: int, *, stream: int, rate: float, size: int) -> None:
        # Not connected: an ICMP error for one datagram would be reported by refusing another.
        self._socket = _udp_socket(6 if ":" in to else 4)
        self._to = (to, port)
        self._stream = stream
        self._interval = 1 / rate
        self._size = size
        self._next = 0
        self._errors: dict[int, str] = {}
        self._started_at = time.monotonic()
        self._stopped_at: float | None = None

    def run(self) -> None:
        """Until stdin ends."""
        commands = Commands()
        commands.answer({"started_at": self._started_at})
        due = self._started_at
        with contextlib.suppress(EOFError):
            while True:
                now = time.monotonic()
                if now >= due:
                    self._send()
                    if self._stopped_at is None:
                        # From the start, not from now: the rate holds whatever one turn takes.
                        due = self._started_at + self._next * self._interval
                    else:
                        due = now + _END_EVERY_SECONDS
                elif select.select([0], [], [], due - now)[0]:
                    for command in commands.read():
                        commands.answer(self._do(command))

    def _send(self) -> None:
        number = self._next if self._stopped_at is None else _END
        try:
            self._socket.sendto(encode(self._stream, number, self._size), self._to)
        except OSError as error:
            if number != _END:
                self._errors[number] = errno.errorcode.get(error.errno or 0, str(error))
        if number != _END:
            self._next += 1

    def _do(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["do"]:
            case "stop" if self._stopped_at is None:
                self._stopped_at = time.monotonic()
            case "errors":
                counts: dict[str, int] = {}
                for number, name in self._errors.items():
                    if command["start"] <= number < command["end"]:
                        counts[name] = counts.get(name, 0) + 1
                return counts
        return {
            "next": self._next,
            "errors": len(self._errors),
            "started_at": self._started_at,
            "until": self._stopped_at or time.monotonic(),
        }


class Receiver:
    """Counts until its stdin ends."""

    def __init__(self, family: int, *, stream: int, silence: float) -> None:
        self._socket = _udp_socket(family)
        # Big enough to be off the processor for seconds, so that what is lost was lost on the way.
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        self._socket.bind(("::" if family == 6 else "0.0.0.0", 0))  # noqa: S104 in a lab's node
        self._stream = stream
        self._counter = Counter(silence=silence)
        self._foreign = 0
        self._socket_drops = 0
        # Until when an answer to "drain" is due; None: nobody waits for one.
        self._drain_until: float | None = None
        self._drain_expected = 0

    def run(self) -> None:
        """Until stdin ends."""
        commands = Commands()
        commands.answer({"port": self._socket.getsockname()[1]})
        with contextlib.suppress(EOFError):
            while True:
                wait = None if self._drain_until is None else 0.01
                ready = select.select([self._socket.fileno(), 0], [], [], wait)[0]
                if self._socket.fileno() in ready:
                    self._receive()
                if 0 in ready:
                    for command in commands.read():
                        if command["do"] == "drain":
                            self._drain_until = time.monotonic() + command["seconds"]
                            self._drain_expected = command["expected"]
                        else:
                            commands.answer(self._do(command))
                if self._drain_until is not None and self._drained(self._drain_until):
                    self._drain_until = None
                    commands.answer({"ended": self._counter.ended})

    def _receive(self) -> None:
        for _ in range(256):  # then look at stdin again
            try:
                data, ancillary, _, _ = self._socket.recvmsg(2048, 64)
            except BlockingIOError:
                return
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL):
                    self._socket_drops = int.from_bytes(value[:4], sys.byteorder)
            try:
                number = decode_untrusted(data, self._stream)
            except ValueError:
                self._foreign += 1
            else:
                self._counter.arrived(number, time.monotonic())

    def _drained(self, until: float) -> bool:
        now = time.monotonic()
        if self._counter.received >= self._drain_expected or now >= until:
            return True
        quiet = now - (self._counter.last_arrival or 0) > _AFTER_END_SECONDS
        return self._counter.ended and quiet

    def _do(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "count":
            start, end = command["start"], command["end"]
            since, until = command["since"], command["until"]
            counted = self._counter.count(start, end, since=since, until=until)
            return {**counted, "foreign": self._foreign, "socket_drops": self._socket_drops}
        return {"received": self._counter.received}


def main() -> None:
    """Send or receive, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m vpnd_lab.traffic")
    roles = parser.add_subparsers(dest="role", required=True)
    send = roles.add_parser("send")
    send.add_argument("--to", required=True)
    send.add_argument("--port", type=int, required=True)
    send.add_argument("--rate", type=float, required=True)
    send.add_argument("--size", type=int, required=True)
    receive = roles.add_parser("receive")
    receive.add_argument("--family", type=int, choices=(4, 6), required=True)
    receive.add_argument("--silence", type=float, required=True)
    for role in (send, receive):
        role.add_argument("--stream", type=int, required=True)
    options = parser.parse_args()
    if options.role == "send":
        Sender(
            options.to,
            options.port,
            stream=options.stream,
            rate=options.rate,
            size=options.size,
        ).run()
    else:
        Receiver(options.family, stream=options.stream, silence=options.silence).run()


if __name__ == "__main__":
    main()
