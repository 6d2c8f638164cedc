"""`vpnctl id`: how this node is known to its peers, and how it changes that."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.client import Client
from cli.errors import CliError, DaemonUnreachable, UsageProblem, hint
from cli.node_paths import NodePaths
from cli.options import AsJson, Settings, new_app
from cli.show import NOTHING, print_json, table
from vpnd.api import SCHEMA, IdentityInfo

app = new_app(
    name="id",
    help="Print this node's fingerprints, which peers pin; make, switch and remove identities.",
    invoke_without_command=True,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What it is called here.")]


@app.callback()
def show_identity(
    context: typer.Context,
    identity: Annotated[
        str | None, typer.Option("--identity", metavar="NAME", help="Only this one.")
    ] = None,
    qr: Annotated[bool, typer.Option("--qr", help="As a QR code for the terminal.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print this node's fingerprints, which peers pin: by name, with the suite, the one in use
    first. With --identity the fingerprint alone, for scripts.

    The daemon is asked; without one, and for --identity, the identity files are read.
    """
    if context.invoked_subcommand is not None:
        if identity is not None or qr or as_json:
            raise UsageProblem(
                "options of `vpnctl id` go after the command", "vpnctl id new NAME --json"
            )
        return
    if qr and as_json:
        raise UsageProblem("--qr and --json exclude each other", "a QR code is for people's eyes")
    settings = Settings.of(context)
    identities = _identities(settings) if identity is None else [_named(settings, identity)]
    if as_json:
        print_json({"schema": SCHEMA, "identities": identities})
    elif identity is not None or qr:
        for each in identities:
            print(each["text"])
            if qr:
                _print_qr(each["text"])
    else:
        heads = ("name", "suite", "in use", "fingerprint")
        sys.stdout.write(table(heads, [_row(each) for each in identities]))


def _row(identity: IdentityInfo) -> list[str]:
    return [
        identity.get("name", NOTHING),
        str(identity["suite"]),
        "yes" if identity.get("in_use") else "no",
        identity["text"],
    ]


@app.command()
def new(
    context: typer.Context,
    name: NameArgument,
    suite: Annotated[
        str, typer.Option("--suite", metavar="1|2", help="1 unless given; 2 is CNSA 2.0's level.")
    ] = "1",
    as_json: AsJson = False,
) -> None:
    """Make a further identity, and print its fingerprint.

    The daemon takes it at the next reload; peers may pin it from now on.
    """
    from cli.node_files import make_identity
    from cli.values import Flags, number
    from vpnd import config_fields as fields

    flags = Flags("vpnctl id new")
    flags.read("NAME", fields.name, name)
    number_ = flags.read("--suite", number(1, 2), suite)
    flags.check()
    fingerprint = make_identity(_state_dir(context), name, number_ or 1)
    _tell(IdentityInfo(suite=fingerprint.suite, text=fingerprint.text(), name=name), as_json)
    hint("the daemon takes it at `vpnctl reload`; then peers may pin it beside the one in use")


@app.command()
def use(context: typer.Context, name: NameArgument, as_json: AsJson = False) -> None:
    """Let an identity come first: own exchanges use it, from the next reload on.

    Every peer has to pin it before.
    """
    from vpnd.file_trust import FileFault
    from vpnd.identity_store import use_identity

    try:
        use_identity(_state_dir(context), name)
    except FileFault as fault:
        raise CliError(f"{fault.path}: {fault.reason}", fault.hint or _ELSEWHERE) from None
    _tell(_named(Settings.of(context), name), as_json)
    hint("the daemon takes it at `vpnctl reload`")


@app.command()
def remove(context: typer.Context, name: NameArgument, as_json: AsJson = False) -> None:
    """Remove an identity for good; not the one in use.

    No peer may pin it alone any more.
    """
    from vpnd.file_trust import FileFault
    from vpnd.identity_store import remove_identity

    removed = _named(Settings.of(context), name)
    try:
        remove_identity(_state_dir(context), name)
    except FileFault as fault:
        raise CliError(f"{fault.path}: {fault.reason}", fault.hint or _ELSEWHERE) from None
    _tell(removed, as_json)
    hint("the daemon forgets it at `vpnctl reload`")


_ELSEWHERE = "run it as root, or as the daemon's own user"


def _tell(identity: IdentityInfo, as_json: bool) -> None:
    if as_json:
        print_json({"schema": SCHEMA, "identity": identity})
    else:
        print(identity["text"])


def _state_dir(context: typer.Context) -> Path:
    return Path(NodePaths.of(Settings.of(context)).state_dir)


def _identities(settings: Settings) -> list[IdentityInfo]:
    try:
        found = Client.of(settings).status()["identities"]
        # A daemon of an earlier version says it by the order alone
        return [IdentityInfo(**{"in_use": index == 0, **each}) for index, each in enumerate(found)]
    except DaemonUnreachable:
        return _stored(NodePaths.of(settings))


def _named(settings: Settings, name: str) -> IdentityInfo:
    stored = _stored(NodePaths.of(settings))
    for identity in stored:
        if identity.get("name") == name:
            return identity
    names = ", ".join(identity.get("name", "") for identity in stored)
    raise CliError(f"there is no identity {name!r}", f"there are: {names}; vpnctl id new makes one")


def _stored(paths: NodePaths) -> list[IdentityInfo]:
    """Read from disk, the one in use first; CliError where there is none, or where it cannot be
    read."""
    from vpnd.identity_store import load_identities

    state_dir = paths.state_dir
    stored = load_identities(Path(state_dir))
    if stored.faults:
        fault = stored.faults[0]
        raise CliError(f"{fault.path}: {fault.reason}", fault.hint or "vpnctl check tells more")
    if not stored.identities:
        doubt = paths.state_doubt
        raise CliError(f"there is no identity in {state_dir}", doubt or "vpnctl init makes one")
    return [
        IdentityInfo(
            suite=each.fingerprint.suite,
            text=each.fingerprint.text(),
            name=name,
            in_use=index == 0,
        )
        for index, (name, each) in enumerate(stored.identities.items())
    ]


def _print_qr(text: str) -> None:
    import segno

    # In capitals it is a third smaller: QR codes have a mode for them, and Bech32m allows both
    segno.make_qr(text.upper()).terminal(out=sys.stdout, compact=True)
