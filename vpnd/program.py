"""The daemon as a program: start, run until told to stop, stop cleanly."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

import trio

from tun import TunError
from vpnd.api import DEFAULT_CONFIG_PATH, ExitCode
from vpnd.atomic_file import make_folder
from vpnd.config import Config, load_config
from vpnd.config_errors import ConfigErrors, ConfigProblem
from vpnd.config_host import notes_on_host
from vpnd.control import ControlServer, ControlSocketError, open_control_socket
from vpnd.early_signals import HARMLESS, hangup_received
from vpnd.event_feed import EventFeed
from vpnd.file_trust import FileFault
from vpnd.guards import guard_at_boot
from vpnd.hardening import protect_memory
from vpnd.journal import Journal, configure_logging
from vpnd.log_writer import LogWriter
from vpnd.node import Node, NoIdentity
from vpnd.node_control import ControlError
from vpnd.place_guards import set_all_guards
from vpnd.sdnotify import notify, watchdog_seconds
from vpnd.start_config import Start, read_start
from vpnd.state_lock import state_locked
from vpnd.transport import Transport

THREADS_GIVE_WAY: Final = 0.0005
"""Seconds."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *HARMLESS)


def main() -> None:
    """Read the command line, and do what it says; leaves with an ExitCode."""
    _fill_standard_descriptors()
    arguments = _arguments()
    configure_logging("info")  # whatever is said from here on holds nobody up
    if arguments.check or arguments.host_notes:
        with _written_output():
            code = _check(arguments.config, as_json=arguments.host_notes)
        sys.exit(code)
    # Guards need no identity: they stand before the first one is made, or with a spoiled one
    start = read_start(arguments.config, with_identities=not arguments.guard_only)
    if arguments.guard_only:
        sys.exit(_set_guards(start))
    if start.config is None:
        _set_guards(start)
        sys.exit(ExitCode.USAGE)
    log = configure_logging(start.config.node.log_level, start.config.node.log_format)
    # A worker thread that computes gives way to the event loop this soon: by default it would hold
    # it up for 5 ms at each system call
    sys.setswitchinterval(THREADS_GIVE_WAY)
    failures: list[BaseException] = []
    gc.freeze()  # modules and configuration stay: see Node.running
    try:
        trio.run(_run, start.config, start, log)
    except* (NoIdentity, ControlSocketError, FileFault, TunError) as group:
        failures = _leaves(group)
    for failure in failures:
        print(f"vpnd: error: {failure}", file=sys.stderr)
        hint = getattr(failure, "hint", "")
        if hint:
            print(f"vpnd: hint: {hint}", file=sys.stderr)
    if failures:
        sys.exit(ExitCode.FAILED)


def _fill_standard_descriptors() -> None:
    """Of those that are closed: else the next file or socket gets the number, and the log with it,
    or what a wireguard-go says."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


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
    doing.add_argument("--host-notes", action="store_true", help=argparse.SUPPRESS)  # for vpnctl
    doing.add_argument(
        "--guard-only",
        action="store_true",
        help="guard all peers, by routes and by fences, and leave; before the network, at boot",
    )
    parser.add_argument("--version", action="version", version=f"vpnd {version('vpnd')}")
    with _written_output():  # --help, --version
        return parser.parse_args()


@contextmanager
def _written_output() -> Iterator[None]:
    """Leave with an error where what is printed within cannot be written: a full disk."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        print(f"vpnd: error: the output cannot be written: {error.strerror}", file=sys.stderr)
        sys.stdout = None  # its end would fail once more
        sys.exit(ExitCode.FAILED)


def _check(path: Path, *, as_json: bool) -> ExitCode:
    try:
        config = load_config(path)
    except ConfigErrors as errors:
        _tell_problems(errors.problems)
        return ExitCode.USAGE
    notes = notes_on_host(config)
    if as_json:  # those of the configuration vpnctl knows itself
        print(json.dumps([note.detail() for note in notes]))
        return ExitCode.DONE
    print(f"{path}: {len(config.peers)} peer(s), no errors")
    for note in (*config.notes, *notes):
        print(f"vpnd: note: {note}")
    return ExitCode.DONE


def _tell_problems(problems: Iterable[ConfigProblem]) -> None:
    for problem in problems:
        print(f"vpnd: error: {problem}", file=sys.stderr)
        if problem.hint:
            print(f"vpnd: hint: {problem.hint}", file=sys.stderr)


def _set_guards(start: Start) -> ExitCode:
    """Set the guard routes of every peer that they can be set for; then tell of the others, and of
    everything that is wrong on disk.

    A namespace that is not there yet is no fault: nothing leaves it, and the daemon sets them in
    it, once it is there, before anything else.
    """
    outcome = trio.run(guard_at_boot, start)
    with suppress(OSError):  # nobody reads: the routes are what counts
        _tell_problems(start.problems)
        for note in start.notes:
            print(f"vpnd: note: {note}", file=sys.stderr)
        for peer, fault in outcome.faults.items():
            print(f"vpnd: error: {peer}: {fault}", file=sys.stderr)
        for peer, reason in outcome.waiting.items():
            print(f"vpnd: note: {peer}: {reason}", file=sys.stderr)
        without = outcome.faults.keys() | outcome.waiting.keys()
        print(f"guard routes of {len(start.guards.keys() - without)} peer(s) stand", flush=True)
    if start.problems:
        return ExitCode.USAGE
    return ExitCode.FAILED if outcome.faults else ExitCode.DONE


async def _run(config: Config, start: Start, log: LogWriter) -> None:
    signals = _Signals()
    with trio.open_signal_receiver(*SIGNALS) as received:
        async with trio.open_nursery() as nursery:
            feed = EventFeed()
            journal = Journal(feed, log)
            nursery.start_soon(signals.take, received, journal)
            with signals.starting:
                for gap in protect_memory():
                    journal.record("memory_not_protected", level="warning", reason=gap)
                with state_locked(config.node.state_dir):
                    # Before anything that may end this start: an identity, a port, a socket
                    await set_all_guards(start.guards, entering=False)
                    await _live(config, start, journal, feed, signals)
            nursery.cancel_scope.cancel()
            journal.record("stopped")


class _Signals:
    """What signals ask for, from the moment in which the event loop runs."""

    def __init__(self) -> None:
        self.starting = trio.CancelScope()
        """All that the daemon does; cancelled by a stop that comes before it serves."""
        self.serving = False
        self.stop = trio.Event()
        self.hangup = trio.Event()

    async def take(self, received: AsyncIterator[int], journal: Journal) -> None:
        """Until cancelled."""
        if hangup_received():
            self.hangup.set()
        async for number in received:
            if number == signal.SIGHUP:
                self.hangup.set()
            elif number in (signal.SIGTERM, signal.SIGINT):
                if not self.stop.is_set():
                    journal.record("stopping", reason=signal.Signals(number).name)
                self.stop.set()
                if not self.serving:
                    self.starting.cancel()
            else:
                journal.record("signal_ignored", reason=signal.Signals(number).name)


async def _live(
    config: Config, start: Start, journal: Journal, feed: EventFeed, signals: _Signals
) -> None:
    _make_runtime_dir(config.node.runtime_dir)
    # The control socket comes first: its lock says that no other daemon works here
    control_socket = open_control_socket(config.node.control_socket)
    try:
        transport = Transport(config.node.listen, journal, mark=_mark(config))
        transport.open()
        try:
            node = Node(config, transport, journal, feed, start)
            async with node.running():
                server = ControlServer(node, control_socket, journal)
                await _serve(node, server, signals, journal, feed)
        finally:
            transport.close()
    finally:
        control_socket.close()


async def _serve(
    node: Node,
    server: ControlServer,
    signals: _Signals,
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
            signals.serving = True
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


async def _until_stopped(signals: _Signals, node: Node, journal: Journal) -> None:
    async with trio.open_nursery() as reloads:
        reloads.start_soon(_reload_when_asked, signals, node, journal)
        await signals.stop.wait()
        reloads.cancel_scope.cancel()


async def _reload_when_asked(signals: _Signals, node: Node, journal: Journal) -> None:
    while True:
        await signals.hangup.wait()
        signals.hangup = trio.Event()
        await _reload(node, journal)


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
