"""An interface's counters beside WireGuard's: what does not come out, what is not sent."""

from __future__ import annotations

from tun import PacketCounts, PeerStatus
from vpnd.tunnel_flow import InterfaceFlow

ONE, OTHER = b"1" * 32, b"2" * 32


def peer(key: bytes, *, received: int = 0, sent: int = 0) -> dict[bytes, PeerStatus]:
    return {
        key: PeerStatus(
            public_key=key,
            endpoint=None,
            handshake_stamp=None,
            rx_bytes=received,
            tx_bytes=sent,
            allowed_ips=(),
            keepalive=0,
        )
    }


def looked(*looks: tuple[float, PacketCounts, dict[bytes, PeerStatus]]) -> InterfaceFlow:
    flow = InterfaceFlow()
    for at, packets, peers in looks:
        flow.look(packets, peers, at)
    return flow


def test_what_wireguard_receives_and_nobody_gets() -> None:
    both = {**peer(ONE, received=10_000), **peer(OTHER, received=500)}
    flow = looked(
        (0.0, PacketCounts(0, 7), {**peer(ONE), **peer(OTHER)}),
        (59.0, PacketCounts(0, 7), both),
    )
    assert flow.withheld == frozenset()
    flow.look(PacketCounts(0, 7), both, 61.0)
    assert flow.withheld == {ONE}
    flow.look(PacketCounts(0, 7), both, 10_000.0)
    assert flow.withheld == {ONE}
    flow.look(PacketCounts(0, 8), both, 10_020.0)
    assert flow.withheld == frozenset()


def test_handshakes_and_keepalives_alone_prove_nothing() -> None:
    flow = looked(
        (0.0, PacketCounts(0, 0), peer(ONE)),
        (120.0, PacketCounts(0, 0), peer(ONE, received=24 * 148)),
    )
    assert flow.withheld == frozenset()


def test_what_goes_in_and_is_never_sent() -> None:
    flow = looked(
        (0.0, PacketCounts(0, 0), peer(ONE)),
        (61.0, PacketCounts(60, 0), peer(ONE, sent=4 * 148)),
    )
    assert flow.not_taken
    flow.look(PacketCounts(70, 1), peer(ONE), 81.0)
    assert not flow.not_taken


def test_what_a_host_says_into_every_interface_proves_nothing() -> None:
    quiet = looked((0.0, PacketCounts(0, 0), peer(ONE)), (61.0, PacketCounts(20, 0), peer(ONE)))
    assert not quiet.not_taken
    once_good = looked(
        (0.0, PacketCounts(0, 3), peer(ONE)), (61.0, PacketCounts(900, 3), peer(ONE))
    )
    assert not once_good.not_taken
    one_way = looked(
        (0.0, PacketCounts(0, 0), peer(ONE)), (61.0, PacketCounts(60, 0), peer(ONE, sent=7_000))
    )
    assert not one_way.not_taken


def test_an_interface_made_anew_begins_anew() -> None:
    flow = looked(
        (0.0, PacketCounts(5, 7), peer(ONE)),
        (61.0, PacketCounts(0, 0), peer(ONE, received=10**6)),
    )
    assert flow.withheld == frozenset()


def test_looks_are_seldom() -> None:
    flow = InterfaceFlow()
    assert flow.is_due(1.0)
    flow.look(PacketCounts(0, 0), {}, 1.0)
    assert not flow.is_due(20.0)
    assert flow.is_due(21.0)
