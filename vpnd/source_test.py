"""What of a source works (`vpnctl keysource test`), and whether both ends of a link get one key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from vpnd.api import SCHEMA, ErrorCode, KeySourceTest, TestStep
from vpnd.config_model import PeerConfig
from vpnd.keysource.base import Correspondent, KeySource
from vpnd.keysource.remote_source import RemoteSource
from vpnd.node_control import ControlError

if TYPE_CHECKING:
    from vpnd.link import ManagedLink

PROBE_SECONDS: Final = 30.0
TRY_SECONDS: Final = 60.0
EXCHANGE_SECONDS: Final = 50.0
"""Hello, the sources' 30 s, and the answer."""


def user_of(
    source: KeySource, peers: list[PeerConfig], name: str | None
) -> tuple[PeerConfig, Correspondent] | None:
    """The link that a source is tested for; None where none uses it. Raises ControlError."""
    users = {
        peer.name: (peer, Correspondent(peer.name, use.peer_sae or ""))
        for peer in peers
        for use in peer.external_keys.uses
        if use.source == source.name
    }
    if name is None:
        return next(iter(users.values()), None)
    if name not in users:
        known = ", ".join(users) or "none"
        raise ControlError(
            ErrorCode.CONFLICT,
            f"the link to {name} does not use the key source {source.name}",
            f"links that use it: {known}",
        )
    return users[name]


async def probe(source: KeySource, far: Correspondent | None, link: str | None) -> KeySourceTest:
    """TLS, certificate, status; no key is consumed."""
    steps = []
    with trio.move_on_after(PROBE_SECONDS) as scope:
        for found in await source.probe(far):
            steps.append(_step(found.step, found.done, found.detail, found.hint))
    if scope.cancelled_caught:
        steps.append(_step("answer", False, f"none within {PROBE_SECONDS:.0f} s"))
    return KeySourceTest(
        schema=SCHEMA,
        source=source.name,
        peer=link,
        done=all(step["done"] for step in steps),
        steps=steps,
        key_id=None,
        key_ids=[],
    )


async def try_out(source: KeySource, far: Correspondent, test: KeySourceTest) -> KeySourceTest:
    """Take keys as a link would, and as it might; none of them is used."""
    if not isinstance(source, RemoteSource):
        return test
    with trio.move_on_after(TRY_SECONDS) as scope:
        for found in await source.try_out(far):
            test["steps"].append(_step(found.step, found.done, found.detail, found.hint))
    if scope.cancelled_caught:
        test["steps"].append(_step("key", False, f"none within {TRY_SECONDS:.0f} s"))
    test["done"] = all(step["done"] for step in test["steps"])
    return test


async def consume_one(link: ManagedLink, source: KeySource, test: KeySourceTest) -> KeySourceTest:
    """Begin an exchange that gives no key without one of this source, and tell how it went.

    A key that is established is proof that both ends hold the same (docs/protocol.md, RC1, CO1):
    nothing of it has to be shown. It is in use from then on. Raises ControlError, NotPossible.
    """
    asked = link.exchanges.begin_with(source.name)
    if asked is None:
        raise ControlError(
            ErrorCode.CONFLICT, f"an exchange of {link.name} is under way", "try again in a moment"
        )
    with trio.move_on_after(EXCHANGE_SECONDS):
        await asked.over.wait()
    ids = [key_id for each in asked.mixed if each.source == source.name for key_id in each.key_ids]
    if asked.key_id and ids:
        detail = f"key {', '.join(ids)} at both ends, in the link's key {asked.key_id}"
        test["steps"].append(_step("key", True, detail))
        test["key_id"], test["key_ids"] = asked.key_id, ids
    else:
        reason = asked.outcome or f"no outcome within {EXCHANGE_SECONDS:.0f} s"
        hint = f"the log of both ends says more; the link goes on: vpnctl status {link.name}"
        test["steps"].append(_step("key", False, reason, hint))
    test["done"] = all(step["done"] for step in test["steps"])
    return test


def _step(step: str, done: bool, detail: str, hint: str = "") -> TestStep:
    return TestStep(step=step, done=done, detail=detail, hint=hint)
