"""What a configuration meets on the host that it runs on: routes, rules, other networks.

Nothing of it is an error of the configuration: it may be another one tomorrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import trio

from tun import Lookout, Prefix, TunError, fence_fault, forwarding, look_out
from vpnd.config_errors import ConfigProblem
from vpnd.config_model import PeerConfig, TunnelConfig, protected_within
from vpnd.config_source import Source
from vpnd.forwarding import families_forwarded, hint_for, not_forwarded
from vpnd.host_check import missing_backends

if TYPE_CHECKING:
    from vpnd.config import Config


def behind_here(guarded: Iterable[Prefix], tunnels: Iterable[TunnelConfig]) -> frozenset[Prefix]:
    """What is announced as behind this node and lies within what is guarded: the operator's word
    that it does not go through a tunnel. What a peer has as a whole, or a part of, is not ours."""
    whole = frozenset(guarded)
    return frozenset(
        prefix
        for tunnel in tunnels
        for prefix in tunnel.announce
        if any(_within(prefix, one) for one in whole)
        and not any(_within(one, prefix) for one in whole)
    )


def _within(prefix: Prefix, wider: Prefix) -> bool:
    return prefix.version == wider.version and prefix.subnet_of(wider)  # type: ignore[arg-type]  # the same version


def lookout(
    tunnel: TunnelConfig, peers: Iterable[PeerConfig], tunnels: Iterable[TunnelConfig]
) -> Lookout:
    """What has to lead into a tunnel, with these peers in it; `tunnels` are all that there are."""
    routed: set[Prefix] = set()
    protected: set[Prefix] = set()
    for peer in peers:
        if tunnel.routes == "allowed-ips":
            routed.update(peer.allowed_ips, protected_within(peer))
        else:
            protected.update(peer.protect or ())
    return Lookout(
        interface=tunnel.interface,
        table=tunnel.table,
        vrf=tunnel.vrf,
        metric=tunnel.metric,
        fwmark=tunnel.fwmark,
        routed=frozenset(routed),
        protected=frozenset(protected - routed),
        behind=behind_here(routed | protected, tunnels),
        networks=frozenset(
            address.network
            for address in tunnel.addresses
            if address.network.num_addresses > 1 and not address.network.is_link_local
        ),
    )


def is_fenced(tunnel: TunnelConfig) -> bool:
    """Whether a tunnel is to have a fence.

    By default where its routes are in the main table: which packets another table is for, and
    which ones a VRF has, is nothing that a fence could tell.
    """
    if tunnel.fence is not None:
        return tunnel.fence == "nftables"
    return tunnel.vrf is None and tunnel.table is None


def notes_on_host(config: Config) -> list[ConfigProblem]:
    """What is in the way of the configuration on this host, now. Blocking; changes nothing.

    Of tunnels in another namespace nothing is said: the daemon does, once it is in there.
    """
    # First what keeps a tunnel from coming up at all, whatever is right in the file
    return [
        *missing_backends(config),
        *trio.run(_notes, config),
        *_notes_on_forwarding(config),
    ]


def _notes_on_forwarding(config: Config) -> Iterator[ConfigProblem]:
    """Whether this host forwards what the tunnels are to carry for others."""
    main = Source(config.path)
    for tunnel in config.tunnels.values():
        peers = (peer for peer in config.peers.values() if peer.tunnel == tunnel.name)
        families = families_forwarded(tunnel, peers)
        if not families:
            continue
        at = ("tunnels", tunnel.name)
        behind = () if tunnel.vrf is not None else tunnel.announce
        try:
            found = forwarding(tunnel.netns, tunnel.interface, behind)
        except (TunError, OSError) as unknown:
            reason = f"whether this host forwards is not known: {unknown}"
            yield main.problem(at, reason, "vpnctl status tells, once the tunnel is up")
            continue
        hint = hint_for((*found.ipv4_off, *found.ipv6_off))
        for text in not_forwarded(tunnel, families, found):
            yield main.problem(at, text, hint)


async def _notes(config: Config) -> list[ConfigProblem]:
    main = Source(config.path)
    here = [each for each in config.tunnels.values() if each.netns is None]
    notes = []
    peers = config.peers.values()
    wanted = {
        each.name: lookout(
            each, [peer for peer in peers if peer.tunnel == each.name], config.tunnels.values()
        )
        for each in here
    }
    try:
        found = await look_out(wanted.values())
    except (OSError, TunError) as error:
        return [main.problem(("tunnels",), f"the routes of this host cannot be read: {error}")]
    for tunnel in here:
        detours = found.get(tunnel.interface)
        if detours is None:
            continue
        for prefix in sorted(wanted[tunnel.name].networks, key=str):
            notes += [
                main.problem(("tunnels", tunnel.name, "addresses"), text)
                for text in detours.notes.get(prefix, ())
            ]
        for peer in peers:
            if peer.tunnel != tunnel.name:
                continue
            source = Source(peer.file)
            for key, prefixes in (("allowed_ips", peer.allowed_ips), ("protect", peer.protect)):
                for prefix in prefixes or ():
                    told = [one.text for one in detours.elsewhere.get(prefix, ())]
                    told += detours.notes.get(prefix, ())
                    notes += [source.problem((key,), text) for text in told]
    if any(map(is_fenced, here)):
        fault = await fence_fault()
        if fault:
            notes.append(main.problem(("tunnels",), fault))
    return list(dict.fromkeys(notes))
