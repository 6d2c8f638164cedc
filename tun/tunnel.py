"""One WireGuard interface of ours, whichever backend carries it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

import trio

from tun import kernel, userspace
from tun.detours import Detours
from tun.device import Device, DeviceChange, PeerChange
from tun.errors import (
    BackendUnavailable,
    InterfaceMissing,
    KeyChanged,
    NotOurs,
    PeerMissing,
    ReadBackMismatch,
    TunError,
)
from tun.fence import FencePut, FenceSpec, KeptFence
from tun.forwarding import Forwarding, look_at_forwarding
from tun.guard import remove_guard_routes, set_guard_routes
from tun.interface import (
    BACKENDS,
    Configured,
    configure_link,
    delete_link,
    find_link,
    is_half_made,
    require_free_port,
)
from tun.keys import generate_keypair
from tun.leftover import delete_device, delete_left_here
from tun.lookout import Lookout, look_out
from tun.model import (
    DEFAULT_MTU,
    BackendName,
    Endpoint,
    HandshakeStamp,
    PacketCounts,
    PeerSpec,
    PeerStatus,
    Prefix,
    PresharedKey,
    TunnelSpec,
    check_endpoint,
    check_keepalive,
    check_public_key,
)
from tun.netlink import HERE, Netlink
from tun.routing import RoutesSet, add_routes, own_networks, set_routes_into, yielded
from tun.rtnl import Link, Route, Rtnl, default_metric
from tun.vrf import routing_table

__all__ = ["Tunnel", "open_tunnel"]

_MOVED_PATIENCE = 1.0
"""Seconds for a wireguard-go whose link is gone to notice that."""
_PORT_PATIENCE = 3.0  # seconds


class Tunnel:
    """An open WireGuard interface; made by ``open_tunnel``.

    Every call raises InterfaceMissing once the interface (or wireguard-go) is gone, and
    TunError for anything else that the backend refuses.
    """

    def __init__(
        self,
        spec: TunnelSpec,
        device: Device,
        netlink: Netlink,
        *,
        index: int,
        public_key: bytes,
        adopted: bool,
        faults: tuple[str, ...],
    ) -> None:
        self.spec = spec
        self.backend: BackendName = device.backend
        self.public_key = public_key
        """The interface's own public key (32 bytes)."""
        self.adopted = adopted
        """True where the interface was found running, with its peers and sessions."""
        self._device = device
        self._netlink = netlink
        self._index = index
        self.faults = faults
        """What of the spec cannot be had on this host, while the rest is in force."""
        self._own: Mapping[Prefix, str] | None = None
        """Networks of other interfaces, as they were when all routes were set last."""
        self._shown = (spec.listen_port, spec.fwmark or 0)

    async def add_peer(self, peer: PeerSpec) -> None:
        """Put a peer on the interface, with its first PSK, in one call; read back.

        One that is there already is brought to what is given.
        """
        await self._put_peer(peer, remove=None)

    async def replace_peer(self, old_public_key: bytes, peer: PeerSpec) -> None:
        """Add a peer with PSK and allowed IPs (which moves them), then remove the old one."""
        check_public_key(old_public_key)
        await self._put_peer(peer, remove=old_public_key)

    async def _put_peer(self, peer: PeerSpec, *, remove: bytes | None) -> None:
        if peer.public_key == self.public_key:
            raise TunError(f"a peer of {self.spec.interface} has the interface's own key")
        added = PeerChange(
            public_key=peer.public_key,
            psk=peer.psk,
            endpoint=peer.endpoint,
            keepalive=peer.keepalive,
            allowed_ips=peer.allowed_ips,
            replace_allowed_ips=True,
        )
        peers: tuple[PeerChange, ...] = (added,)
        if remove is not None and remove != peer.public_key:
            peers += (PeerChange(public_key=remove, remove=True),)
        await self._device.apply(DeviceChange(peers=peers))
        await self._read_back_psk(peer.public_key, peer.psk)

    async def set_psk(self, public_key: bytes, psk: PresharedKey) -> HandshakeStamp | None:
        """Change the PSK and nothing else, and read it back, with the peer's handshake stamp: it is
        that of the last handshake when the PSK stood already.

        Raises PeerMissing (nothing was created) or ReadBackMismatch.
        """
        check_public_key(public_key)
        change = PeerChange(public_key=public_key, psk=psk, update_only=True)
        await self._device.apply(DeviceChange(peers=(change,)))
        # On a missing peer an update reports success too: reading back is what tells.
        return await self._read_back_psk(public_key, psk)

    async def _read_back_psk(self, public_key: bytes, psk: PresharedKey) -> HandshakeStamp | None:
        status = await self._peer(public_key, keys=True)
        if status.psk != psk:
            raise ReadBackMismatch(
                f"{self.spec.interface} took a preshared key and shows another one: does "
                "another program configure this interface?"
            )
        return status.handshake_stamp

    async def update_peer(
        self,
        public_key: bytes,
        *,
        allowed_ips: Iterable[Prefix] | None = None,
        endpoint: Endpoint | None = None,
        keepalive: int | None = None,
    ) -> None:
        """Change what is given and leave the rest; raises PeerMissing.

        Allowed IPs are only added where that is enough: replacing them drops packets in between.
        """
        if endpoint is not None:
            check_endpoint(endpoint)
        if keepalive is not None:
            check_keepalive(keepalive)
        present = set((await self._peer(public_key)).allowed_ips)
        wanted = present if allowed_ips is None else set(allowed_ips)
        replace = not present <= wanted
        change = PeerChange(
            public_key=public_key,
            endpoint=endpoint,
            keepalive=keepalive,
            allowed_ips=tuple(wanted if replace else wanted - present),
            replace_allowed_ips=replace,
            update_only=True,
        )
        await self._device.apply(DeviceChange(peers=(change,)))
        if set((await self._peer(public_key)).allowed_ips) != wanted:
            raise ReadBackMismatch(
                f"{self.spec.interface} took allowed IPs and shows others: does another "
                "program configure this interface?"
            )

    async def remove_peer(self, public_key: bytes) -> None:
        """Take a peer off the interface; one that is not there is no error."""
        check_public_key(public_key)
        change = PeerChange(public_key=public_key, update_only=True, remove=True)
        await self._device.apply(DeviceChange(peers=(change,)))

    async def peers(self, *, with_keys: bool = False) -> dict[bytes, PeerStatus]:
        """All peers by public key, from one dump of the interface. Raises KeyChanged.

        InterfaceMissing also where its namespace was deleted: nobody finds the interface there any
        more, whatever else keeps that namespace alive, so it is taken away.
        """
        try:
            self._netlink.require_name()
        except InterfaceMissing:
            with suppress(TunError, OSError):
                await self._netlink.run(lambda rtnl: delete_link(rtnl, self.spec, self._index))
            raise
        state = await self._device.read(keys=with_keys)
        if state.public_key != self.public_key:
            raise KeyChanged(f"{self.spec.interface}: its private key was changed by another hand")
        self._shown = (state.listen_port, state.fwmark)
        return state.peers

    @property
    def is_altered(self) -> bool:
        """Whether the last `peers()` showed another UDP port or fwmark than the spec's."""
        return self._shown != (self.spec.listen_port, self.spec.fwmark or 0)

    async def give_new_key(self) -> None:
        """Replace the private key by a new one, which nobody else knows; sessions end.

        It is another interface then: open it again.
        """
        keys = generate_keypair()
        try:
            await self._device.apply(DeviceChange(private_key=keys.private_key))
        finally:
            keys.private_key.wipe()

    async def restore(self) -> list[str]:
        """Bring the interface back to its spec, but for peers and routes; what differed, in words.

        Raises NotOurs if somebody took our alias off it. Port and fwmark are those of the last
        `peers()`.
        """
        spec, changed = self.spec, []
        wanted = (spec.listen_port, spec.fwmark or 0)
        if self._shown != wanted:
            port, mark = self._shown
            if port != spec.listen_port:
                require_free_port(spec.listen_port)
                changed.append(f"UDP port {port}")
            if mark != wanted[1]:
                changed.append(f"fwmark {mark:#x}")
            await self._device.apply(DeviceChange(listen_port=wanted[0], fwmark=wanted[1]))
            self._shown = wanted

        def configure(rtnl: Rtnl) -> Configured:
            link = rtnl.link_at(self._index)
            if link is not None and link.alias != spec.alias:
                raise NotOurs(f"{link.name} is not ours any more: its alias was changed")
            return configure_link(rtnl, spec, self._index)

        configured = await self._netlink.run(configure)
        self.faults = configured.faults
        return changed + configured.changed

    async def packets(self) -> PacketCounts:
        """What was counted at the interface; raises InterfaceMissing, OSError."""
        counts = await self._netlink.run(lambda rtnl: rtnl.packets(self._index))
        if counts is None:
            raise InterfaceMissing(f"{self.spec.interface} was deleted")
        return counts

    async def peer(self, public_key: bytes) -> PeerStatus | None:
        """One peer, None where it is not there; cheap also among many."""
        check_public_key(public_key)
        return (await self._device.read(only=public_key)).peers.get(public_key)

    async def preshared_key_matches(self, public_key: bytes, psk: PresharedKey) -> bool:
        """Whether the peer on the interface has this PSK; raises PeerMissing."""
        return (await self._peer(public_key, keys=True)).psk == psk

    async def _peer(self, public_key: bytes, *, keys: bool = False) -> PeerStatus:
        check_public_key(public_key)
        state = await self._device.read(only=public_key, keys=keys)
        try:
            return state.peers[public_key]
        except KeyError:
            raise PeerMissing(
                f"{self.spec.interface} has no such peer: it was removed by hand, or never there"
            ) from None

    async def set_routes(self, prefixes: Iterable[Prefix]) -> RoutesSet:
        """Make these the only routes of ours into the interface; changes only what differs.

        With ``routes = "none"`` in the spec there are none, whatever is given. A prefix that is
        also the network of another interface gets none, nor one for which another's route stands
        in the way: the answer says which.
        """
        wanted = list(prefixes) if self.spec.routes == "allowed-ips" else []
        spec = self.spec

        def set_them(rtnl: Rtnl) -> RoutesSet:
            table = routing_table(rtnl, table=spec.table, vrf=spec.vrf)
            self._own = own_networks(rtnl, self._index, table)
            return set_routes_into(rtnl, self._index, wanted, table=table, metric=spec.metric)

        return await self._netlink.run(set_them)

    async def add_routes(self, prefixes: Iterable[Prefix]) -> Mapping[Prefix, str]:
        """Add routes for these prefixes and look at no others: what `set_routes` comes to for a
        new peer, at a cost that does not grow with the peers. Prefixes for which there is none
        now, each with the reason: also where a route of ours stands there already.
        """
        if self.spec.routes != "allowed-ips":
            return {}
        spec = self.spec
        connected = {address.network for address in spec.addresses}
        # For those the kernel has a route of its own
        wanted = {prefix for prefix in prefixes if prefix not in connected}

        def add_them(rtnl: Rtnl) -> Mapping[Prefix, str]:
            table = routing_table(rtnl, table=spec.table, vrf=spec.vrf)
            if self._own is None:
                self._own = own_networks(rtnl, self._index, table)
            own = self._own
            faults = {prefix: reason for prefix in wanted if (reason := yielded(prefix, own))}
            routes = [
                Route(
                    prefix=prefix,
                    table=table,
                    metric=default_metric(prefix) if spec.metric is None else spec.metric,
                    index=self._index,
                )
                for prefix in wanted - faults.keys()
            ]
            return faults | add_routes(rtnl, routes)

        return await self._netlink.run(add_them)

    async def set_guards(self, prefixes: Iterable[Prefix]) -> RoutesSet:
        """`set_guard_routes` in the namespace that is held: nobody is asked for a way into it.

        Raises InterfaceMissing where the namespace was deleted or made anew, TunError.
        """
        self._netlink.require_name()
        spec = self.spec
        return await set_guard_routes(prefixes, table=spec.table, vrf=spec.vrf, netns=self._netlink)

    async def put_fence(self, fence: KeptFence, spec: FenceSpec) -> FencePut:
        """`KeptFence.put` in the namespace that is held. Raises InterfaceMissing, TunError."""
        self._netlink.require_name()
        return await fence.put(spec, netns=self._netlink)

    async def remove_guards(self, prefixes: Iterable[Prefix]) -> None:
        """`remove_guard_routes` likewise. Raises InterfaceMissing, TunError."""
        self._netlink.require_name()
        spec = self.spec
        await remove_guard_routes(prefixes, table=spec.table, vrf=spec.vrf, netns=self._netlink)

    async def look_out(self, lookouts: Iterable[Lookout]) -> Mapping[str, Detours]:
        """`look_out` in the namespace that is held. Raises InterfaceMissing, TunError, OSError."""
        self._netlink.require_name()
        return await look_out(lookouts, self._netlink)

    async def forwarding(self, behind: Iterable[Prefix]) -> Forwarding:
        """What keeps packets between the interface and these prefixes from being forwarded.

        Where the interface is part of a VRF, the interfaces behind are not looked for. Raises
        TunError, OSError.
        """
        name = self.spec.interface
        prefixes = tuple(behind) if self.spec.vrf is None else ()
        return await self._netlink.run_on_socket(
            lambda standing: look_at_forwarding(standing, name, prefixes)
        )

    async def delete(self) -> None:
        """Remove the interface, and with it its routes and its wireguard-go process.

        Raises NotOurs if somebody took our alias off it; one that is gone is no error.
        """
        try:
            await delete_device(self.spec, self._index, self._device, self._netlink)
        finally:
            self._netlink.close()

    async def abandon(self) -> None:
        """Close our sockets after the interface was lost. A wireguard-go whose link somebody moved
        to another namespace is ended, and the link with it: it would keep the UDP port."""
        try:
            with suppress(TunError, OSError):
                if await self._netlink.run(lambda rtnl: rtnl.link_at(self._index)) is None:
                    await self._device.wait_gone(patience=_MOVED_PATIENCE)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close our sockets; the interface runs on."""
        await self._device.aclose()
        self._netlink.close()


async def open_tunnel(spec: TunnelSpec) -> Tunnel:
    """Adopt the interface of this tunnel, or create it with a new private key.

    An adopted one is brought to the spec where it differs; its key, peers and sessions stay. One
    of another backend than the spec insists on is made anew. Raises NotOurs for an interface of
    that name without our alias and for an address that another interface has; nothing was
    changed then. Raises BackendUnavailable where the backend cannot be had, NamespaceMissing and
    NamespaceOutOfReach.
    """
    netlink = await Netlink.open(spec.netns)
    try:
        return await _open(spec, netlink)
    except BaseException:
        netlink.close()
        raise


async def _open(spec: TunnelSpec, netlink: Netlink) -> Tunnel:
    link = await netlink.run(lambda rtnl: find_link(rtnl, spec))
    if link is not None:
        device = await _adopt(spec, link, netlink)
        if device is not None:
            try:
                return await _set_up(spec, link, device, netlink)
            except BaseException:
                await device.aclose()
                raise
    if netlink is not HERE:
        await delete_left_here(spec)
    await _wait_free_port(spec.listen_port)
    link, device = await _create(spec, netlink)
    try:
        return await _set_up(spec, link, device, netlink)
    except BaseException:
        with trio.CancelScope(shield=True):
            await delete_device(spec, link.index, device, netlink)
        raise


async def _adopt(spec: TunnelSpec, link: Link, netlink: Netlink) -> Device | None:
    """The device of a link of ours; None after deleting one that cannot be used."""
    backend = BACKENDS[link.kind]
    device: Device
    if is_half_made(link):
        await netlink.run(lambda rtnl: delete_link(rtnl, spec, link.index))
        return None
    if backend == "kernel":
        device = await kernel.KernelDevice.open(netlink, name=link.name, index=link.index)
    else:
        try:
            device = await userspace.attach(link.name)
        except InterfaceMissing:
            # Its process cannot be reached any more: its socket file is gone. The link is ours by
            # its alias, and the process ends without it.
            await netlink.run(lambda rtnl: delete_link(rtnl, spec, link.index))
            return None
    if spec.backend in ("auto", backend):
        return device
    try:
        # The running one goes only once it is sure that there can be another.
        if spec.backend == "kernel":
            await kernel.require_kernel()
        else:
            userspace.require_program()
    except BaseException:
        await device.aclose()
        raise
    await delete_device(spec, link.index, device, netlink)
    return None


async def _wait_free_port(port: int) -> None:
    """Wait a moment for a wireguard-go that is just ending: it closes its port last."""
    with trio.move_on_after(_PORT_PATIENCE):
        while True:
            try:
                return require_free_port(port)
            except TunError:
                await trio.sleep(0.02)
    return require_free_port(port)


async def _create(spec: TunnelSpec, netlink: Netlink) -> tuple[Link, Device]:
    if spec.backend == "userspace":
        return await userspace.create_device(spec, netlink)
    try:
        return await kernel.create_device(spec, netlink)
    except BackendUnavailable as no_kernel:
        if spec.backend == "kernel":
            raise
        try:
            return await userspace.create_device(spec, netlink)
        except BackendUnavailable as no_userspace:
            raise BackendUnavailable(f"{no_kernel}; and {no_userspace}") from None


async def _set_up(spec: TunnelSpec, link: Link, device: Device, netlink: Netlink) -> Tunnel:
    """Give the device a key unless it has one, and bring device and link to the spec."""
    state = await device.read()
    fwmark = spec.fwmark or 0
    if state.public_key is None:
        keys = generate_keypair()
        try:
            await device.apply(
                DeviceChange(
                    private_key=keys.private_key, listen_port=spec.listen_port, fwmark=fwmark
                )
            )
        finally:
            keys.private_key.wipe()
        public_key = keys.public_key
    else:
        public_key = state.public_key
        if state.listen_port != spec.listen_port:
            # First: wireguard-go gives up its old port before it finds that the new one is taken.
            require_free_port(spec.listen_port)
        if (state.listen_port, state.fwmark) != (spec.listen_port, fwmark):
            await device.apply(DeviceChange(listen_port=spec.listen_port, fwmark=fwmark))
    if state.public_key is None and spec.mtu is None:
        spec = replace(spec, mtu=DEFAULT_MTU)
    configured = await netlink.run(lambda rtnl: configure_link(rtnl, spec, link.index))
    after = await device.read()
    if (after.public_key, after.listen_port) != (public_key, spec.listen_port):
        raise ReadBackMismatch(
            f"{spec.interface} took a private key and a port and shows others: does another "
            "program configure this interface?"
        )
    return Tunnel(
        spec,
        device,
        netlink,
        index=link.index,
        public_key=public_key,
        adopted=state.public_key is not None,
        faults=configured.faults,
    )
