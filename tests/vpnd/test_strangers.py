"""What is said of who calls and is not answered, from the configuration that there is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kex.address import Address
from kex.callers import Caller
from kex.identity import Fingerprint
from tests.vpnd.config_files import AMS1, Site
from vpnd.clock import boottime
from vpnd.event_feed import EventFeed
from vpnd.journal import Journal
from vpnd.node import Node
from vpnd.strangers import Strangers

OWN, SECOND = Fingerprint.of(1, b"own"), Fingerprint.of(1, b"second")
AMS, STRANGER = Fingerprint.parse(AMS1), Fingerprint.of(1, b"stranger")


def caller(
    called: Fingerprint | None, claimed: Fingerprint | None, host: str = "192.0.2.10"
) -> Caller:
    now = boottime()
    return Caller(Address(host, 51821), called, claimed, 45, now, now, bytes(8))


def strangers(folder: Path, *callers: Caller, feed: EventFeed | None = None) -> Strangers:
    """Of a node that calls ams1 at 192.0.2.7. The words are the daemon's."""
    config = Site(folder).load()
    address = SimpleNamespace(current=Address("192.0.2.7", 51821))
    link = SimpleNamespace(name="ams1", exchanges=SimpleNamespace(addresses=address))
    node: Any = SimpleNamespace(
        config=config,
        identities={
            "a": SimpleNamespace(fingerprint=OWN),
            "b": SimpleNamespace(fingerprint=SECOND),
        },
        links={"ams1": link},
        engine=SimpleNamespace(endpoint=SimpleNamespace(callers=lambda now: list(callers))),
    )
    return Strangers(cast(Node, node), Journal(feed or EventFeed()))


@pytest.mark.parametrize(
    ("told", "reason", "hint"),
    [
        (caller(OWN, STRANGER), "and is no peer here", "vpnctl peer add NAME --identity vpnd1"),
        (caller(None, None), "an identity that is not this node's (any more)", "`vpnctl id`"),
        (caller(SECOND, OWN), "192.0.2.10 calls (45 times) as this node itself", "a copy"),
        (caller(SECOND, AMS), "ams1 at 192.0.2.10 calls (45 times) vpnd1", "`local_identity`"),
        (
            caller(OWN, STRANGER, "192.0.2.7"),
            "where ams1 is expected with another identity",
            "vpnctl peer set ams1 --identity vpnd1",
        ),
    ],
)
def test_each_caller_is_told_with_what_to_do(
    tmp_path: Path, told: Caller, reason: str, hint: str
) -> None:
    (info,) = strangers(tmp_path, told).listed()
    assert reason in info["reason"]
    assert "45 times" in info["reason"]
    assert hint in info["hint"]
    assert (info["reason"] + info["hint"]).isprintable()


def test_only_calls_from_where_a_peer_is_expected_warn_of_its_link(tmp_path: Path) -> None:
    near, far = caller(None, None, "192.0.2.7"), caller(None, None)
    warnings = strangers(tmp_path, near, far).warnings()
    assert list(warnings) == ["ams1"]
    (warning,) = warnings["ams1"]
    assert warning.startswith("192.0.2.7 calls")


async def test_an_event_has_it_all(tmp_path: Path) -> None:
    feed = EventFeed()
    with feed.subscribe() as subscription:
        strangers(tmp_path, feed=feed).called(caller(OWN, STRANGER))
        event = await anext(subscription)
    assert event["event"] == "unknown_caller"
    assert event["fields"]["identity"] == STRANGER.text()
    assert event["fields"]["calls"] == 45
