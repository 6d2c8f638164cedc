"""No stored number can be pushed ahead for good: neither with a stolen biscuit key, nor by a peer
that is authenticated and says what it likes."""

from __future__ import annotations

import pytest

from kex import biscuit as biscuits
from kex import noise, payload, schedule, timing
from kex.biscuit import KEY_SECONDS, Biscuit
from kex.events import RejectSent, StartReason
from kex.exchange import Exchange, initiator_payload_length
from kex.external import ExternalMode
from kex.payload import Announcement, InitiatorPayload
from kex.secret import Secret
from kex.suites import MAX_NONCE
from kex.wire import MessageType

from . import forging
from .harness import ADDRESSES, SUITES, Network, finish, identity, pair, refused, run_exchange
from .reference import SeededBytes

STRANGE_KEY = b"the thief's".ljust(32, b".")
LONG = 86_400


@pytest.fixture(params=SUITES, ids=["suite 1", "suite 2"])
def number(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


def forged(network: Network, number: int, biscuit_number: int, *, interval: int = LONG) -> bytes:
    """InitConf in the name of `left`, by somebody who has `right`'s biscuit key and neither static
    key: a datagram that opens at `right`, under any number."""
    right = network["right"].endpoint
    suite, keys = right._node.suites[number], right._node.biscuit_keys
    random = SeededBytes(b"thief %d" % biscuit_number)
    ck, h = Secret(random(suite.hash_length)), random(suite.hash_length)
    local, initiator = (identity(number, name).fingerprint for name in ("right", "left"))
    exchange_id = random(8)
    sealed = biscuits.seal(
        suite,
        keys.current,
        Biscuit(biscuit_number, ck, h, initiator),
        exchange_id=exchange_id,
        local=local,
    )
    exchange = Exchange(
        exchange_id=exchange_id,
        local=initiator,
        remote=local,
        address=ADDRESSES["right"],
        reason=StartReason.REQUESTED,
        attempt=1,
        session=noise.split(suite, ck=ck, h=h),
        exporter=schedule.export(suite, ck, h),
        biscuit=sealed,
    )
    says = Announcement(STRANGE_KEY, 1, (), ExternalMode.OFF, interval, can_start=True)
    length = initiator_payload_length(suite)
    p_i = payload.encode_initiator(InitiatorPayload(says, ()), length)
    (datagram,) = forging.init_conf(suite, exchange, p_i)
    return datagram


@pytest.mark.parametrize("ahead", [0, 1, 2**40, MAX_NONCE])
def test_a_biscuit_number_never_handed_out_shuts_nobody_out(number: int, ahead: int) -> None:
    """With a stolen biscuit key: it would be the last accepted one, and `left`'s never above it."""
    network = pair(number)
    run_exchange(network)
    right = network["right"].endpoint
    at = min(right._node.biscuit_keys.next_number + ahead, MAX_NONCE)
    source = ADDRESSES["third"]
    datagram = forged(network, number, at)
    assert refused(network["right"], datagram, source, network.now) == "biscuit number"
    finish(network)


def test_what_a_stolen_biscuit_key_gives_ends_with_the_key(number: int) -> None:
    """Under a number that was handed out the thief is `left` for `right`: the threat model says so.
    Once the key is erased he is nobody, and the next exchange of `left` is accepted."""
    network = pair(number)
    network.start()
    network.settle_until(MessageType.INIT_CONF)
    network.in_flight.clear()
    right = network["right"].endpoint
    handed_out = right._node.biscuit_keys.next_number - 1
    later = network.copy()
    right.receive_datagram(forged(network, number, handed_out), ADDRESSES["third"], network.now)
    network.collect()
    assert network["right"].installed[-1].peer.wireguard_key == STRANGE_KEY
    assert not network["right"].events_of(RejectSent)
    network.in_flight.clear()
    finish(network)
    assert network["right"].installed[-1].peer.wireguard_key != STRANGE_KEY

    datagram = forged(later, number, handed_out)
    later.now += 2 * KEY_SECONDS
    reason = refused_after_rotation(later, datagram)
    assert reason == "biscuit key"
    finish(later)


def refused_after_rotation(network: Network, datagram: bytes) -> str:
    network["right"].endpoint.handle_timer(network.now)
    network.collect()
    network.in_flight.clear()
    return refused(network["right"], datagram, ADDRESSES["third"], network.now)


@pytest.mark.parametrize(("announced", "used"), [(1, timing.MIN_INTERVAL), (LONG, 300)])
def test_an_announced_interval_only_shortens_and_not_below_the_least(
    announced: int, used: int
) -> None:
    network = pair(links={"right": {"interval": 300}})
    network.start()
    network.settle_until(MessageType.INIT_CONF)
    right = network["right"].endpoint
    datagram = forged(network, 1, right._node.biscuit_keys.next_number - 1, interval=announced)
    right.receive_datagram(datagram, ADDRESSES["left"], network.now)
    network.collect()
    assert right.link("left").interval == used


def test_a_session_of_the_future_puts_no_renewal_off() -> None:
    """WireGuard's handshake stamps follow the wall clock, which somebody may set."""
    for session_at in (1e12, 0.0, None):
        due = timing.renewal_due(installed_at=1000.0, session_at=session_at, interval=120)
        assert due <= 1000.0 + 120 + timing.NO_HANDSHAKE_MARGIN
