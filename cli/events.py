"""`vpnctl events`: what happens, as it happens."""

from typing import Annotated

import typer

from cli.client import Client
from cli.errors import DaemonUnreachable, printable
from cli.options import Settings
from cli.peer_names import asked_about, complete_peer
from cli.show import print_json_line
from vpnd.api import Event


def events(
    context: typer.Context,
    peer: Annotated[
        str | None,
        typer.Argument(metavar="PEER", help="Only this link's.", autocompletion=complete_peer),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document a line, for programs.")
    ] = False,
) -> None:
    """Follow what happens to the links, from now on, until Ctrl-C."""
    client = Client.of(Settings.of(context))
    if peer is not None:
        asked_about(client, peer, client.link)
    try:
        for event in client.events():
            if peer is not None and event.get("peer", peer) != peer:
                continue
            if as_json:
                print_json_line(event)
            else:
                print(printable(_line(event)), flush=True)
    except KeyboardInterrupt:
        return
    raise DaemonUnreachable("vpnd ended the stream of events", "it may be stopping or restarting")


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
