"""Sends datagrams at a rate: `python -m bench.flooder [HOST:]PORT RATE SECONDS [TICK] < datagrams`.

A process of its own, so that its CPU is not counted with what it floods. Standard input holds the
datagrams in hex, one a line; they are sent in turn, each with eight fresh bytes at its end if the
line begins with "~". The number sent is printed.
"""

from __future__ import annotations

import os
import socket
import sys
import time

from bench.nodes import LOOPBACK

TICK = 0.002


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    target = (host or LOOPBACK, int(port))
    rate, seconds = float(sys.argv[2]), float(sys.argv[3])
    tick = float(sys.argv[4]) if len(sys.argv) > 4 else TICK
    lines = [line.strip() for line in sys.stdin if line.strip()]
    stock = []
    for line in lines:
        data = bytes.fromhex(line.lstrip("~"))
        copies = 256 if line.startswith("~") else 1
        stock += [data[:-8] + os.urandom(8) for _ in range(copies)] if copies > 1 else [data]
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
        started = time.monotonic()
        while (elapsed := time.monotonic() - started) < seconds:
            while sent < elapsed * rate:
                source.sendto(stock[sent % len(stock)], target)
                sent += 1
            time.sleep(tick)
    print(sent)


if __name__ == "__main__":
    main()
