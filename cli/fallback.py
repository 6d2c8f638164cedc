"""`vpnctl fallback …`: a link that goes on without its external keys, and for how long."""

import re
from typing import Annotated

import typer

from cli.client import Client
from cli.links import link_line
from cli.options import AsJson, Settings, new_app
from cli.peer_names import PeerArgument, asked_about
from cli.show import duration, print_json
from vpnd.api import (
    MAX_FALLBACK_EXTENSION,
    MAX_REASON_LENGTH,
    MIN_FALLBACK_EXTENSION,
    FallbackExtension,
)

app = new_app(
    name="fallback", help="Let a link in `prefer` go on without external keys for longer."
)

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3_600, "d": 86_400}


@app.command()
def extend(
    context: typer.Context,
    peer: PeerArgument,
    lasts: Annotated[
        str,
        typer.Option("--for", metavar="TIME", help="For how much longer: 30min, 2h, 1d."),
    ],
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; it stands in the log.")
    ],
    as_json: AsJson = False,
) -> None:
    """Extend a fallback, once: by so much beyond its limit, or from now on where that is over."""
    from cli.values import Flags

    flags = Flags("vpnctl fallback extend")
    seconds = flags.read("--for", _seconds, lasts)
    why = flags.read("--reason", _reason, reason)
    flags.check()
    request = FallbackExtension(seconds=seconds or 0, reason=why or "")
    client = Client.of(Settings.of(context))
    link = asked_about(client, peer, lambda name: client.extend_fallback(name, request))
    if as_json:
        print_json(link)
        return
    print(link_line(link))
    found = link["external_keys"].get("fallback")
    if found:
        print(
            f"{peer}: the fallback may last until {found['until']}, "
            f"for another {duration(found['seconds_left'])}"
        )


def _seconds(text: str) -> int:
    """A time span: a number and its unit, 60 s to 7 days."""
    from vpnd.config_fields import FieldError

    match = re.fullmatch(r"([0-9]{1,7})\s?(s|min|m|h|d)", text, re.ASCII)
    seconds = int(match[1]) * _UNITS[match[2]] if match else -1
    if not MIN_FALLBACK_EXTENSION <= seconds <= MAX_FALLBACK_EXTENSION:
        raise FieldError(
            f"{text!r} is not a time to extend by",
            f"such as 30min, 2h or 1d; {MIN_FALLBACK_EXTENSION} s to "
            f"{MAX_FALLBACK_EXTENSION // 86_400} days",
        )
    return seconds


def _reason(text: str) -> str:
    """Printable, and not empty."""
    from vpnd.config_fields import FieldError
    from vpnd.config_fields import text as printable_text

    found = printable_text(text).strip()
    if not 0 < len(found) <= MAX_REASON_LENGTH:
        raise FieldError(
            f"has {len(found)} characters", f"1 to {MAX_REASON_LENGTH}: why it is extended"
        )
    return found
