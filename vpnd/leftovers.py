"""What earlier runs of this daemon have left that its configuration does not name any more.

A peer or a tunnel that was taken out of the files while no daemon ran, an interface that has
another name or another namespace now: nobody would end the life of the keys that are on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from tun import NamespaceMissing, delete_fence, delete_leftover
from vpnd.config import Config
from vpnd.file_trust import FileFault
from vpnd.journal import Journal
from vpnd.link_record import LinkRecords
from vpnd.tunnel_record import TunnelRecords
from vpnd.tunnels import BackendErrors, ManagedTunnel


class Leftovers:
    """Known by the records under the runtime folder: what another daemon made is not touched."""

    def __init__(self, config: Config, links: LinkRecords, journal: Journal) -> None:
        self._config = config
        self._links = links
        self._journal = journal
        self.tunnels = TunnelRecords(config.node.runtime_dir)

    async def take_away(self, tunnels: Mapping[str, ManagedTunnel]) -> None:
        """Before any interface is opened: one that is left may have the port of one that comes."""
        self._links.discard_leftovers()
        self._peers(tunnels)
        for spec in self.tunnels.left_over({name: each.spec for name, each in tunnels.items()}):
            try:
                deleted = await delete_leftover(spec)
                with suppress(NamespaceMissing):
                    await delete_fence(spec.interface, netns=spec.netns)
                self.tunnels.forget(spec.tunnel_name)
            except (*BackendErrors, FileFault) as error:
                self._journal.record(
                    "tunnel_failed", level="error", tunnel=spec.tunnel_name, reason=str(error)
                )
                continue
            if deleted:
                self._journal.record(
                    "tunnel_removed", tunnel=spec.tunnel_name, interface=spec.interface
                )

    def _peers(self, tunnels: Mapping[str, ManagedTunnel]) -> None:
        for name in self._links.names():
            record, peer = self._links.load(name), self._config.peers.get(name)
            if peer is not None and (record is None or record.tunnel == peer.tunnel):
                continue
            if record is not None and record.tunnel in tunnels:
                tunnels[record.tunnel].discard(bytes.fromhex(record.wireguard_key))
            try:
                self._links.forget(name)
            except FileFault as fault:
                self._journal.record(
                    "record_not_written", peer=name, level="warning", reason=str(fault)
                )
