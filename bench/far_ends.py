"""The far ends of many links, all in one process: `python -m bench.far_ends HUB_PORT FOLDER`.

Each far end is a node of its own: an identity, a key exchange (`kex.endpoint`, as it is), a
WireGuard key, and an address in 127/8. One daemon cannot hold them: WireGuard tells the peers of
an interface apart by their keys, and so does the key exchange of a node (docs/protocol.md §5.3),
so a hub with 1,000 links has 1,000 nodes around it.

Reads FOLDER/hub.pub and the number of ends from its command line, writes FOLDER/ends.json with
what a hub has to know of them, and at the end of standard input prints a line of JSON with what
was counted.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from bench.wireguard_end import NotForUs, WireGuardEnd
from kex.address import Address
from kex.endpoint import Endpoint
from kex.errors import PacketRejected
from kex.events import ExchangeFailed, KeyConfirmed, KeyEstablished
from kex.identity import Fingerprint, Identity
from kex.link_config import LinkConfig
from vpnd.clock import boottime
from vpnd.identity_store import system_suite

HUB: Final = "127.0.0.1"
PORT: Final = 41821
WIREGUARD_PORT: Final = 41820
RECEIVE_BUFFER: Final = 8 * 1024 * 1024
_SO_RCVBUFFORCE: Final = 33
_IP_PKTINFO: Final = 8
_INFO: Final = struct.Struct("=i4s4s")
_NEVER: Final = 1e12
_DRAIN: Final = 64


class FarEnd:
    """One node with one link, to the hub."""

    def __init__(self, host: str) -> None:
        suite = system_suite(1)
        self.host = host
        self.identity = Identity.generate(suite)
        self.wireguard = WireGuardEnd()
        self.endpoint = Endpoint(
            suites={1: suite}, identities=(self.identity,), random=os.urandom, now=boottime()
        )

    def know_hub(self, public_key: bytes, port: int) -> None:
        fingerprint = Fingerprint.of(1, public_key)
        config = LinkConfig(
            name="hub",
            locals=(self.identity.fingerprint,),
            remotes=(fingerprint,),
            wireguard_key=self.wireguard.public_key,
            wireguard_port=WIREGUARD_PORT,
            address=Address(HUB, port),
            interval=120,
        )
        # The hub begins; afterwards that end renews which is to by the protocol
        self.endpoint.add_link(config, boottime(), start_at=_NEVER)
        self.endpoint.know_public_key(fingerprint, public_key)


class FarEnds:
    """All of them, on two sockets, by the address that a datagram came to."""

    def __init__(self, count: int) -> None:
        hosts = [f"127.1.{number >> 8}.{number & 255}" for number in range(1, count + 1)]
        self.ends = {host: FarEnd(host) for host in hosts}
        self.counted: Counter[str] = Counter()
        self._exchange = _bound(PORT)
        self._wireguard = _bound(WIREGUARD_PORT)
        self._timers: list[tuple[float, str]] = []

    def serve(self) -> None:
        """Answer and keep time until standard input ends."""
        waiting = select.poll()
        for source in (self._exchange, self._wireguard, sys.stdin):
            waiting.register(source, select.POLLIN)
        stdin = sys.stdin.fileno()
        while True:
            wait = max(0.0, self._timers[0][0] - boottime()) if self._timers else 1.0
            ready = {fd for fd, _ in waiting.poll(min(wait, 1.0) * 1000)}
            if stdin in ready:
                return
            if self._exchange.fileno() in ready:
                self._drain(self._exchange, self._take)
            if self._wireguard.fileno() in ready:
                self._drain(self._wireguard, self._shake)
            self._keep_time()

    def _drain(self, source: socket.socket, take: Callable[[FarEnd, bytes, Address], None]) -> None:
        for _ in range(_DRAIN):
            try:
                data, said, _, came_from = source.recvmsg(2048, socket.CMSG_SPACE(_INFO.size))
            except BlockingIOError:
                return
            (_, _, packed) = _INFO.unpack(said[0][2])
            end = self.ends.get(socket.inet_ntoa(packed))
            if end is not None:
                take(end, data, Address(*came_from))

    def _take(self, end: FarEnd, data: bytes, source: Address) -> None:
        with suppress(PacketRejected):
            end.endpoint.receive_datagram(data, source, boottime())
        self._follow(end)

    def _shake(self, end: FarEnd, data: bytes, source: Address) -> None:
        with suppress(NotForUs):
            response = end.wireguard.answer(data)
            _send(self._wireguard, end.host, response.message, source)
            self.counted["wireguard handshakes"] += 1
            now = boottime()
            end.endpoint.session_started("hub", now, now)
            self._follow(end)

    def _keep_time(self) -> None:
        now = boottime()
        for _ in range(_DRAIN):
            if not self._timers or self._timers[0][0] > now:
                return
            _, host = heapq.heappop(self._timers)
            end = self.ends[host]
            at = end.endpoint.next_timer()
            if at is not None and at <= now:
                end.endpoint.handle_timer(now)
                self._follow(end)
            elif at is not None:
                heapq.heappush(self._timers, (at, host))

    def _follow(self, end: FarEnd) -> None:
        """Send and do what the key exchange of an end wants."""
        while True:
            for data, address in end.endpoint.datagrams_to_send():
                self.counted["datagrams"] += 1
                _send(self._exchange, end.host, data, address)
            event = end.endpoint.next_event()
            if event is None:
                break
            if isinstance(event, KeyEstablished):
                end.wireguard.psk = event.psk.expose()
                end.endpoint.key_installed("hub", event.token, boottime())
            elif isinstance(event, KeyConfirmed):
                self.counted[f"keys as {event.role.value}"] += 1
            elif isinstance(event, ExchangeFailed):
                self.counted[f"failed: {event.code.value}"] += 1
        at = end.endpoint.next_timer()
        if at is not None:
            heapq.heappush(self._timers, (at, end.host))


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    bound.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    bound.setblocking(False)
    bound.bind(("", port))
    return bound


def _send(through: socket.socket, host: str, data: bytes, to: Address) -> None:
    info = _INFO.pack(0, socket.inet_aton(host), bytes(4))
    with suppress(BlockingIOError):
        through.sendmsg([data], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, to)


def main() -> None:
    port, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    ends = FarEnds(count)
    public_key = (folder / "hub.pub").read_bytes()
    for end in ends.ends.values():
        end.know_hub(public_key, port)
    told = [(end.host, end.identity.fingerprint.text()) for end in ends.ends.values()]
    (folder / "ends.json").write_text(json.dumps(told))
    print("ready", flush=True)
    ends.serve()
    print(json.dumps(ends.counted), flush=True)


if __name__ == "__main__":
    main()
