"""`vpnctl status`: what the links are doing."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.client import Client, Refused, Wakeups
from cli.configuration import configuration_lines
from cli.errors import DaemonUnreachable, UsageProblem, hint, printable
from cli.links import is_protected, link_lines, link_notes, summary, trouble_first
from cli.node_paths import NodePaths
from cli.options import AsJson, Settings
from cli.peer_names import asked_about, complete_peer
from cli.show import clipped, duration, print_json, print_json_line, terminal_size
from vpnd.api import ErrorCode, ExitCode, LinkStatus, NodeStatus

WATCH_SECONDS: Final = 1.0

HEADING_SHARE: Final = 3
"""The heading has at most one of so many parts of a terminal that is watched, the notes below the
table at most one of so many of what is then left."""

_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"


@dataclass(frozen=True)
class _Look:
    """One look at the daemon: the document as it came, and what of it is shown."""

    document: NodeStatus | LinkStatus
    links: list[LinkStatus]
    """Those in trouble first."""
    heading: tuple[str, ...]
    """About the node; nothing where one link was asked for."""
    sound: bool = True
    """Whether nothing on disk is wrong, and everything that is there runs."""

    def text(self) -> str:
        """All of it, whatever its length."""
        parts = [self.heading, self._table(), self._notes()]
        return "\n".join("".join(f"{line}\n" for line in part) for part in parts if part)

    def page(self, columns: int, lines: int, trouble: str = "") -> list[str]:
        """What fits on a terminal: the heading stays, and what is left out is counted."""
        heading = _first((trouble, *self.heading) if trouble else self.heading, lines, "lines")
        table, notes = self._table(), self._notes()
        left = lines - len(heading) - bool(heading) - 1  # the cursor has a line of its own
        if len(table) + (len(notes) + 1 if notes else 0) > left:
            kept = _first(notes, left, "notes") if notes else []
            rows = max(2, left - len(kept) - bool(kept))
            head, *links = table
            # The heads are part of the table, and so is the line that counts what is left out
            table, notes = [head, *_most(links, rows - 1, "more")], kept
        parts = [[clipped(line, columns) for line in heading], table]
        parts += [[clipped(line, columns) for line in notes]] if notes else []
        shown = [line for part in parts if part for line in ("", *part)]
        return shown[1:][: lines - 1]

    def _table(self) -> list[str]:
        if self.links:
            return link_lines(self.links)
        return ["no peers yet: vpnctl peer add NAME --identity … --endpoint … --allow …"]

    def _notes(self) -> list[str]:
        return [printable(note) for link in self.links for note in link_notes(link)]


def _first(lines: Sequence[str], room: int, what: str) -> list[str]:
    """A share of the room is for these lines."""
    return _most(lines, max(2, room // HEADING_SHARE), f"more {what}")


def _most(lines: Sequence[str], room: int, more: str) -> list[str]:
    """As many lines as there is room for; the last one counts the others."""
    if len(lines) <= room:
        return list(lines)
    kept = lines[: max(0, room - 1)]
    return [*kept, f"… {len(lines) - len(kept)} {more}"]


def status(
    context: typer.Context,
    peer: Annotated[
        str | None,
        typer.Argument(metavar="PEER", help="Only this link.", autocompletion=complete_peer),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it, until Ctrl-C.")] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit 4 unless active; without PEER, unless all are and no file has an error.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Show the links: state, key, traffic.

    With PEER, exits 0 while the link is protected (active or degraded), 4 otherwise, and once a
    fallback is over its limit.
    """
    client = Client.of(Settings.of(context))
    try:
        seen = _look(client, peer)
    except DaemonUnreachable:
        with suppress(UsageProblem):  # no configuration: the socket alone was named
            for line in _kept_links(NodePaths.of(Settings.of(context)).runtime_dir):
                hint(line)
        raise
    if watch:
        return _watch(client, peer, seen, as_json=as_json)
    if as_json:
        print_json(seen.document)
    else:
        sys.stdout.write(seen.text())
    judged = seen.links if peer is not None or strict else []
    well = all(is_protected(link, strict=strict) for link in judged)
    if strict and not seen.sound:
        well = False
    return ExitCode.DONE if well else ExitCode.NOT_PROTECTED


def _look(client: Client, peer: str | None) -> _Look:
    if peer is not None:
        link = asked_about(client, peer, client.link)
        return _Look(document=link, links=[link], heading=())
    node = client.status()
    found = node.get("configuration")
    sound = found is None or not (
        found["state"] == "errors" or found["held"] or found["main_is_last_good"]
    )
    links = trouble_first(node["links"])
    return _Look(document=node, links=links, heading=_heading(node), sound=sound)


def _kept_links(runtime_dir: str) -> list[str]:
    """Until when the links run that a daemon has left behind, as far as its records say."""
    from vpnd.link_record import LinkRecords

    records = LinkRecords(Path(runtime_dir))
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    lines = []
    for name in records.names():
        record = records.load(name)
        left = 0.0 if record is None else record.expires_at - now
        if left > 0:
            lines.append(f"{name}: runs on without the daemon, for {duration(left)} at most")
    return lines


def _heading(node: NodeStatus) -> tuple[str, ...]:
    """What is wrong on disk, who answers, how its links are, and what is wrong with the node."""
    found = node.get("configuration")
    lines = [] if found is None else configuration_lines(found)
    lines.append(f"{node['node']}, vpnd {node['version']}, up {duration(node['uptime_seconds'])}")
    if node["links"]:
        lines.append(summary(node["links"]))
    for tunnel in node["tunnels"]:
        if tunnel["error"]:
            lines.append(f"tunnel {tunnel['tunnel']} has no interface: {tunnel['error']}")
    lines += [f"warning: {warning}" for warning in node["warnings"]]
    return tuple(map(printable, lines))


def _watch(client: Client, peer: str | None, seen: _Look, *, as_json: bool) -> int:
    """Shows until Ctrl-C, over restarts of the daemon; JSON is one document a line."""
    try:
        with Wakeups(client) as wakeups, _resizes() as resized:
            _draw(seen, as_json=as_json)
            while True:
                wakeups.wait(WATCH_SECONDS, also=resized)
                trouble = ""
                try:
                    seen = _look(client, peer)
                except DaemonUnreachable as gone:
                    trouble = str(gone)
                except Refused as refused:
                    if refused.slug != ErrorCode.UNAVAILABLE:
                        raise
                    trouble = str(refused)  # it starts, or stops
                _draw(seen, as_json=as_json, trouble=trouble)
    except KeyboardInterrupt:
        return ExitCode.DONE


@contextmanager
def _resizes() -> Iterator[int]:
    """A descriptor that can be read once the terminal has another size."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGWINCH, before)
        os.close(reader)
        os.close(writer)


def _draw(seen: _Look, *, as_json: bool, trouble: str = "") -> None:
    """One look; in `trouble` it is the last one that there was."""
    size = terminal_size()
    told = trouble and f"{printable(trouble)}; trying again"
    if as_json:
        if not trouble:
            print_json_line(seen.document)
    elif size is None:
        print(told or seen.text(), flush=True)
    else:
        lines = seen.page(*size, trouble=told and f"{told}. Last seen:")
        drawn = "".join(f"{line}{_REST_OF_LINE}\n" for line in lines)
        print(f"{_HOME}{drawn}{_REST_OF_SCREEN}", end="", flush=True)
