"""The one owner of what holds traffic back: guard routes, and the fence (docs/operations.md).

A guard route holds what no other route takes, the fence what another route takes. Both stand for
the prefixes of every link of a tunnel, come before anything else and go last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

import trio

from tun import (
    FencePut,
    FenceSpec,
    FenceUnavailable,
    InterfaceMissing,
    KeptFence,
    NamespaceMissing,
    Prefix,
    RoutesSet,
    delete_fence,
    put_back_guard_routes,
    set_guard_routes,
)
from vpnd.config import Config
from vpnd.config_host import behind_here, is_fenced
from vpnd.config_model import PeerConfig, TunnelConfig
from vpnd.file_trust import FileFault
from vpnd.guarded import guarded_prefixes, place_of
from vpnd.journal import Journal
from vpnd.last_good import Guarded, GuardPlace
from vpnd.own_networks import OwnNetworks
from vpnd.place_guards import Outcome, remove_guards_at, set_all_guards, set_guards_at
from vpnd.start_config import Start
from vpnd.tunnels import ENTERING_SECONDS, BackendErrors, ManagedTunnel

TELL_SECONDS: Final = 10.0
"""Between two records of what was put back: somebody may delete it over and over."""


def fence_spec(
    tunnel: TunnelConfig, config: Config, guarded: Iterable[Prefix], own: OwnNetworks
) -> FenceSpec:
    """A tunnel's fence, around these prefixes."""
    beside = [each for each in config.tunnels.values() if each.netns == tunnel.netns]
    ways = {name for each in beside for name in (each.interface, each.vrf) if name is not None}
    ports = {each.port for each in config.node.listen}
    ports |= {each.listen_port for each in config.tunnels.values()}
    whole = frozenset(guarded) if is_fenced(tunnel) else frozenset()
    return FenceSpec(
        interface=tunnel.interface,
        ways=frozenset({*ways, tunnel.interface}),
        guarded=whole,
        behind=behind_here(whole, beside),
        own=own.known if tunnel.netns is None else frozenset(),
        # WireGuard's socket and that of the key exchange are in the daemon's namespace
        ports=frozenset(ports) if tunnel.netns is None else frozenset(),
    )


class Guards:
    """Sets guard routes and fences, keeps them there, and says what is wrong with them."""

    def __init__(
        self,
        journal: Journal,
        *,
        config: Callable[[], Config],
        tunnels: Mapping[str, ManagedTunnel],
        links: Callable[[], Iterable[tuple[PeerConfig, ManagedTunnel]]],
    ) -> None:
        """`config`, `tunnels` and `links` are the daemon's, as they are when they are asked."""
        self._journal = journal
        self._config = config
        self._tunnels = tunnels
        self._links = links
        self._own = OwnNetworks(config().node.state_dir)
        self._standing: dict[str, set[Prefix]] = {}
        """What is guarded, by tunnel: what is configured, and what was or is about to be."""
        self._fences: dict[str, KeptFence] = {}
        self._faults: dict[str, str] = {}
        """Of each peer whose guard routes could not all be set: why."""
        self._fence_faults: dict[str, str] = {}
        """Of each tunnel whose fence could not be put: why."""
        self._locks: dict[str, trio.Lock] = {}
        """Of each tunnel: the way into a namespace may take long, and holds up its own alone."""
        self._told_at = -TELL_SECONDS
        self._untold: dict[str, int] = {}
        """What was put back since then, and how often."""
        self._by_tunnel: dict[str, tuple[Config, dict[str, frozenset[Prefix]]]] = {}

    # ---- what there is to say

    @property
    def warnings(self) -> list[str]:
        """Of the whole node."""
        peers = [f"{peer}: {fault}" for peer, fault in self._faults.items()]
        return peers + [f"tunnel {name}: {fault}" for name, fault in self._fence_faults.items()]

    @property
    def is_faulty(self) -> bool:
        """Whether something has to be tried again soon."""
        return bool(self._faults)

    async def _report(self, tunnel: ManagedTunnel) -> None:
        """Let a tunnel's links know what of their guards is not as configured."""
        asked = tunnel.config.fence == "nftables"  # else it is a warning of the node
        fence = self._fence_faults.get(tunnel.name, "") if asked else ""
        troubles = {
            peer.name: "; ".join(filter(None, (self._faults.get(peer.name, ""), fence)))
            for peer in self._config().peers.values()
            if peer.tunnel == tunnel.name and (fence or peer.name in self._faults)
        }
        if troubles != tunnel.ways.guards:
            tunnel.ways.guards = troubles
            await tunnel.users.tell(lambda user: user.ways_changed())

    def fence_of(self, tunnel: TunnelConfig) -> str:
        """`nftables`, `off`, or why there is none."""
        return self._fence_faults.get(tunnel.name, "nftables" if is_fenced(tunnel) else "off")

    def expect(self, peers: Iterable[PeerConfig]) -> None:
        """These are going to be guarded one by one: their fence is put once, with the first."""
        for peer in peers:
            tunnel = self._tunnels[peer.tunnel]
            standing = self._standing.setdefault(tunnel.name, set())
            standing.update(guarded_prefixes(peer, tunnel.config))

    # ---- one link's

    async def guard(self, peer: PeerConfig, *, entering: bool = False) -> str:
        """Guard a peer's prefixes; what went wrong, or ''. It is recorded once.

        What cannot be guarded is tried again by itself.
        """
        tunnel = self._tunnels[peer.tunnel]
        prefixes = frozenset(guarded_prefixes(peer, tunnel.config))
        self._standing.setdefault(tunnel.name, set()).update(prefixes)
        if not entering and _is_away(tunnel):
            return ""  # its own task sets them as it enters
        async with self._lock(tunnel):
            await self._set(tunnel, {peer.name: prefixes}, entering=entering)
        return self._faults.get(peer.name, "")

    async def unguard(self, gone: PeerConfig, tunnel: ManagedTunnel) -> None:
        """Guard a peer's prefixes no more, but for those that a link needs as well."""
        links = list(self._links())
        in_table = {
            prefix
            for peer, other in links
            if other.table == tunnel.table
            for prefix in guarded_prefixes(peer, other.config)
        }
        in_tunnel = {
            prefix
            for peer, other in links
            if other is tunnel
            for prefix in guarded_prefixes(peer, tunnel.config)
        }
        held = self._held_at(place_of(tunnel.config))
        in_table |= held
        in_tunnel |= held
        own = set(guarded_prefixes(gone, tunnel.config))
        if all(peer.name != gone.name for peer, _ in links):
            self._faults.pop(gone.name, None)
        self._standing.setdefault(tunnel.name, set()).difference_update(own - in_tunnel)
        try:
            if _is_away(tunnel):
                await _remove_routes(tunnel, own - in_table)
                return
            async with self._lock(tunnel):
                await _remove_routes(tunnel, own - in_table)
                if tunnel.name in self._tunnels:
                    await self._put_fence(tunnel)
        except BackendErrors as error:
            self._record_failure(gone.name, str(error))

    def _held_at(self, place: GuardPlace) -> set[Prefix]:
        """What peers that are held need guarded in a place."""
        return {
            prefix
            for held in self._config().held.values()
            for each in held.guards
            if each.place == place
            for prefix in each.prefixes
        }

    async def release(self, name: str, guards: Iterable[Guarded]) -> None:
        """Guard no more what a peer that does not run had guarded, but for what is needed still."""
        for each in guards:
            needed = self._held_at(each.place)
            for peer, tunnel in self._links():
                if place_of(tunnel.config) == each.place:
                    needed.update(guarded_prefixes(peer, tunnel.config))
            unwanted = set(each.prefixes) - needed
            here = [one for one in self._tunnels.values() if place_of(one.config) == each.place]
            try:
                for tunnel in here:
                    self._standing.setdefault(tunnel.name, set()).difference_update(unwanted)
                    if _is_away(tunnel):
                        continue
                    async with self._lock(tunnel):
                        await _remove_routes(tunnel, unwanted)
                        await self._put_fence(tunnel)
                if all(map(_is_away, here)):
                    await remove_guards_at(each.place, unwanted)
            except BackendErrors as error:
                self._record_failure(name, str(error))

    async def forget_tunnel(self, tunnel: ManagedTunnel) -> None:
        """A tunnel is no longer configured: its fence goes."""
        for known in (self._standing, self._fences, self._fence_faults, self._by_tunnel):
            known.pop(tunnel.name, None)
        try:
            with suppress(NamespaceMissing), trio.move_on_after(ENTERING_SECONDS):
                async with self._lock(tunnel):
                    await delete_fence(tunnel.config.interface, netns=tunnel.config.netns)
        except BackendErrors as error:
            self._journal.record(
                "fence_failed", tunnel=tunnel.name, level="error", reason=str(error)
            )

    # ---- all of them

    async def guard_all(self) -> None:
        """Guard all peers, as the first thing: nothing is expected to stand. What is in another
        namespace comes when its tunnel's task enters it."""
        for tunnel in tuple(self._tunnels.values()):
            await self._guard_tunnel(tunnel)
        await self._guard_elsewhere()

    async def _guard_elsewhere(self) -> None:
        """Of peers that are held, what is not where a tunnel is: by routes alone."""
        places = {place_of(tunnel.config) for tunnel in self._tunnels.values()}
        for held in self._config().held.values():
            for each in held.guards:
                if each.place in places:
                    continue
                try:
                    await set_guards_at(each.place, each.prefixes)
                except BackendErrors as error:
                    if self._faults.get(held.name) != str(error):
                        self._record_failure(held.name, str(error))
                    self._faults[held.name] = str(error)
                else:
                    self._faults.pop(held.name, None)

    async def guard_tunnel(self, name: str) -> None:
        """Enter the namespace of a tunnel, and guard all of its peers, where nothing is expected
        to stand."""
        await self._guard_tunnel(self._tunnels[name], entering=True)

    async def check(self) -> None:
        """Put back whatever is missing, and record it."""
        config = self._config()
        for name in self._faults.keys() - config.peers.keys() - config.held.keys():
            del self._faults[name]
        for tunnel in tuple(self._tunnels.values()):
            if _is_away(tunnel):
                continue  # its own task sets them as it enters, and knows what is wrong
            for each in await self._guard_tunnel(tunnel):
                self._put_back(tunnel.name, each)
        await self._guard_elsewhere()
        self._tell()

    async def put_back(self, deleted: Iterable[Prefix]) -> None:
        """Guard routes in the daemon's namespace were deleted just now: add them at once."""
        gone = set(deleted)
        for name, tunnel in tuple(self._tunnels.items()):
            if tunnel.config.netns is not None:
                continue
            async with self._lock(tunnel):
                ours = gone & self._standing.get(name, set())
                if not ours:
                    continue
                with suppress(*BackendErrors):  # told at the next look, which meets it as well
                    await put_back_guard_routes(
                        ours, table=tunnel.config.table, vrf=tunnel.config.vrf
                    )
            for prefix in ours:
                self._put_back(name, f"guard routes were missing: {prefix}")
        self._tell()

    async def check_fences(self) -> None:
        """Look at the fences alone: somebody changed a table of theirs."""
        for tunnel in tuple(self._tunnels.values()):
            if tunnel.config.netns is None:
                async with self._lock(tunnel):
                    altered = await self._put_fence(tunnel)
                if altered:
                    self._put_back(tunnel.name, _FENCE_ALTERED)
        self._tell()

    async def _guard_tunnel(self, tunnel: ManagedTunnel, *, entering: bool = False) -> list[str]:
        """Guard a tunnel's peers, all in one look; what nobody knew to be missing."""
        peers = self._peers_of(tunnel)
        standing = self._standing.setdefault(tunnel.name, set())
        standing.update(prefix for own in peers.values() for prefix in own)
        async with self._lock(tunnel):
            return await self._set(tunnel, peers, entering=entering)

    def _lock(self, tunnel: ManagedTunnel) -> trio.Lock:
        return self._locks.setdefault(tunnel.name, trio.Lock())

    async def _set(
        self,
        tunnel: ManagedTunnel,
        peers: Mapping[str, frozenset[Prefix]],
        *,
        entering: bool,
    ) -> list[str]:
        """Set what is missing of these peers' guards; what nobody knew to be missing."""
        found = []
        wanted = {prefix for own in peers.values() for prefix in own}
        try:
            done = await _set_routes(tunnel, wanted, entering=entering)
        except BackendErrors as error:
            done = RoutesSet(faults=dict.fromkeys(wanted, str(error)))
        missing = done.missing
        for name, own in peers.items():
            failed = sorted(own & done.faults.keys(), key=str)
            reasons = dict.fromkeys(done.faults[prefix] for prefix in failed)
            before = self._faults.pop(name, "")
            if before:
                missing -= own  # they were known to be
            if reasons:
                self._faults[name] = "; ".join(reasons)
                if self._faults[name] != before:
                    self._record_failure(name, self._faults[name])
        if missing:
            found.append("guard routes were missing: " + ", ".join(sorted(map(str, missing))))
        if await self._put_fence(tunnel, entering=entering):
            found.append(_FENCE_ALTERED)
        await self._report(tunnel)
        return found

    async def _put_fence(self, tunnel: ManagedTunnel, *, entering: bool = False) -> bool:
        """Put a tunnel's fence as it has to be; whether somebody had changed it."""
        config = tunnel.config
        fence = self._fences.setdefault(tunnel.name, KeptFence())
        guarded = self._standing.get(tunnel.name, set())
        spec = fence_spec(config, self._config(), guarded, self._own)
        for other in self._tunnels.values():  # one that comes with a reload is not in it yet
            if other.config.netns == config.netns:
                spec = _with_way(spec, other.config)
        try:
            if config.netns is None:
                put = await fence.put(spec)
                self._own.remember(tunnel.name, put.own)
            elif entering:
                put = await fence.put(spec, netns=config.netns)
            elif tunnel.open is not None:
                put = await tunnel.open.put_fence(fence, spec)
            else:
                put = FencePut(was_altered=False, own=frozenset())
        except (NamespaceMissing, InterfaceMissing):
            return False  # nothing leaves it; found at the next look, and entered anew
        except FileFault as fault:
            self._journal.record(
                "record_not_written", tunnel=tunnel.name, level="warning", reason=str(fault)
            )
            return False
        except BackendErrors as error:
            if not spec.guarded and isinstance(error, FenceUnavailable):
                self._fence_faults.pop(tunnel.name, None)
                return False  # none is wanted
            if self._fence_faults.get(tunnel.name) != str(error):
                self._journal.record(
                    "fence_failed", tunnel=tunnel.name, level="error", reason=str(error)
                )
            self._fence_faults[tunnel.name] = str(error)
            return False
        self._fence_faults.pop(tunnel.name, None)
        return put.was_altered

    def _peers_of(self, tunnel: ManagedTunnel) -> Mapping[str, frozenset[Prefix]]:
        """The guarded prefixes of a tunnel's peers. Worked out anew for another configuration
        only: for a thousand peers it takes a while."""
        config = self._config()
        known: Config | None
        found: dict[str, frozenset[Prefix]]
        known, found = self._by_tunnel.get(tunnel.name, (None, {}))
        if known is not config:
            found = {
                peer.name: frozenset(guarded_prefixes(peer, tunnel.config))
                for peer in config.peers.values()
                if peer.tunnel == tunnel.name
            }
            place = place_of(tunnel.config)
            for held in config.held.values():
                parts = [each.prefixes for each in held.guards if each.place == place]
                if parts:
                    found[held.name] = frozenset().union(*parts)
            self._by_tunnel[tunnel.name] = (config, found)
        return found

    # ---- records

    def _record_failure(self, peer: str, reason: str) -> None:
        self._journal.record("guard_failed", peer=peer, level="error", reason=reason)

    def _put_back(self, tunnel: str, what: str) -> None:
        text = f"{tunnel}\n{what}"
        self._untold[text] = self._untold.get(text, 0) + 1

    def _tell(self) -> None:
        """Record what was put back: at once, and then what comes within TELL_SECONDS together."""
        now = trio.current_time()
        if not self._untold or now - self._told_at < TELL_SECONDS:
            return
        untold, self._untold, self._told_at = self._untold, {}, now
        for text, times in untold.items():
            tunnel, _, what = text.partition("\n")
            self._journal.record(
                "put_right",
                level="warning",
                tunnel=tunnel,
                reason=what if times == 1 else f"{what} ({times} times)",
            )


async def guard_at_boot(start: Start) -> Outcome:
    """Guard everything that a start has to guard, without a daemon: before the network, at boot.

    The fence of a kernel without nftables is waited for, unless the tunnel asks for it; without a
    configuration that could run there is none.
    """
    outcome = await set_all_guards(start.guards)
    if start.config is None:
        return outcome
    own = OwnNetworks(start.config.node.state_dir, at_boot=True)
    for tunnel in start.config.tunnels.values():
        place = place_of(tunnel)
        parts = [each for guards in start.guards.values() for each in guards if each.place == place]
        spec = fence_spec(
            tunnel, start.config, {prefix for each in parts for prefix in each.prefixes}, own
        )
        try:
            await KeptFence().put(spec, netns=tunnel.netns)
        except NamespaceMissing:
            pass  # told of its peers
        except BackendErrors as error:
            unasked = tunnel.fence is None and isinstance(error, FenceUnavailable)
            told = outcome.waiting if unasked else outcome.faults
            told[f"tunnel {tunnel.name}"] = str(error)
    return outcome


_FENCE_ALTERED: Final = "the fence was changed or deleted"


def _is_away(tunnel: ManagedTunnel) -> bool:
    """Whether a namespace has to be entered first, which is for the tunnel's own task to do."""
    return tunnel.config.netns is not None and tunnel.open is None


def _with_way(spec: FenceSpec, other: TunnelConfig) -> FenceSpec:
    return replace(spec, ways=spec.ways | {other.interface})


async def _set_routes(
    tunnel: ManagedTunnel, prefixes: Iterable[Prefix], *, entering: bool
) -> RoutesSet:
    """Guard routes for these prefixes, in the tunnel's table.

    A namespace is entered where `entering` says so: by the tunnel's own task, before there is
    an interface, since a helper may take long to open it. Else those of a tunnel that is not
    open are left to that task. Nothing leaves a namespace that is not there. Raises TunError.
    """
    config = tunnel.config
    if config.netns is not None and not entering:
        with suppress(InterfaceMissing):  # found at the next look, and opened anew
            if tunnel.open is not None:
                return await tunnel.open.set_guards(prefixes)
        return RoutesSet()
    with suppress(NamespaceMissing):
        return await set_guard_routes(
            prefixes, table=config.table, vrf=config.vrf, netns=config.netns
        )
    return RoutesSet()


async def _remove_routes(tunnel: ManagedTunnel, prefixes: Iterable[Prefix]) -> None:
    """Take guard routes away. Raises TunError, also where a namespace has to be entered for
    that and the way into it takes long: others wait meanwhile."""
    config = tunnel.config
    if config.netns is not None and tunnel.open is not None:
        with suppress(InterfaceMissing):
            await tunnel.open.remove_guards(prefixes)
        return
    await remove_guards_at(place_of(config), prefixes)
