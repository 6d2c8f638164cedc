"""Where the prefixes of the links lead, and the ways to the peers, whatever was configured.

A link may have its key, and its traffic go elsewhere: by a more specific route, by one with a
better metric, by a table that an `ip rule` chooses. Looked at when routes or rules change, when an
address of a peer becomes known, and once a minute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final

import trio

from tun import Detours, InterfaceMissing, Prefix, RouteWatch, look_out, ways_to_peers
from tun.ways import Ranges
from vpnd.config_host import lookout
from vpnd.config_model import MAIN_TABLE
from vpnd.guarded import guarded_prefixes
from vpnd.guards import Guards
from vpnd.tunnels import RETRY_SECONDS, BackendErrors, ManagedTunnel

if TYPE_CHECKING:
    from vpnd.journal import Journal
    from vpnd.link import ManagedLink

LOOK_SECONDS: Final = 60.0
POLL_SECONDS: Final = 2.0
"""An address that has become known, a tunnel that was opened: noticed this late at the most."""
CALM_SHARE: Final = 20
"""After a look, this many times what it took, up to LOOK_SECONDS: with many routes it is slow."""
HOSTS_AT_ONCE: Final = 100
"""Look-ups of addresses in one go, in turns."""


class PathWatch:
    """Looks, and lets the links know."""

    def __init__(
        self,
        guards: Guards,
        tunnels: Mapping[str, ManagedTunnel],
        links: Mapping[str, ManagedLink],
        journal: Journal,
    ) -> None:
        self._guards = guards
        self._tunnels = tunnels
        self._links = links
        self._journal = journal
        self._watch: RouteWatch | None = None
        self._changed = trio.Event()
        self._seen: object = None
        self._looked_up: dict[str, float] = {}
        """When each host was looked up last."""
        self._unreachable: dict[str, str] = {}
        """Of each host that nothing can be sent to: why."""
        self.fault = ""
        """Why it could not be looked."""

    @property
    def warnings(self) -> list[str]:
        """Of the whole node."""
        of_tunnels = [
            f"tunnel {name}: {text}"
            for name, tunnel in self._tunnels.items()
            for address in tunnel.config.addresses
            for text in tunnel.ways.notes.get(address.network, ())
        ]
        return [*dict.fromkeys(of_tunnels), *filter(None, [self.fault])]

    async def run(self) -> None:
        """Look until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_often)
            while True:
                try:
                    with RouteWatch() as watch:
                        self._watch = watch
                        while True:
                            await watch.wait_changed()
                            self._changed.set()
                except OSError as error:
                    self._journal.record("changes_unseen", level="error", reason=str(error))
                self._changed.set()
                await trio.sleep(RETRY_SECONDS)

    async def _look_often(self) -> None:
        while True:
            began = trio.current_time()
            self._changed, self._seen = trio.Event(), self._situation()
            try:
                await self._look()
            except BackendErrors as error:
                self.fault = f"where the prefixes of the links lead is not known: {error}"
            except Exception as error:
                # A bug: the links go on
                self._journal.record(
                    "internal_error", level="error", reason="paths", exc_info=error
                )
            else:
                self.fault = ""
            took = trio.current_time() - began
            await trio.sleep(min(CALM_SHARE * took, LOOK_SECONDS))
            with trio.move_on_after(LOOK_SECONDS):
                await self._wait_news()

    async def _wait_news(self) -> None:
        while not self._changed.is_set() and self._situation() == self._seen:
            with trio.move_on_after(POLL_SECONDS):
                await self._changed.wait()

    def _situation(self) -> object:
        """What a look goes by, besides routes and rules."""
        tunnels = [(name, id(each.open)) for name, each in self._tunnels.items()]
        links = [(name, id(each.peer), *_hosts(each)) for name, each in self._links.items()]
        fences = [self._guards.fence_of(each.config) for each in self._tunnels.values()]
        return tunnels, links, fences

    async def _look(self) -> None:
        lookouts = {
            name: lookout(
                each.config,
                [one.peer for one in self._links.values() if one.tunnel is each],
                [other.config for other in self._tunnels.values()],
            )
            for name, each in self._tunnels.items()
        }
        if self._watch is not None:
            looked_at: list[Prefix] = [ip_network(ip_address(_plain(h))) for h in self._hosts()]
            for each in lookouts.values():
                looked_at += each.routed | each.protected | each.networks
            self._watch.ranges = Ranges(looked_at)
        found: dict[str, Detours] = {}
        for netns in {each.config.netns for each in self._tunnels.values()}:
            beside = [n for n, each in self._tunnels.items() if each.config.netns == netns]
            wanted = [lookouts[name] for name in beside]
            if netns is None:
                found |= await look_out(wanted)
                continue
            opened = [one for n in beside if (one := self._tunnels[n].open) is not None]
            if opened:
                try:
                    found |= await opened[0].look_out(wanted)
                except InterfaceMissing:
                    continue  # its tunnel is made anew
        await self._look_up_hosts()
        for tunnel in tuple(self._tunnels.values()):
            await self._report(tunnel, found.get(tunnel.config.interface, Detours()))

    # ---- peers

    def _hosts(self) -> Mapping[str, ManagedLink]:
        return {host: link for link in self._links.values() for host in _hosts(link)}

    async def _look_up_hosts(self) -> None:
        """Where a packet to each peer leaves: WireGuard's and those of the key exchange."""
        links = list(self._links.values())
        hosts = self._hosts()
        # First those of which nothing is known yet
        chosen = sorted(hosts, key=lambda host: self._looked_up.get(host, 0.0))[:HOSTS_AT_ONCE]
        now = trio.current_time()
        self._looked_up = {
            host: now if host in chosen else self._looked_up.get(host, 0.0) for host in hosts
        }
        marks = {link.tunnel.config.fwmark for link in links}
        towards = await ways_to_peers(chosen, fwmark=next((m for m in marks if m), None))
        for host, toward in towards.items():
            self._unreachable.pop(host, None)
            own = hosts[host].tunnel.config
            if not toward.interface:
                self._unreachable[host] = self._no_way(host)
            elif toward.is_ours and own.netns is None and toward.interface == own.interface:
                self._unreachable[host] = (
                    f"the way to the peer's endpoint {host} leads into {toward.interface}, the "
                    "tunnel itself: take the prefix that holds it out of allowed_ips, or set "
                    "fwmark for the tunnel, or a table of its own"
                )
        for host in self._unreachable.keys() - hosts.keys():
            del self._unreachable[host]

    def _no_way(self, host: str) -> str:
        holder = self._guarded_by(host)
        if holder is None:
            return f"there is no route to the peer's endpoint {host}: see `ip route get {host}`"
        prefix, peer = holder
        return (
            f"nothing can be sent to the peer's endpoint {host}: it lies within {prefix}, which is "
            f"guarded for {peer}; add a route of its own to it, or take it out of that prefix"
        )

    def _guarded_by(self, host: str) -> tuple[Prefix, str] | None:
        address = ip_address(_plain(host))
        found: list[tuple[Prefix, str]] = []
        for link in self._links.values():
            config = link.tunnel.config
            if config.netns is None and config.routing_table == MAIN_TABLE:
                guarded = guarded_prefixes(link.peer, config)
                found += [(one, link.name) for one in guarded if address in one]
        return max(found, key=lambda one: one[0].prefixlen, default=None)

    # ---- the links

    async def _report(self, tunnel: ManagedTunnel, found: Detours) -> None:
        links = [link for link in self._links.values() if link.tunnel is tunnel]
        detours: dict[Prefix, Sequence[str]] = {}
        for prefix, some in found.elsewhere.items():
            ends = self._end(tunnel, prefix, links)
            detours[prefix] = [one.text + (ends if one.by_route else "") for one in some]
        endpoints = {
            link.name: reason
            for link in links
            if (reason := _first(self._unreachable.get(host) for host in _hosts(link)))
        }
        ways = tunnel.ways
        news = (detours, found.notes, endpoints)
        if news != (ways.detours, ways.notes, ways.endpoints):
            ways.detours, ways.notes, ways.endpoints = news
            await tunnel.users.tell(lambda user: user.ways_changed())

    def _end(self, tunnel: ManagedTunnel, prefix: Prefix, links: Iterable[ManagedLink]) -> str:
        guarded = any(prefix in guarded_prefixes(link.peer, tunnel.config) for link in links)
        if guarded and self._guards.fence_of(tunnel.config) == "nftables":
            return "; the fence stops what would go there"
        return "; what goes there is in the clear"


def _hosts(link: ManagedLink) -> list[str]:
    """The addresses of a peer as far as they are known, without ports."""
    exchange = link.exchanges.addresses.current
    hosts = [link.wireguard_host(), None if exchange is None else exchange.host]
    return list(dict.fromkeys(filter(None, hosts)))


def _plain(host: str) -> str:
    """Without a zone."""
    return host.partition("%")[0]


def _first(reasons: Iterable[str | None]) -> str:
    return next(filter(None, reasons), "")
