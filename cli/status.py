"""`vpnctl status`: what the links are doing."""

import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.client import Client, Wakeups
from cli.errors import DaemonUnreachable, UsageProblem, hint, printable
from cli.links import is_protected, links_text
from cli.node_paths import NodePaths
from cli.options import AsJson, Settings
from cli.peer_names import asked_about, complete_peer
from cli.show import duration, print_json, print_json_line
from cli.strangers import strangers_text
from vpnd.api import ExitCode, LinkStatus, NodeStatus

WATCH_SECONDS: Final = 1.0

_CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"


@dataclass(frozen=True)
class _Look:
    """One look at the daemon: the document as it came, and what of it is shown."""

    document: NodeStatus | LinkStatus
    links: list[LinkStatus]
    heading: str
    strangers: str = ""

    def text(self) -> str:
        shown = self._links_text()
        return f"{shown}\n{self.strangers}" if self.strangers else shown

    def _links_text(self) -> str:
        if not self.links:
            return (
                f"{self.heading}no peers yet: "
                "vpnctl peer add NAME --identity … --endpoint … --allow …\n"
            )
        return (
            f"{self.heading}\n{links_text(self.links)}"
            if self.heading
            else (links_text(self.links))
        )


def status(
    context: typer.Context,
    peer: Annotated[
        str | None,
        typer.Argument(metavar="PEER", help="Only this link.", autocompletion=complete_peer),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it, until Ctrl-C.")] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit 4 unless active; without PEER, unless all are."),
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
    return ExitCode.DONE if well else ExitCode.NOT_PROTECTED


def _look(client: Client, peer: str | None) -> _Look:
    if peer is not None:
        link = asked_about(client, peer, client.link)
        return _Look(document=link, links=[link], heading="")
    node = client.status()
    return _Look(
        document=node, links=node["links"], heading=_heading(node), strangers=strangers_text(node)
    )


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


def _heading(node: NodeStatus) -> str:
    """Who answers, and what is wrong with the node itself."""
    lines = [f"{node['node']}, vpnd {node['version']}, up {duration(node['uptime_seconds'])}"]
    for tunnel in node["tunnels"]:
        if tunnel["error"]:
            lines.append(f"tunnel {tunnel['tunnel']} has no interface: {tunnel['error']}")
    lines += [f"warning: {warning}" for warning in node["warnings"]]
    return "".join(f"{printable(line)}\n" for line in lines)


def _watch(client: Client, peer: str | None, seen: _Look, *, as_json: bool) -> int:
    """Shows until Ctrl-C, over restarts of the daemon; JSON is one document a line."""
    try:
        with Wakeups(client) as wakeups:
            _draw(seen, as_json=as_json)
            while True:
                wakeups.wait(WATCH_SECONDS)
                try:
                    _draw(_look(client, peer), as_json=as_json)
                except DaemonUnreachable as gone:
                    if not as_json:
                        print(f"{printable(str(gone))}; trying again", flush=True)
    except KeyboardInterrupt:
        return ExitCode.DONE


def _draw(seen: _Look, *, as_json: bool) -> None:
    if as_json:
        print_json_line(seen.document)
        return
    clear = _CLEAR if sys.stdout.isatty() else ""
    print(f"{clear}{seen.text()}", flush=True)
