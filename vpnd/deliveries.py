"""What is known of datagrams that did not arrive: not sent at all, or sent back by ICMP.

An ICMP message can be forged, and a router may send one for a while only. So it is shown, with who
sent it, and nothing else depends on it: an exchange goes on as if nothing had been heard.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kex.address import Address

NOT_SENT: Final = "not_sent"
UNREACHABLE: Final = "unreachable"
NO_ANSWER: Final = "no_answer"
"""Codes: what is known where nothing was heard."""

NO_SOCKET: Final = -1
"""In the place of an errno: no socket of ours reaches addresses of this kind."""
IP_RECVERR: Final = 11  # linux/in.h, linux/in6.h; Python's socket module does not name them
IPV6_RECVERR: Final = 25
_EXTENDED_ERROR: Final = struct.Struct("=IBBBBII")
"""struct sock_extended_err (linux/errqueue.h): errno, origin, type, code, padding, info, data."""
_ORIGIN_ICMP: Final = 2
_ORIGIN_ICMP6: Final = 3
_MAX_UNCLAIMED: Final = 16


@dataclass(frozen=True, slots=True)
class Returned:
    """An ICMP or ICMPv6 message about a datagram of ours."""

    ipv6: bool
    type: int
    code: int
    info: int
    """The MTU in bytes where a datagram was too long."""
    sender: str
    """Who sent it; '' where that is not known."""


class Told(NamedTuple):
    """What there is to say, and what to do about it."""

    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why nothing was heard, as far as is known."""

    code: str
    reason: str
    hint: str


def read_error(ancillary: Sequence[tuple[int, int, bytes]]) -> Returned | None:
    """The ICMP message in what MSG_ERRQUEUE gives beside a datagram (ip(7), ipv6(7)); None where
    there is none, since the error is one of this host's own."""
    for level, kind, data in ancillary:
        if (level, kind) not in (
            (socket.IPPROTO_IP, IP_RECVERR),
            (socket.IPPROTO_IPV6, IPV6_RECVERR),
        ):
            continue
        if len(data) < _EXTENDED_ERROR.size:
            continue
        _, origin, kind_of, code, _, info, _ = _EXTENDED_ERROR.unpack_from(data)
        if origin in (_ORIGIN_ICMP, _ORIGIN_ICMP6):
            sender = _host(data[_EXTENDED_ERROR.size :])
            return Returned(origin == _ORIGIN_ICMP6, kind_of, code, info, sender)
    return None


def _host(sockaddr: bytes) -> str:
    family = int.from_bytes(sockaddr[:2], sys.byteorder)
    if family == socket.AF_INET and len(sockaddr) >= 8:
        return socket.inet_ntop(socket.AF_INET, sockaddr[4:8])
    if family == socket.AF_INET6 and len(sockaddr) >= 24:
        return socket.inet_ntop(socket.AF_INET6, sockaddr[8:24]).removeprefix("::ffff:")
    return ""


@dataclass(slots=True)
class _Outcome:
    """What became of what was sent to an address since the exchange began."""

    unsent: int = 0
    """Why the last datagram was not taken, as an errno or NO_SOCKET; 0 where it was."""
    returned: Returned | None = None


@dataclass(slots=True)
class _Watcher:
    address: Address
    changed: Callable[[], None]


@dataclass(slots=True)
class Deliveries:
    """Keeps outcomes for the addresses of exchanges that are under way: one for each link."""

    guard_over: Callable[[str], str] = lambda _: ""
    """The guard route that a numeric address is in, in words; '' for none."""
    _watchers: dict[str, _Watcher] = field(default_factory=dict)
    _outcomes: dict[Address, _Outcome] = field(default_factory=dict)
    _unclaimed: dict[Address, int] = field(default_factory=dict)
    """What was not sent just now to an address that is not watched yet: an exchange's first
    datagrams leave before anybody is told that it has begun."""

    # ---- who wants to know

    def watch(self, link: str, address: Address, changed: Callable[[], None]) -> None:
        """An exchange of a link has begun, with this address. `changed` is called, and must not
        block, when there is something new to be told."""
        self.forget(link)
        address = Address(address.host, address.port)  # without the way that it came by
        self._watchers[link] = _Watcher(address, changed)
        self._outcomes[address] = _Outcome(self._unclaimed.pop(address, 0))

    def forget(self, link: str) -> None:
        """The link takes part in no exchange any more."""
        before = self._watchers.pop(link, None)
        if before is not None and all(
            watcher.address != before.address for watcher in self._watchers.values()
        ):
            self._outcomes.pop(before.address, None)

    def trouble(self, link: str) -> Trouble | None:
        """Why the exchange of a link that is under way, or was last, may not get an answer; None
        where nothing is known of that."""
        watcher = self._watchers.get(link)
        outcome = None if watcher is None else self._outcomes.get(watcher.address)
        if watcher is None or outcome is None:
            return None
        address = watcher.address
        if outcome.unsent:
            reason, hint = not_sent(address, outcome.unsent, self.guard_over(address.host))
            return Trouble(NOT_SENT, reason, hint)
        if outcome.returned is not None:
            reason, hint = sent_back(address, outcome.returned)
            return Trouble(UNREACHABLE, reason, hint)
        return None

    def nothing_heard(self, link: str) -> Trouble:
        """What there is to say at the end of an exchange that got no answer."""
        known = self.trouble(link)
        if known is not None:
            return known
        watcher = self._watchers.get(link)
        reason, hint = unheard(None if watcher is None else watcher.address)
        return Trouble(NO_ANSWER, reason, hint)

    # ---- what happens

    def sent(self, address: Address) -> None:
        """A datagram was taken by the kernel."""
        if self._unclaimed:
            self._unclaimed.pop(address, None)
        outcome = self._outcomes.get(address)
        if outcome is not None and outcome.unsent:
            outcome.unsent = 0
            self._tell(address)

    def unsent(self, address: Address, why: int) -> None:
        """A datagram was not taken: an errno, or NO_SOCKET."""
        outcome = self._outcomes.get(address)
        if outcome is None:
            if len(self._unclaimed) >= _MAX_UNCLAIMED:
                self._unclaimed.clear()
            self._unclaimed[address] = why
        elif outcome.unsent != why:
            outcome.unsent = why
            self._tell(address)

    def returned(self, address: Address, message: Returned) -> None:
        """A datagram to this address came back."""
        outcome = self._outcomes.get(address)
        if outcome is not None and outcome.returned != message:
            outcome.returned = message
            self._tell(address)

    def _tell(self, address: Address) -> None:
        for watcher in tuple(self._watchers.values()):
            if watcher.address == address:
                watcher.changed()


# ---- in words: the reason, and what to do


def not_sent(address: Address, why: int, guard: str) -> Told:
    """Nothing left this host."""
    host = address.host
    look = f"`ip route get {host}` shows the route"
    if why == NO_SOCKET:
        family = "IPv6" if ":" in host else "IPv4"
        return Told(
            f"could not be sent to {address}: no socket here sends to {family}",
            "`node.listen` with an address of that family, or an endpoint of the other one",
        )
    if guard and why in _NO_WAY:
        return Told(
            f"could not be sent to {address}: the guard route {guard} is in the way",
            "an endpoint must not be inside what is guarded: take it out of allowed_ips or "
            "protect, or give it a route of its own",
        )
    name = errno.errorcode.get(why, str(why))
    if why == errno.EPERM:
        return Told(
            f"could not be sent to {address}: a firewall of this host forbids it ({name})",
            f"let UDP to port {address.port} out: `nft list ruleset`",
        )
    if why == errno.ENETUNREACH:
        return Told(f"could not be sent to {address}: this host has no route there ({name})", look)
    if why == errno.EHOSTUNREACH:
        return Told(
            f"could not be sent to {address}: a route of this host says unreachable, or nobody on "
            f"its network has that address ({name})",
            look,
        )
    if why in (errno.EACCES, errno.EINVAL):
        return Told(
            f"could not be sent to {address}: a route of this host forbids it, or it is no address "
            f"to send to from here ({name})",
            look,
        )
    if why == errno.EMSGSIZE:
        return Told(
            f"could not be sent to {address}: too long for the way there ({name})",
            "a smaller `node.max_datagram`",
        )
    return Told(
        f"could not be sent to {address}: {os.strerror(why)} ({name})",
        "it is tried again by itself; if it stays, look after this host's network",
    )


def sent_back(address: Address, message: Returned) -> Told:
    """A datagram left, and ICMP says why it did not arrive."""
    by = message.sender or "somebody"
    kind = (message.type, message.code)
    if kind == ((1, 4) if message.ipv6 else (3, 3)):
        return Told(
            f"no answer: port {address.port} of {address.host} is closed (ICMP from {by})",
            "does vpnd run there, and listen at that port? does a firewall there map it?",
        )
    if kind in (_PROHIBITED_6 if message.ipv6 else _PROHIBITED_4):
        return Told(
            f"no answer: {address} is forbidden (ICMP from {by})",
            f"a firewall at {by} has to let UDP to that port pass",
        )
    if kind == ((2, 0) if message.ipv6 else (3, 4)):
        return Told(
            f"no answer: {by} takes {message.info} bytes at the most on the way to {address} "
            "(ICMP)",
            f"`node.max_datagram` of {max(0, message.info - 48)} or less, at both ends",
        )
    if message.type == (3 if message.ipv6 else 11):
        return Told(
            f"no answer: {by} gave up, the way to {address} has too many hops (ICMP)",
            f"a loop of routes on the way: `traceroute {address.host}`",
        )
    return Told(
        f"no answer: {address} cannot be reached, says {by} (ICMP type {message.type}, code "
        f"{message.code})",
        f"is the far gateway up? `traceroute {address.host}` shows how far it goes",
    )


def unheard(address: Address | None) -> Told:
    """What was sent has left this host, and nothing came."""
    where = "the peer" if address is None else str(address)
    return Told(
        f"no answer: nothing was heard from {where}",
        "is UDP open there, and does vpnd run? `vpnctl status` there lists this node where it "
        "calls in vain; a node never answers a stranger",
    )


_NO_WAY: Final = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EINVAL, errno.EACCES)
_PROHIBITED_4: Final = ((3, 9), (3, 10), (3, 13))
_PROHIBITED_6: Final = ((1, 1), (1, 5), (1, 6))
