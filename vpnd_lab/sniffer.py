"""Counts what passes some interfaces of the node it runs in: the process behind vpnd_lab.capture.

    python -m vpnd_lab.sniffer --interface NAME … --exchange-port N … --wireguard-port N …
                          --protected PREFIX …

Speaks JSON lines like vpnd_lab.traffic, and ends when stdin ends. Nothing is kept of a packet but
what it was counted as. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import socket
import struct
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from vpnd_lab.packets import KINDS, Packet, Ports, Prefixes, read_untrusted
from vpnd_lab.traffic import Commands, holds_datagram

# Python has no names for these: <linux/if_ether.h>, <linux/if_packet.h>, <asm-generic/socket.h>.
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33
# Some 20,000 packets of a lab: enough to be off the processor for a while.
_BUFFER_BYTES = 32 << 20
_DESCRIPTIONS_MAX = 50
_MORE = "more"


def _counts() -> dict[str, int]:
    return dict.fromkeys(KINDS, 0)


@dataclass(slots=True)
class Tally:
    """What has passed one interface, in both directions."""

    kinds: dict[str, int] = field(default_factory=_counts)
    words: dict[str, int] = field(default_factory=dict)
    """What was neither key exchange nor WireGuard nor neighbours' talk, by description."""
    clear: dict[str, int] = field(default_factory=dict)
    """What must not be seen on an underlay, by description: a datagram of vpnd_lab.traffic anywhere
    in it, or an address in a protected prefix."""
    dropped: int = 0
    """Packets that the kernel could not keep for this process: not looked at."""

    def count(self, packet: Packet, *, clear: bool) -> None:
        self.kinds[packet.kind] += 1
        if packet.kind in ("unreachable", "other"):
            _add(self.words, packet.words)
        if clear:
            _add(self.clear, packet.words)


def _add(counts: dict[str, int], words: str) -> None:
    key = words if words in counts or len(counts) < _DESCRIPTIONS_MAX else _MORE
    counts[key] = counts.get(key, 0) + 1


class Sniffer:
    """Sockets on interfaces, and what came in by them."""

    def __init__(self, interfaces: list[str], ports: Ports, protected: Prefixes) -> None:
        """Raises OSError where an interface cannot be listened on."""
        self._ports = ports
        self._protected = protected
        self.tallies = {interface: Tally() for interface in interfaces}
        self._sockets: dict[int, tuple[socket.socket, Tally]] = {}
        for interface, tally in self.tallies.items():
            sock = _packet_socket(interface)
            self._sockets[sock.fileno()] = sock, tally

    def run(self) -> None:
        """Until stdin ends."""
        commands = Commands()
        commands.answer(self._answer())
        with contextlib.suppress(EOFError):
            while True:
                for fd in select.select([0, *self._sockets], [], [])[0]:
                    if fd in self._sockets:
                        self._take(fd, most=256)
                    else:
                        for _ in commands.read():
                            commands.answer(self._answer())

    def _answer(self) -> dict[str, Any]:
        """All that has come so far, what waits in the sockets included."""
        for fd, (sock, tally) in self._sockets.items():
            self._take(fd, most=None)
            # struct tpacket_stats: packets, drops; reading it sets both to 0.
            statistics = sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            tally.dropped += struct.unpack("=II", statistics)[1]
        return {interface: asdict(tally) for interface, tally in self.tallies.items()}

    def _take(self, fd: int, *, most: int | None) -> None:
        sock, tally = self._sockets[fd]
        while most is None or most > 0:
            try:
                data, address = sock.recvfrom(65535)
            except BlockingIOError:
                return
            packet = read_untrusted(address[1], data, self._ports)
            clear = holds_datagram(data) or any(
                each in self._protected for each in packet.addresses
            )
            tally.count(packet, clear=clear)
            most = None if most is None else most - 1


def _packet_socket(interface: str) -> socket.socket:
    # Protocol 0: nothing comes before it is bound. SOCK_DGRAM: without the link's header.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    sock.bind((interface, _ETH_P_ALL))
    return sock


def main() -> None:
    """Count, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m vpnd_lab.sniffer")
    parser.add_argument("--interface", action="append", required=True)
    parser.add_argument("--exchange-port", action="append", type=int, default=[])
    parser.add_argument("--wireguard-port", action="append", type=int, default=[])
    parser.add_argument("--protected", action="append", default=[])
    options = parser.parse_args()
    ports = Ports(frozenset(options.exchange_port), frozenset(options.wireguard_port))
    try:
        sniffer = Sniffer(options.interface, ports, Prefixes(options.protected))
    except OSError as error:
        sys.exit(f"cannot capture on {', '.join(options.interface)}: {error}")
    sniffer.run()


if __name__ == "__main__":
    main()
