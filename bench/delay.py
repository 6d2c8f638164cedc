"""Carries UDP between two sites with a delay each way, for hosts whose kernel has no netem.

`python -m bench.delay MILLISECONDS NEAR_GATE NEAR_SITE FAR_GATE FAR_SITE PORT…` runs on the router
between them: what a site sends to its gate comes to the other site from that one's gate, same
port. Prints a line with the time (CLOCK_MONOTONIC, shared by all of this machine) when it is
ready, and one for the first datagram to the first of the ports.
"""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import sys
import time


def main() -> None:
    delay = float(sys.argv[1]) / 1000
    near_gate, near_site, far_gate, far_site = sys.argv[2:6]
    ports = [int(port) for port in sys.argv[6:]]
    other: dict[socket.socket, tuple[socket.socket, tuple[str, int]]] = {}
    for port in ports:
        near, far = _bound(near_gate, port), _bound(far_gate, port)
        other[near] = (far, (far_site, port))
        other[far] = (near, (near_site, port))
    flying: list[tuple[float, int, socket.socket, bytes, tuple[str, int]]] = []
    number = itertools.count()
    seen = False
    print(f"ready {time.monotonic()}", flush=True)
    while True:
        wait = max(0.0, flying[0][0] - time.monotonic()) if flying else None
        for gate in select.select(list(other), [], [], wait)[0]:
            data = gate.recv(65535)
            now = time.monotonic()
            if not seen and gate.getsockname()[1] == ports[0]:
                seen = True
                print(f"first {now}", flush=True)
            heapq.heappush(flying, (now + delay, next(number), *_out(other[gate], data)))
        while flying and flying[0][0] <= time.monotonic():
            _, _, gate, data, target = heapq.heappop(flying)
            gate.sendto(data, target)


def _bound(address: str, port: int) -> socket.socket:
    gate = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    gate.bind((address, port))
    return gate


def _out(
    to: tuple[socket.socket, tuple[str, int]], data: bytes
) -> tuple[socket.socket, bytes, tuple[str, int]]:
    gate, target = to
    return gate, data, target


if __name__ == "__main__":
    main()
