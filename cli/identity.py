"""`vpnctl id`: how this node is known to its peers."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.client import Client
from cli.errors import CliError, DaemonUnreachable, UsageProblem
from cli.node_paths import NodePaths
from cli.options import AsJson, Settings
from cli.show import print_json
from vpnd.api import SCHEMA, IdentityInfo


def show_identity(
    context: typer.Context,
    qr: Annotated[bool, typer.Option("--qr", help="As a QR code for the terminal.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print this node's fingerprint: what a peer pins.

    The daemon is asked; without one, the identity file is read.
    """
    if qr and as_json:
        raise UsageProblem("--qr and --json exclude each other", "a QR code is for people's eyes")
    identities = _identities(Settings.of(context))
    if as_json:
        print_json({"schema": SCHEMA, "identities": identities})
        return
    for identity in identities:
        print(identity["text"])
        if qr:
            _print_qr(identity["text"])


def _identities(settings: Settings) -> list[IdentityInfo]:
    try:
        return Client.of(settings).status()["identities"]
    except DaemonUnreachable:
        return _stored(NodePaths.of(settings).state_dir)


def _stored(state_dir: str) -> list[IdentityInfo]:
    """Read from disk; CliError where there is none, or where it cannot be read."""
    from vpnd.identity_store import load_identities

    stored = load_identities(Path(state_dir))
    if stored.faults:
        fault = stored.faults[0]
        raise CliError(f"{fault.path}: {fault.reason}", fault.hint or "vpnctl check tells more")
    if not stored.identities:
        raise CliError(f"there is no identity in {state_dir}", "vpnctl init makes one")
    fingerprints = [identity.fingerprint for identity in stored.identities.values()]
    return [IdentityInfo(suite=each.suite, text=each.text()) for each in fingerprints]


def _print_qr(text: str) -> None:
    import segno

    # In capitals it is a third smaller: QR codes have a mode for them, and Bech32m allows both
    segno.make_qr(text.upper()).terminal(out=sys.stdout, compact=True)
