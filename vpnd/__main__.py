"""`vpnd`: start, run until told to stop, stop cleanly."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

import trio

from tun import NamespaceMissing, TunError, set_guard_routes
from vpnd.api import DEFAULT_CONFIG_PATH, ExitCode
from vpnd.atomic_file import make_folder
from vpnd.config import Config, load_config
from vpnd.config_errors import ConfigErrors
from vpnd.control import ControlServer, ControlSocketError, open_control_socket
from vpnd.event_feed import EventFeed
from vpnd.file_trust import FileFault
from vpnd.guards import guarded_prefixes
from vpnd.hardening import protect_memory
from vpnd.journal import Journal, configure_logging
from vpnd.node import Node, NoIdentity
from vpnd.node_control import ControlError
from vpnd.sdnotify import notify, watchdog_seconds
from vpnd.transport import Transport

THREADS_GIVE_WAY: Final = 0.0005
"""Seconds."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> None:
    """Entry point of the program `vpnd`."""
    arguments = _arguments()
    try:
        # Guards need no identity: they stand before the first one is made, or with a spoiled one
        config = load_config(arguments.config, with_identities=not arguments.guard_only)
    except ConfigErrors as errors:
        for problem in errors.problems:
            print(f"vpnd: error: {problem}", file=sys.stderr)
            if problem.hint:
                print(f"vpnd: hint: {problem.hint}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    if arguments.check:
        print(f"{arguments.config}: {len(config.peers)} peer(s), no errors")
        return
    if arguments.guard_only:
        sys.exit(_set_guards(config))
    configure_logging(config.node.log_level)
    # A worker thread that computes gives way to the event loop this soon: by default it would hold
    # it up for 5 ms at each system call
    sys.setswitchinterval(THREADS_GIVE_WAY)
    failures: list[BaseException] = []
    gc.freeze()  # modules and configuration stay: see Node.running
    try:
        trio.run(_run, config)
    except* (NoIdentity, ControlSocketError, FileFault, TunError) as group:
        failures = _leaves(group)
    for failure in failures:
        print(f"vpnd: error: {failure}", file=sys.stderr)
        hint = getattr(failure, "hint", "")
        if hint:
            print(f"vpnd: hint: {hint}", file=sys.stderr)
    if failures:
        sys.exit(ExitCode.FAILED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vpnd", description="Quantum-safe site-to-site VPN daemon for WireGuard."
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path(DEFAULT_CONFIG_PATH),
        metavar="FILE",
        help=f"configuration (default {DEFAULT_CONFIG_PATH})",
    )
    doing = parser.add_mutually_exclusive_group()
    doing.add_argument("--check", action="store_true", help="check the configuration and leave")
    doing.add_argument(
        "--guard-only",
        action="store_true",
        help="set the guard routes of all peers and leave; before the network, at boot",
    )
    parser.add_argument("--version", action="version", version=f"vpnd {version('vpnd')}")
    return parser.parse_args()


def _set_guards(config: Config) -> ExitCode:
    """Set the guard routes of every peer that they can be set for; tell the others.

    A namespace that is not there yet is no fault: nothing leaves it, and the daemon sets them in
    it, once it is there, before anything else.
    """
    waiting = []

    async def set_all() -> list[str]:
        faults = []
        for peer in config.peers.values():
            tunnel = config.tunnels[peer.tunnel]
            try:
                await set_guard_routes(
                    guarded_prefixes(peer, tunnel),
                    table=tunnel.table,
                    vrf=tunnel.vrf,
                    netns=tunnel.netns,
                )
            except NamespaceMissing as missing:
                waiting.append(f"{peer.name}: {missing}")
            except (TunError, OSError) as error:
                faults.append(f"{peer.name}: {error}")
        return faults

    faults = trio.run(set_all)
    for fault in faults:
        print(f"vpnd: error: {fault}", file=sys.stderr)
    for reason in waiting:
        print(f"vpnd: note: {reason}", file=sys.stderr)
    print(f"guard routes of {len(config.peers) - len(faults) - len(waiting)} peer(s) stand")
    return ExitCode.FAILED if faults else ExitCode.DONE


async def _run(config: Config) -> None:
    with trio.open_signal_receiver(*SIGNALS) as signals:
        feed = EventFeed()
        journal = Journal(feed)
        for gap in protect_memory():
            journal.record("memory_not_protected", level="warning", reason=gap)
        _make_runtime_dir(config.node.runtime_dir)
        # The control socket comes first: its lock says that no other daemon works here
        control_socket = open_control_socket(config.node.control_socket)
        try:
            transport = Transport(config.node.listen, journal, mark=_mark(config))
            transport.open()
            try:
                node = Node(config, transport, journal, feed)
                async with node.running():
                    await _serve(node, ControlServer(node, control_socket), signals, journal, feed)
            finally:
                transport.close()
        finally:
            control_socket.close()
        journal.record("stopped")


async def _serve(
    node: Node,
    server: ControlServer,
    signals: AsyncIterator[int],
    journal: Journal,
    feed: EventFeed,
) -> None:
    """Answer on the control socket, now that there is something to tell, until a signal comes."""
    async with trio.open_nursery() as serving:
        await serving.start(server.run)
        async with trio.open_nursery() as watched:
            watched.start_soon(_feed_watchdog)
            journal.record("started", version=version("vpnd"), links=len(node.links))
            notify("READY=1")
            await _until_stopped(signals, node, journal)
            watched.cancel_scope.cancel()
        notify("STOPPING=1")
        await node.settle()
        feed.close()
        # Requests under way get their time; then the server ends, and with it this nursery
        server.stop()


def _make_runtime_dir(folder: Path) -> None:
    make_folder(folder, mode=0o755, hint="look at node.runtime_dir")


def _mark(config: Config) -> int | None:
    """The fwmark of the tunnels, which the key exchange carries as well; all have the same."""
    return next((tunnel.fwmark for tunnel in config.tunnels.values() if tunnel.fwmark), None)


async def _until_stopped(signals: AsyncIterator[int], node: Node, journal: Journal) -> None:
    async with trio.open_nursery() as reloads:
        async for received in signals:
            if received == signal.SIGHUP:
                reloads.start_soon(_reload, node, journal)
                continue
            journal.record("stopping", reason=signal.Signals(received).name)
            reloads.cancel_scope.cancel()
            return


async def _reload(node: Node, journal: Journal) -> None:
    """On SIGHUP: what is wrong goes to the log, since nobody waits for an answer."""
    try:
        await node.reload(dry_run=False, caller=None)
    except ConfigErrors as errors:
        for problem in errors.problems:
            journal.record("reload_refused", level="error", reason=str(problem), hint=problem.hint)
    except (ControlError, FileFault) as error:
        hint = getattr(error, "hint", "")
        journal.record("reload_refused", level="error", reason=str(error), hint=hint)
    except Exception as error:
        # A bug, met by one reload: the links go on
        journal.record("internal_error", level="error", reason="reload", exc_info=error)


async def _feed_watchdog() -> None:
    """Tell the service manager that the event loop still turns."""
    interval = watchdog_seconds()
    while interval is not None:
        notify("WATCHDOG=1")
        await trio.sleep(interval)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


if __name__ == "__main__":
    main()
