"""Stands between two daemons, takes a copy of a first message, and sends it again and again.

    python -m bench.replayer OWN_ADDRESS PORT TARGET DATAGRAMS RATE

What comes to its port from elsewhere goes to TARGET at the same port, answers go back. A first
message is one whose datagrams have a type of 1 in the low four bits of their first byte, which is
so of vpnd's InitHello and of Rosenpass's; it has DATAGRAMS of them. Prints "captured" once it has
one; then, for each line "replay COUNT N" on standard input, it sends the first N datagrams of the
message COUNT times, RATE times a second, and prints how many datagrams came back.
"""

from __future__ import annotations

import select
import socket
import sys
import time


def main() -> None:
    own, port, target = sys.argv[1], int(sys.argv[2]), (sys.argv[3], int(sys.argv[2]))
    wanted, rate = int(sys.argv[4]), float(sys.argv[5])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gate:
        gate.bind((own, port))
        print("ready", flush=True)
        message: list[bytes] = []
        asker: tuple[str, int] | None = None
        while True:
            readable = select.select([gate, sys.stdin], [], [])[0]
            if sys.stdin in readable:
                line = sys.stdin.readline().split()
                if not line:
                    return
                print(
                    _replay(gate, target, message[: int(line[2])], int(line[1]), rate), flush=True
                )
                continue
            data, source = gate.recvfrom(65535)
            if source == target:
                if asker is not None:
                    gate.sendto(data, asker)
                continue
            asker = source
            if data[0] & 0x0F == 1 and len(message) < wanted and data not in message:
                message.append(data)
                if len(message) == wanted:
                    print("captured", flush=True)
            gate.sendto(data, target)


def _replay(
    gate: socket.socket, target: tuple[str, int], message: list[bytes], count: int, rate: float
) -> int:
    """Send it so often; the datagrams that came back."""
    answers = 0
    began = time.monotonic()
    for number in range(count):
        for data in message:
            gate.sendto(data, target)
        while (left := began + (number + 1) / rate - time.monotonic()) > 0:
            if select.select([gate], [], [], left)[0]:
                answers += gate.recvfrom(65535)[1] == target
    return answers


if __name__ == "__main__":
    main()
