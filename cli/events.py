"""`vpnctl events`: what happens, as it happens, and what has happened."""

from typing import Annotated, Final

import typer

from cli.client import Client
from cli.errors import DaemonUnreachable, printable
from cli.options import Settings
from cli.peer_names import asked_about, complete_peer
from cli.show import print_json_line
from vpnd.api import Event

MOST: Final = 1_000_000
"""Events to ask for; the daemon keeps fewer."""


def events(
    context: typer.Context,
    peer: Annotated[
        str | None,
        typer.Argument(metavar="PEER", help="Only this link's.", autocompletion=complete_peer),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help="What was since: 15min, 2h, 1d ago, or a time."
        ),
    ] = None,
    last: Annotated[
        str | None, typer.Option("--last", metavar="NUMBER", help="The last so many.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="With --since or --last: go on with what comes.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document a line, for programs.")
    ] = False,
) -> None:
    """Follow what happens to the links, from now on, until Ctrl-C; or show what has happened.

    The daemon keeps the last 10,000 events since its start.
    """
    asked = _asked(since, last)
    follow = follow or not asked
    client = Client.of(Settings.of(context))
    if peer is not None:
        asked_about(client, peer, client.link)
        asked["peer"] = peer
    if not follow:
        asked["follow"] = "false"
    try:
        for event in client.events(**asked):
            if peer is not None and event.get("peer", peer) != peer:
                continue
            if as_json:
                print_json_line(event)
            else:
                print(printable(_line(event)), flush=True)
    except KeyboardInterrupt:
        return
    if follow:
        raise DaemonUnreachable(
            "vpnd ended the stream of events", "it may be stopping or restarting"
        )


def _asked(since: str | None, last: str | None) -> dict[str, str]:
    """What of the past is wanted, as the daemon is asked for it. Raises UsageProblem."""
    if since is None and last is None:
        return {}
    from cli.values import Flags, moment, number

    flags = Flags("vpnctl events")
    asked: dict[str, str] = {}
    if since is not None and (at := flags.read("--since", moment, since)) is not None:
        asked["since"] = at
    if last is not None and (count := flags.read("--last", number(1, MOST), last)) is not None:
        asked["last"] = str(count)
    flags.check()
    return asked


def _line(event: Event) -> str:
    parts = [event["at"], event.get("peer") or event.get("tunnel") or "vpnd", event["event"]]
    if state := event.get("state"):
        parts.append(state)
    told = {
        "key id": event.get("key_id"),
        "role": event.get("role"),
        "dropped": event.get("dropped"),
        **event.get("fields", {}),
    }
    parts += [f"{name}={value}" for name, value in told.items() if value not in (None, "")]
    line = "  ".join(parts)
    return f"{line}: {reason}" if (reason := event.get("reason")) else line
