"""A changed configuration taken by the running daemon: what changed, and nothing else.

    read and checked ──▶ plan ──▶ guards set ──▶ what is gone ──▶ links changed ──▶ new ones
                                                              ──▶ guards taken away

Guard routes are set before anything and taken away after everything: there is no moment in which
a prefix that is still wanted could leave in the clear. A link that is the same in both
configurations is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from kex.identity import Identity
from vpnd.api import SCHEMA, ConfigChange, ErrorCode, ErrorDetail, ReloadResult
from vpnd.config import NOTHING_BEFORE, Before, Config, HeldPeer, complete_peer, load_config
from vpnd.config_diff import described, diff, needs_restart
from vpnd.config_errors import ConfigErrors
from vpnd.config_model import PeerConfig, PeerSettings, validate
from vpnd.config_source import MAX_CONFIG_BYTES, Source, read_document
from vpnd.file_trust import FileFault, read_public
from vpnd.identity_store import load_identities
from vpnd.journal import Journal
from vpnd.node_control import Caller, ControlError, not_guarded, not_taken
from vpnd.peer_file import restore_peer_file, write_peer_file
from vpnd.tunnels import BackendErrors

if TYPE_CHECKING:
    from vpnd.link import ManagedLink
    from vpnd.node import Node
    from vpnd.tunnels import ManagedTunnel


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step from one configuration to another asks for."""

    old: Config
    new: Config
    identities: Mapping[str, Identity]
    removed: tuple[str, ...]
    """Peers whose links end; those that go to another tunnel are in `added` as well."""
    added: tuple[str, ...]
    changed: tuple[str, ...]
    """Peers whose links go on."""


def make_plan(old: Config, new: Config, identities: Mapping[str, Identity]) -> Plan:
    """The plan of a step that needs no restart."""
    peers = diff(old, new).peers
    moved = [name for name, keys in peers.changed.items() if "tunnel" in keys]
    return Plan(
        old=old,
        new=new,
        identities=identities,
        removed=(*peers.removed, *moved),
        added=(*peers.added, *moved),
        changed=tuple(name for name in peers.changed if name not in moved),
    )


async def reload(
    node: Node, journal: Journal, *, dry_run: bool, caller: Caller | None, remove_all: bool = False
) -> ReloadResult:
    """Read the configuration anew and take it. Raises ConfigErrors, ControlError, and has changed
    nothing then."""
    old = node.config
    before = Before(frozenset([*old.peers, *old.held]), old.folder)
    new = await trio.to_thread.run_sync(
        partial(load_config, old.path, before=NOTHING_BEFORE if remove_all else before)
    )
    restart = needs_restart(old, new)
    result = ReloadResult(
        schema=SCHEMA,
        dry_run=dry_run,
        changes=described(old, new),
        restart=list(restart),
        problems=[],
    )
    if dry_run:
        return result
    if restart:
        raise _needs_restart(restart)
    identities = await trio.to_thread.run_sync(_identities_of, new)
    result["problems"] = await apply(node, make_plan(old, new, identities))
    for tunnel in node.tunnels.values():
        tunnel.look_up_mtu()
    # A configuration that was read has no errors: whoever was held runs now, or was taken out
    for held in old.held.values():
        await node.guards.release(held.name, held.guards)
    await node.keep_last_good()
    journal.record(
        "reloaded",
        uid=None if caller is None else caller.uid,
        by="SIGHUP" if caller is None else "vpnctl",
        changes=summary(result["changes"]),
        level="warning" if result["problems"] else "info",
        reason="; ".join(result["problems"]),
    )
    return result


def summary(changes: list[ConfigChange]) -> str:
    """The changes in one line."""
    parts = []
    for change in changes:
        keys = ", ".join(each["key"] for each in change["keys"])
        part = f"{change['what']} {change['name']} {change['change']}"
        parts.append(f"{part} ({keys})" if keys else part)
    return "; ".join(parts) or "nothing"


def _needs_restart(keys: tuple[str, ...]) -> ControlError:
    named = ", ".join(keys)
    return ControlError(
        ErrorCode.CONFLICT,
        f"restart vpnd for {named}: a running daemon cannot change that; nothing was changed",
        "systemctl restart vpnd takes no tunnel down; or take the change back, and reload the rest",
        [ErrorDetail(key=key, reason="needs a restart of vpnd") for key in keys],
    )


def _identities_of(config: Config) -> Mapping[str, Identity]:
    """The identities that belong to a configuration that was just read. Raises ControlError."""
    stored = load_identities(config.node.state_dir)
    found = {name: identity.fingerprint for name, identity in stored.identities.items()}
    if list(found.items()) != list(config.identities.items()):
        raise ControlError(
            ErrorCode.CONFLICT, "the identities were changed while they were read", "reload again"
        )
    if not found:
        raise ControlError(
            ErrorCode.CONFLICT,
            f"there is no identity in {config.node.state_dir} any more; nothing was changed",
            "restore it from a backup, or `vpnctl init`",
        )
    return stored.identities


async def change_peer(node: Node, name: str, change: Mapping[str, Any]) -> list[str]:
    """Change some keys of a peer's file, and its link; the keys that differ now.

    Raises ConfigErrors, ControlError, FileFault, and has changed nothing then.
    """
    old = node.config
    peer = old.peers[name]
    document = read_document(peer.file)
    if document.problems:
        raise ConfigErrors(document.problems)
    before = validate(PeerSettings, document.values, document.source)
    if complete_peer(name, peer.file, before, old.defaults, tuple(old.tunnels), Source(None)) != (
        peer
    ):
        raise ControlError(
            ErrorCode.CONFLICT,
            f"{peer.file} was changed since the daemon has read it",
            "`vpnctl reload` first",
        )
    values = {key: value for key, value in document.values.items() if key not in change}
    values |= {key: value for key, value in change.items() if value is not None}
    settings = validate(PeerSettings, values, Source(None))
    new = old.with_changed_peer(name, settings)
    changed = diff(old, new).peers.changed.get(name, ())
    if not changed and settings == before:
        return []
    kept = await trio.to_thread.run_sync(partial(read_public, peer.file, limit=MAX_CONFIG_BYTES))
    # In a thread, as all that waits for a disk; once begun it is finished
    await trio.to_thread.run_sync(
        partial(write_peer_file, peer.file.parent, name, settings, replace=True)
    )
    try:
        problems = await apply(node, make_plan(old, new, node.identities))
    except BaseException:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(restore_peer_file, peer.file, kept.data)
        raise
    await node.adopt(new, peer.file)
    if problems:
        raise ControlError(
            ErrorCode.BACKEND_FAILED,
            f"changed, but: {'; '.join(problems)}",
            "it is tried again by itself; `vpnctl status` shows how the link is",
        )
    return list(changed) or list(change)


async def repaired_settings(
    held: HeldPeer, change: Mapping[str, Any]
) -> tuple[PeerSettings, bytes]:
    """What the file of a peer that is held says with a change, and what it holds now.

    Raises ConfigErrors where it cannot be read, or is wrong with the change, too; FileFault where
    there is none.
    """
    document = await trio.to_thread.run_sync(read_document, held.file)
    if document.problems:
        raise ConfigErrors(document.problems)
    values = {key: value for key, value in document.values.items() if key not in change}
    values |= {key: value for key, value in change.items() if value is not None}
    return validate(PeerSettings, values, Source(None)), await trio.Path(held.file).read_bytes()


async def apply(node: Node, plan: Plan) -> list[str]:
    """Take a configuration; what did not succeed at once, and is tried again.

    Raises ControlError where nothing could be begun, and has changed nothing then.
    """
    node.require_running()
    problems: list[str] = []
    with trio.CancelScope(shield=True):  # the one who asked may go away in between
        await _apply(node, plan, problems)
    return problems


async def _apply(node: Node, plan: Plan, problems: list[str]) -> None:
    new_tunnels = [name for name in plan.new.tunnels if name not in plan.old.tunnels]
    for name in new_tunnels:
        node.make_tunnel(plan.new.tunnels[name])
    try:
        _try_out(node, plan)
        await _guard(node, plan)
    except ControlError:
        for name in new_tunnels:
            del node.tunnels[name]
        raise
    gone = await _change(node, plan, new_tunnels, problems)
    problems += await _bring_up_to_date(node, plan)
    for peer, tunnel in gone:
        await node.guards.unguard(peer, tunnel)


def _try_out(node: Node, plan: Plan) -> None:
    """What the key exchange would not take has to be known before anything is changed."""
    for name in plan.changed:
        peer = plan.new.peers[name]
        try:
            node.links[name].exchanges.config_with(peer, plan.new.locals_of(peer))
        except ValueError as error:
            raise not_taken(error) from error


async def _guard(node: Node, plan: Plan) -> None:
    """Set every guard route that the new configuration needs. Raises ControlError."""
    node.guards.expect(plan.new.peers[name] for name in (*plan.changed, *plan.added))
    for name in (*plan.changed, *plan.added):
        peer = plan.new.peers[name]
        fault = await node.guards.guard(peer)
        if fault:
            for each in (plan.new.peers[one] for one in (*plan.changed, *plan.added)):
                await node.guards.unguard(each, node.tunnels[each.tunnel])
            raise not_guarded(name, fault)


async def _change(
    node: Node, plan: Plan, new_tunnels: list[str], problems: list[str]
) -> list[tuple[PeerConfig, ManagedTunnel]]:
    """End, change and begin links; what they were, whose guards may be too many now."""
    gone = []
    for name in plan.removed:
        link = await node.drop_link(name)
        gone.append((link.peer, link.tunnel))
    for name in plan.old.tunnels:
        if name not in plan.new.tunnels:
            try:
                await node.delete_tunnel(name)
            except (*BackendErrors, FileFault) as error:
                problems.append(f"tunnel {name}: {error}")
    for name, tunnel in node.tunnels.items():
        tunnel.config = plan.new.tunnels[name]
    for name in plan.changed:
        gone.append((node.links[name].peer, node.links[name].tunnel))
    node.sources.reconfigure(plan.new.key_sources)
    node.update_links(plan.new, plan.identities)
    node.config = plan.new
    for name in plan.added:
        node.start_link(plan.new.peers[name])
    for name in new_tunnels:
        await node.open_tunnel(name)
    return gone


async def _bring_up_to_date(node: Node, plan: Plan) -> list[str]:
    """Take what changed of the links to the interfaces."""

    def loses_some(link: ManagedLink) -> bool:
        return not set(plan.old.peers[link.name].allowed_ips) <= set(link.peer.allowed_ips)

    problems = []
    links = [node.links[name] for name in plan.changed]
    # Given before it is taken: WireGuard moves a prefix from one peer to another in one step
    for link in sorted(links, key=loses_some):
        fault = await link.bring_up_to_date()
        if fault:
            problems.append(f"{link.name}: {fault}")
    for name in {link.tunnel.name for link in links}:
        await node.tunnels[name].set_routes()
    return problems
