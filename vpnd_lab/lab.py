"""A running lab: `async with open_lab(spec) as lab`."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import trio

from vpnd_lab import programs
from vpnd_lab.build import build, check_host, check_wireguard
from vpnd_lab.capture import Capture, open_capture
from vpnd_lab.errors import LabError, last_lines
from vpnd_lab.external_keys import KeyManager, start_key_managers
from vpnd_lab.meter import Meter, open_meter
from vpnd_lab.node import Node
from vpnd_lab.packets import Ports
from vpnd_lab.plan import Address, LinkPlan, Network, Plan, make_plan
from vpnd_lab.process import ProcessId
from vpnd_lab.site import Site
from vpnd_lab.spec import LabSpec
from vpnd_lab.state import STATE_FILE, LabState, claim, lab_root, locked
from vpnd_lab.teardown import remove_abandoned, take_down

Start = Literal["network", "daemons", "links"]


class Lab:
    """Nodes by name, and what concerns more than one of them."""

    def __init__(self, state: LabState, plan: Plan) -> None:
        self.name = state.name
        self.folder = state.folder
        self.plan = plan
        self._state = state
        self.sites = {name: Site(name, state, plan) for name in plan.sites}
        self.kmes = {name: KeyManager(name, state, plan) for name in plan.kmes}
        self.nodes: dict[str, Node] = {
            name: self.sites.get(name) or self.kmes.get(name) or Node(name, state, plan)
            for name in plan.nodes
        }

    def node(self, name: str) -> Node:
        """A site, router or client host. Raises LabError."""
        try:
            return self.nodes[name]
        except KeyError:
            hint = f"it has: {', '.join(sorted(self.nodes))}"
            raise LabError(f"the lab {self.name} has no node {name}", hint=hint) from None

    def site(self, name: str) -> Site:
        """A site. Raises LabError."""
        node = self.node(name)
        if not isinstance(node, Site):
            raise LabError(f"{name} is a {node.kind}, not a site")
        return node

    def kme(self, name: str, *, source: str | None = None) -> KeyManager:
        """A key manager by its name, or by that of a site: its first one, or that of `source`.

        Raises LabError.
        """
        if name in self.sites:
            for planned in self.plan.sites[name].sources:
                if planned.kme and source in {None, planned.name}:
                    return self.kmes[planned.kme]
        try:
            return self.kmes[name]
        except KeyError:
            hint = f"it has: {', '.join(sorted(self.kmes)) or 'none; write kme = true at a site'}"
            raise LabError(f"{name} is or has no such key manager", hint=hint) from None

    async def start(self, upto: Start = "links") -> None:
        """Start daemons in all sites, and link them as the lab file says. Raises LabError."""
        if upto == "network":
            return
        # Before anything is started that would only wait for it
        await trio.to_thread.run_sync(check_wireguard, self.plan)
        failures: list[LabError] = []
        async with trio.open_nursery() as nursery:
            for site in self.sites.values():
                nursery.start_soon(_init_and_start, site, failures)
        if failures:
            raise LabError("\n".join(str(failure) for failure in failures)) from failures[0]
        if upto == "links":
            for link in self.plan.links:
                await self.link(*link.sites)

    def link_plan(self, one: str, other: str) -> LinkPlan:
        """What the lab file says of two sites. Raises LabError where it does not link them."""
        try:
            return self.plan.link(self.site(one).name, self.site(other).name)
        except KeyError:
            hint = "name it in the lab file under [[links]]"
            raise LabError(f"there is no link between {one} and {other}", hint=hint) from None

    def peer_add_arguments(
        self,
        at: str,
        peer: str,
        *,
        identity: str | None = None,
        endpoint: str | None = "as planned",
        allow: Sequence[Network] | None = None,
    ) -> list[str]:
        """The arguments of `vpnctl` that tell site `at` of site `peer`; for showing, and for
        `add_peer`, which takes the same."""
        values = self._peer_values(at, peer, identity=identity, endpoint=endpoint, allow=allow)
        return programs.peer_add_arguments(peer, **values)

    def write_peer(
        self,
        at: str,
        peer: str,
        *,
        identity: str | None = None,
        endpoint: str | None = "as planned",
        allow: Sequence[Network] | None = None,
    ) -> Path:
        """Write the peer's file, with `[external_keys]` as the lab file says; its path."""
        values = self._peer_values(at, peer, identity=identity, endpoint=endpoint, allow=allow)
        said, table = self.link_plan(at, peer).external_keys, ""
        if said is not None:
            far = {source.name: source for source in self.plan.sites[peer].sources}
            table = said.table(far)
        file = self.site(at).config_path.parent / "peers.d" / f"{peer}.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(programs.peer_file(**values, external_keys=table), encoding="utf-8")
        for path, mode in ((file.parent, 0o755), (file, 0o644)):
            path.chmod(mode)  # whatever the umask: vpnd refuses what others can write
        return file

    def _peer_values(
        self,
        at: str,
        peer: str,
        *,
        identity: str | None,
        endpoint: str | None,
        allow: Sequence[Network] | None,
    ) -> Any:
        link = self.link_plan(at, peer)
        other = self.site(peer)
        if endpoint == "as planned":
            endpoint = None
            if peer in link.endpoints:
                endpoint = programs.endpoint(other.address(link.family), other.plan.listen_port)
        return {
            "identity": other.identity if identity is None else identity,
            "endpoint": endpoint,
            "prefixes": other.plan.prefixes(link.tunnel) if allow is None else allow,
            "tunnel": link.tunnel,
            "keepalive": link.keepalive,
        }

    async def add_peer(
        self,
        at: str,
        peer: str,
        *,
        identity: str | None = None,
        endpoint: str | None = "as planned",
        allow: Sequence[Network] | None = None,
    ) -> Any:
        """`vpnctl peer add` at one site; its answer. What is not given is as the lab file says.

        Where the link takes keys from outside, the peer's file and `vpnctl reload` instead: so
        that not even the first key is without them.
        """
        if self.link_plan(at, peer).external_keys is not None:
            self.write_peer(at, peer, identity=identity, endpoint=endpoint, allow=allow)
            return await self.site(at).vpnctl("reload")
        arguments = self.peer_add_arguments(
            at, peer, identity=identity, endpoint=endpoint, allow=allow
        )
        return await self.site(at).vpnctl(*arguments)

    async def link(self, one: str, other: str) -> None:
        """Tell two sites of each other, first `one` of `other`. Returns before a key is there."""
        await self.add_peer(one, other)
        await self.add_peer(other, one)

    def traffic(
        self,
        one: str,
        other: str,
        *,
        family: Literal[4, 6] = 4,
        rate: float = 100,
        size: int = 200,
        silence: float | None = None,
        addresses: tuple[Address, Address] | None = None,
    ) -> AbstractAsyncContextManager[Meter]:
        """Measure traffic in both directions between two nodes: see vpnd_lab.meter.

        `rate` is datagrams a second and `size` their UDP payload in bytes, each way; `silence` the
        seconds from which a silence is a gap; `addresses` are those of the two nodes to send to,
        unless their main ones.
        """
        a, b = self.node(one), self.node(other)
        return open_meter(
            a,
            b,
            addresses=addresses or (a.address(family), b.address(family)),
            rate=rate,
            size=size,
            silence=silence,
        )

    def capture(
        self, node: str, *interfaces: str, protected: Collection[Network] | None = None
    ) -> AbstractAsyncContextManager[Capture]:
        """Count what passes a node's interfaces, all its cables unless named: see vpnd_lab.capture.

        `protected` are the prefixes whose traffic must not be seen between sites; unless given,
        all that lies behind the sites and in their tunnels.
        """
        plans = self.plan.sites.values()
        tunnels = [tunnel for site in plans for tunnel in site.tunnels]
        if protected is None:
            inside = {address.network for tunnel in tunnels for address in tunnel.addresses}
            protected = inside.union(*(site.lan for site in plans))
        return open_capture(
            self.node(node),
            interfaces=interfaces or self.plan.interfaces(node),
            ports=Ports(
                exchange=frozenset(site.listen_port for site in plans),
                wireguard=frozenset(tunnel.listen_port for tunnel in tunnels),
            ),
            protected=protected,
        )

    def daemon_words(self) -> str:
        """The last lines each daemon wrote to stderr, for a person who looks for a fault."""
        parts = []
        for site in self.sites.values():
            with contextlib.suppress(OSError):
                text = site.daemon_log.read_text(encoding="utf-8", errors="replace")
                parts.append(f"stderr of the daemon of {site.name}:\n{last_lines(text, 40)}")
        for name, kme in self.kmes.items():
            if words := kme.handle.last_words():
                parts.append(f"stderr of the key manager {name}:\n{words}")
        return "\n".join(parts)

    def keep(self) -> None:
        """Let the lab stand when this process ends, until `vpnctl lab down`."""
        self._state.owner = None
        self._state.save()


async def _init_and_start(site: Site, failures: list[LabError]) -> None:
    # Every site's failure is told, not only that of the first.
    try:
        await site.init()
        await site.start_daemon()
    except LabError as error:
        failures.append(error)


@contextlib.asynccontextmanager
async def open_lab(
    spec: LabSpec,
    *,
    name: str | None = None,
    start: Start = "network",
    root: Path | None = None,
) -> AsyncIterator[Lab]:
    """Build a lab, and take it away at the end of the block, whatever happens in it.

    `start` says how far: "network" builds nodes and cables only, "daemons" starts a daemon in each
    site, "links" tells them of each other. `name` is the spec's with a random ending unless given:
    labs of the same spec stand side by side. If this process is killed, the next lab's start or
    `vpnctl lab down` takes the rest away.

    Raises LabError where it cannot be built.
    """
    root = (root or lab_root()).resolve()
    name = name or f"{spec.name}-{secrets.token_hex(2)}"
    state = await claim_lab(root, name)
    try:
        lab = await raise_lab(state, spec)
        try:
            await lab.start(start)
            yield lab
        except Exception as error:
            if words := lab.daemon_words():
                error.add_note(words)
            raise
    finally:
        await close_lab(root, state)


async def claim_lab(root: Path, name: str) -> LabState:
    """Take a name for a lab of this process, and what dead ones have left behind away."""
    return await trio.to_thread.run_sync(_claim, root, name)


async def close_lab(root: Path, state: LabState) -> None:
    """Take a lab away, also when cancelled."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(_close, root, state)


async def raise_lab(state: LabState, spec: LabSpec) -> Lab:
    """Build nodes and cables for a claimed lab; the caller takes it down where this fails."""
    plan = make_plan(spec)
    check_host(plan, state.folder)
    await trio.to_thread.run_sync(build, state, plan)
    await start_key_managers(state, plan, spec.kme)
    return Lab(state, plan)


def _claim(root: Path, name: str) -> LabState:
    if os.geteuid() != 0:
        raise LabError("a lab needs root, for its network namespaces", hint="run it with sudo")
    with locked(root):
        remove_abandoned(root)
        return claim(root, name, owner=ProcessId.of(os.getpid()))


def _close(root: Path, state: LabState) -> None:
    # `vpnctl lab down` may have been quicker, and another lab may have the name since.
    with locked(root):
        if (state.folder / STATE_FILE).exists() and LabState.load(state.folder).uid == state.uid:
            take_down(state)
