"""A peer's name on the command line: completed for the shell, and corrected when it is wrong."""

from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, TypeVar

import typer

from cli.client import Client, Refused
from cli.errors import CliError
from cli.options import Settings
from vpnd.api import ErrorCode

Answer = TypeVar("Answer")


def complete_peer(context: typer.Context, incomplete: str) -> list[str]:
    """Names for the shell; none where the daemon cannot be asked."""
    with suppress(CliError):
        names = [peer["name"] for peer in Client.of(Settings.of(context)).peers()]
        return [name for name in names if name.startswith(incomplete)]
    return []


PeerArgument = Annotated[
    str, typer.Argument(metavar="PEER", help="A peer's name.", autocompletion=complete_peer)
]


def asked_about(client: Client, peer: str, ask: Callable[[str], Answer]) -> Answer:
    """`ask(peer)`; where there is no such peer, the error names those that come close."""
    try:
        return ask(peer)
    except Refused as refused:
        if refused.slug != ErrorCode.NO_SUCH_PEER:
            raise
        known = [each["name"] for each in client.peers()]
        missing = type(refused)(f"there is no peer {peer!r}", _instead(peer, known))
        missing.slug = refused.slug
        raise missing from refused


def _instead(peer: str, known: list[str]) -> str:
    from difflib import get_close_matches

    if close := get_close_matches(peer, known, n=3):
        return f"did you mean {' or '.join(close)}?"
    if known:
        return f"the peers here: {', '.join(known[:10])}{' …' if len(known) > 10 else ''}"
    return "there are no peers yet: vpnctl peer add NAME --identity … --allow …"
