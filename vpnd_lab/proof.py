"""Proof that a new key is in force: what a demonstration and a test check alike.

`active` in a status is what a daemon says. What is proved here does not believe it: both
interfaces are asked for their preshared keys, and the traffic is counted through a WireGuard
handshake made after the key was installed.
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from vpnd_lab.control import NotAnswering
from vpnd_lab.errors import LabError
from vpnd_lab.lab import Lab
from vpnd_lab.meter import Report
from vpnd_lab.patience import patient
from vpnd_lab.site import ASK_EVERY_SECONDS, Site

HANDSHAKE_SECONDS = 160.0
"""WireGuard makes a session anew after 120 s, where there is traffic; until then the key before is
in force."""
EQUAL_SECONDS = 30.0
"""An exchange that is under way is over by then."""


class NotProved(LabError):
    """What should hold of a link does not; the message says what was found."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The key ids that the two ends of a link show."""

    one: str
    other: str

    def __str__(self) -> str:
        return self.one if self.one == self.other else f"{self.one} / {self.other}"


async def _key_for(site: Site, peer: str, interface: str, shown: str) -> str:
    """The preshared key of a peer, of what `wg show INTERFACE preshared-keys` printed: of the one
    peer there is, or of the one that the daemon says. A secret: compare it, no more."""
    keys = dict(line.split("\t") for line in shown.splitlines())
    if len(keys) > 1:
        public_key = (await site.link_status(peer))["wireguard"]["peer_public_key"]
        keys = {key: psk for key, psk in keys.items() if key == public_key}
    if [psk for psk in keys.values() if psk != "(none)"] == []:
        raise NotProved(f"{site.name}: {interface} has no peer with a PSK for {peer}")
    return keys.popitem()[1]


async def _inside(site: Site, interface: str) -> list[str]:
    """What leads a command to where the interface is, by what the daemon says, if there is one."""
    with contextlib.suppress(NotAnswering):
        for tunnel in (await site.status())["tunnels"]:
            if tunnel["interface"] == interface and tunnel["netns"]:
                return ["ip", "netns", "exec", tunnel["netns"]]
    return []


async def same_preshared_key(lab: Lab, one: str, other: str, *, interface: str = "wg0") -> bool:
    """Whether the interfaces hold the same preshared key for each other; it is shown nowhere."""
    ends = (lab.site(one), other), (lab.site(other), one)
    command = ["wg", "show", interface, "preshared-keys"]
    commands = [[*await _inside(site, interface), *command] for site, _ in ends]
    # One right after the other, so that hardly ever an exchange comes in between
    shown = [(await site.run(commands[at])).stdout for at, (site, _) in enumerate(ends)]
    mine, theirs = [
        await _key_for(site, peer, interface, shown[at]) for at, (site, peer) in enumerate(ends)
    ]
    return hmac.compare_digest(mine, theirs)


def key_id(status: Any, which: str = "key_in_force") -> str:
    """The key id in a link's status; empty where there is no such key."""
    key = status[which]
    return "" if key is None else str(key["key_id"])


async def installed(lab: Lab, one: str, other: str) -> KeyPair:
    """The key ids last installed at both ends."""
    return KeyPair(
        key_id(await lab.site(one).link_status(other), "key_installed"),
        key_id(await lab.site(other).link_status(one), "key_installed"),
    )


async def wait_new_key(
    lab: Lab, one: str, other: str, *, before: KeyPair, seconds: float = 30
) -> KeyPair:
    """Wait until both ends have installed one and the same key that is not the one before.

    Raises WaitTimeout, and NotProved where they go on to differ.
    """

    def fresh(status: Any) -> bool:
        return key_id(status, "key_installed") not in ("", before.one, before.other)

    for site, peer in ((one, other), (other, one)):
        await lab.site(site).wait_link(peer, fresh, what="given a new key", seconds=seconds)
    return await _wait_equal(lambda: installed(lab, one, other), "installed", seconds)


async def _wait_equal(ask: Callable[[], Awaitable[KeyPair]], what: str, seconds: float) -> KeyPair:
    """The two ends are asked one after the other, and a further exchange may come in between."""
    now = await ask()
    with trio.move_on_after(patient(seconds)):
        while now.one != now.other or not now.one:
            await trio.sleep(ASK_EVERY_SECONDS)
            now = await ask()
        return now
    raise NotProved(f"the two ends do not show the same key as {what}: {now}")


async def in_force(lab: Lab, one: str, other: str) -> KeyPair:
    """The key ids in force at both ends: those that WireGuard's sessions were made with."""
    return KeyPair(
        key_id(await lab.site(one).link_status(other)),
        key_id(await lab.site(other).link_status(one)),
    )


async def wait_in_force(
    lab: Lab, one: str, other: str, *, before: KeyPair, seconds: float
) -> KeyPair:
    """Wait until both ends have seen a WireGuard handshake made with a key that came after those
    that were in force `before`, and agree on it.

    Raises WaitTimeout, and NotProved where they go on to differ.
    """

    def taken_up(status: Any) -> bool:
        newest = key_id(status) == key_id(status, "key_installed")
        return newest and key_id(status) not in ("", before.one, before.other)

    for site, peer in ((one, other), (other, one)):
        await lab.site(site).wait_link(peer, taken_up, what="using the new key", seconds=seconds)
    return await _wait_equal(lambda: in_force(lab, one, other), "in force", seconds)


async def prove(lab: Lab, one: str, other: str, traffic: Report) -> KeyPair:
    """Check a link after a handshake: same PSK, same key id, in force, nothing lost or repeated.

    The ends are looked at one after the other. Where a renewal came in between, or just before,
    its key is waited for until it is in force. Raises NotProved with what was found, WaitTimeout.
    """
    if traffic.lost or traffic.repeated:
        raise NotProved(f"{traffic.lost} of {traffic.sent} lost, {traffic.repeated} repeated")
    before = await in_force(lab, one, other)
    try:
        return await _prove(lab, one, other)
    except NotProved:
        newest = await _wait_equal(lambda: installed(lab, one, other), "installed", EQUAL_SECONDS)
        if newest.one in (before.one, before.other):
            raise
    await wait_in_force(lab, one, other, before=before, seconds=HANDSHAKE_SECONDS)
    return await _prove(lab, one, other)


async def _prove(lab: Lab, one: str, other: str) -> KeyPair:
    if not await same_preshared_key(lab, one, other):
        raise NotProved(f"the interfaces of {one} and {other} hold different preshared keys")
    statuses = [await lab.site(one).link_status(other), await lab.site(other).link_status(one)]
    for site, status in zip((one, other), statuses, strict=True):
        if status["state"] not in ("active", "degraded"):
            raise NotProved(f"{site}: the link is {status['state']}: {status['reason']}")
        if key_id(status) != key_id(status, "key_installed"):
            raise NotProved(
                f"{site}: {key_id(status, 'key_installed')} is installed, {key_id(status)} in force"
            )
    pair = KeyPair(key_id(statuses[0]), key_id(statuses[1]))
    if pair.one != pair.other:
        raise NotProved(f"different keys are in force at the two ends: {pair}")
    return pair
