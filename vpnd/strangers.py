"""Who calls this node and is not answered, in words, with what to do about it.

What is told here proves nothing: who calls says of itself what it likes (kex.callers). It is for
the operator of a node that a peer has been given wrongly to, and stays within the bounds of that
table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kex.callers import Caller
from kex.identity import Fingerprint
from vpnd.api import CallerInfo
from vpnd.clock import boottime, rfc3339, wall_of
from vpnd.deliveries import Told

if TYPE_CHECKING:
    from vpnd.journal import Journal
    from vpnd.node import Node


class Strangers:
    """Tells of callers, and lists them."""

    def __init__(self, node: Node, journal: Journal) -> None:
        self._node = node
        self._journal = journal

    def called(self, caller: Caller) -> None:
        """Somebody called; this is told seldom."""
        reason, hint = self._words(caller, self._expected())
        self._journal.record(
            "unknown_caller",
            level="warning",
            reason=f"{reason}: {hint}",
            address=str(caller.address),
            identity=None if caller.claimed is None else caller.claimed.text(),
            calls=caller.calls,
        )

    def listed(self) -> list[CallerInfo]:
        """All of them, the most frequent first."""
        expected = self._expected()
        return [self._info(caller, expected) for caller in self._callers()]

    def warnings(self) -> Mapping[str, list[str]]:
        """What of them concerns a link, by its name: calls from where its peer is expected."""
        found: dict[str, list[str]] = {}
        expected = self._expected()
        for caller in self._callers():
            peer = expected.get(caller.address.host)
            if peer is not None:
                found.setdefault(peer, []).append(": ".join(self._words(caller, expected)))
        return found

    def _callers(self) -> list[Caller]:
        return list(self._node.engine.endpoint.callers(boottime()))

    def _info(self, caller: Caller, expected: Mapping[str, str]) -> CallerInfo:
        reason, hint = self._words(caller, expected)
        return CallerInfo(
            address=str(caller.address),
            identity=None if caller.claimed is None else caller.claimed.text(),
            called=None if caller.called is None else caller.called.text(),
            calls=caller.calls,
            first_at=rfc3339(wall_of(caller.first_at)),
            last_at=rfc3339(wall_of(caller.last_at)),
            reason=reason,
            hint=hint,
        )

    def _words(self, caller: Caller, expected_at: Mapping[str, str]) -> Told:
        """What there is to say of a caller, and what to do."""
        host, times = caller.address.host, _times(caller.calls)
        if caller.claimed is None or caller.called is None:
            return Told(
                f"{host} calls ({times}) an identity that is not this node's (any more)",
                "`vpnctl id` prints the one that has to be pinned there",
            )
        claimed, called = caller.claimed.text(), caller.called.text()
        if caller.claimed in self._own():
            return Told(
                f"{host} calls ({times}) as this node itself, {claimed}",
                "a copy of this host, or an endpoint that leads back here: a copy needs an "
                "identity of its own",
            )
        peer = self._peer_with(caller.claimed)
        if peer is not None:
            return Told(
                f"{peer} at {host} calls ({times}) {called}, an identity of this node that its "
                "link does not use",
                f"`local_identity` in the file of {peer}, or the identity that is pinned there",
            )
        expected = expected_at.get(host)
        if expected is not None:
            return Told(
                f"{claimed} at {host} calls ({times}), where {expected} is expected with another "
                "identity",
                f"ask the operator of {expected} whether that is its new one: "
                f"vpnctl peer set {expected} --identity {claimed}",
            )
        return Told(
            f"{claimed} at {host} calls ({times}) and is no peer here",
            f"if its operator confirms it: vpnctl peer add NAME --identity {claimed} --allow …",
        )

    def _own(self) -> set[Fingerprint]:
        return {identity.fingerprint for identity in self._node.identities.values()}

    def _peer_with(self, identity: Fingerprint) -> str | None:
        peers = self._node.config.peers.values()
        return next((peer.name for peer in peers if identity in peer.identity), None)

    def _expected(self) -> Mapping[str, str]:
        """The names of links by the host at which this node calls their peers."""
        found: dict[str, str] = {}
        if self._callers():
            for link in self._node.links.values():
                address = link.exchanges.addresses.current
                if address is not None:
                    found.setdefault(address.host, link.name)
        return found


def _times(calls: int) -> str:
    return "once" if calls == 1 else f"{calls} times"
