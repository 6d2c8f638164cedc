"""Two endpoints with the real suites, on a network that loses nothing."""

import contextlib
import os

import pytest

from kex.address import Address
from kex.endpoint import Endpoint
from kex.errors import PacketRejected
from kex.events import KeyEstablished
from kex.identity import Identity
from kex.link_config import LinkConfig
from kex.suites import suite as make_suite


@pytest.mark.parametrize("number", [1, 2])
def test_two_ends_reach_one_key(number: int) -> None:
    suites = {number: make_suite(number, random=os.urandom)}
    ids = [Identity.generate(suites[number]) for _ in range(2)]
    addresses = [Address("192.0.2.1", 1), Address("192.0.2.2", 2)]
    ends = [Endpoint(suites=suites, identities=[i], random=os.urandom, now=0.0) for i in ids]
    for i in (0, 1):
        ends[i].add_link(
            LinkConfig(
                name="peer",
                locals=(ids[i].fingerprint,),
                remotes=(ids[1 - i].fingerprint,),
                wireguard_key=bytes([i + 1]) * 32,
                wireguard_port=51820,
                address=addresses[1 - i],
            ),
            0.0,
        )
    now = 0.0
    keys: list[list[str]] = [[], []]
    for _ in range(30):
        now += 0.01
        for i in (0, 1):
            ends[i].handle_timer(now)
            for data, to in ends[i].datagrams_to_send():
                assert to == addresses[1 - i]
                with contextlib.suppress(PacketRejected):
                    ends[1 - i].receive_datagram(data, addresses[i], now)
            while (event := ends[i].next_event()) is not None:
                if isinstance(event, KeyEstablished):
                    ends[i].key_installed("peer", event.token, now)
                    keys[i].append(event.key_id)
    assert keys[0]
    assert keys[0][-1] == keys[1][-1]
