"""`vpnctl peer …`: links are added, looked at and taken away while the others run on."""

import sys
import time
from contextlib import suppress
from typing import Annotated, Final

import typer

from cli.client import Client, Wakeups
from cli.errors import DaemonUnreachable, LinkNotProtected, UsageProblem, hint
from cli.external_flags import ExternalFlags, ExternalMode, PeerSae, SourceNames, external_table
from cli.links import external_lines, is_protected, link_line, link_text
from cli.options import AsJson, Settings, new_app
from cli.peer_names import PeerArgument, asked_about
from cli.show import NOTHING, fields, print_json, table
from vpnd.api import SCHEMA, LinkStatus, PeerChange, PeerInfo, PeerRequest

WAIT_STEP_SECONDS: Final = 0.5
"""Events wake earlier; this is for a daemon whose stream cannot be had."""

LocalIdentity = Annotated[
    list[str] | None,
    typer.Option(
        "--local-identity",
        metavar="NAME",
        help="Which of this node's identities the link uses; for a second link to a gateway.",
    ),
]

app = new_app(name="peer", help="Add, list, show, change, remove and rekey the links of this node.")


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the peer here.")],
    identity: Annotated[
        list[str],
        typer.Option(
            "--identity",
            metavar="TEXT",
            help="The peer's fingerprint, vpnd1…; several (repeat it, or commas) in a rotation.",
        ),
    ],
    allow: Annotated[
        list[str],
        typer.Option(
            "--allow",
            metavar="PREFIX",
            help="What the peer may send from and is sent; repeat it, or put commas between.",
        ),
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="HOST:PORT",
            help="Where the peer's key exchange listens; without it the peer comes to us.",
        ),
    ] = None,
    tunnel: Annotated[
        str | None,
        typer.Option(
            "--tunnel", metavar="NAME", help="Which tunnel; needed where a node has several."
        ),
    ] = None,
    keepalive: Annotated[
        str | None,
        typer.Option("--keepalive", metavar="SECONDS", help="25 unless given; 0 for none."),
    ] = None,
    local_identity: LocalIdentity = None,
    wireguard_endpoint: Annotated[
        str | None,
        typer.Option(
            "--wireguard-endpoint",
            metavar="HOST:PORT",
            help="Where the peer's WireGuard is, if a firewall maps ports; else it says so itself.",
        ),
    ] = None,
    wireguard_key: Annotated[
        str | None,
        typer.Option(
            "--wireguard-key",
            metavar="KEY",
            help="The one WireGuard public key that the peer may have; else as it announces.",
        ),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(
            "--wait", metavar="SECONDS", help="Wait so long for the link; exit 4 if it is not up."
        ),
    ] = None,
    external_keys: ExternalMode = None,
    source: SourceNames = None,
    peer_sae: PeerSae = None,
    as_json: AsJson = False,
) -> None:
    """Add a peer and start its link at once.

    The daemon writes the peer's file in peers.d; other links are not touched.
    """
    request, seconds = _read_request(name, identity, allow, endpoint, tunnel, keepalive, wait)
    more = _read_change(
        "vpnctl peer add",
        local_identity=local_identity,
        wireguard_endpoint=wireguard_endpoint,
        wireguard_key=wireguard_key,
        external=ExternalFlags(external_keys, source, peer_sae),
    )
    request.update(more)  # type: ignore[typeddict-item]  # keys that both have
    client = Client.of(Settings.of(context))
    try:
        link = client.add_peer(request)
    except DaemonUnreachable as gone:
        raise DaemonUnreachable(
            str(gone),
            f"{gone.problems[0].hint}; without the daemon, write peers.d/{name}.toml by hand: "
            "it is read at the next start",
        ) from gone
    if seconds is not None:
        link = _wait_until_protected(client, link, seconds)
    if as_json:
        print_json(link)
    else:
        print(link_line(link))
    for warning in link["warnings"]:
        hint(f"{link['peer']}: {warning}")
    if seconds is not None and not is_protected(link):
        raise LinkNotProtected(
            f"{link['peer']} is still {link['state']} after {seconds:g} s: {link['reason']}",
            "has `vpnctl peer add` been run at the far end too? The link goes on trying: "
            f"vpnctl status {link['peer']} --watch",
        )


@app.command("set")
def change(
    context: typer.Context,
    peer: PeerArgument,
    identity: Annotated[
        list[str] | None,
        typer.Option(
            "--identity",
            metavar="TEXT",
            help="All that the peer may use from now on, the first for own exchanges.",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow", metavar="PREFIX", help="All that the peer may send from and is sent."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="HOST:PORT", help="none: the peer comes to us."),
    ] = None,
    tunnel: Annotated[
        str | None,
        typer.Option(
            "--tunnel",
            metavar="NAME",
            help="Move the link to another tunnel; it begins anew there.",
        ),
    ] = None,
    keepalive: Annotated[
        str | None, typer.Option("--keepalive", metavar="SECONDS", help="0 for none.")
    ] = None,
    local_identity: LocalIdentity = None,
    wireguard_endpoint: Annotated[
        str | None,
        typer.Option("--wireguard-endpoint", metavar="HOST:PORT", help="none: as it announces."),
    ] = None,
    wireguard_key: Annotated[
        str | None,
        typer.Option("--wireguard-key", metavar="KEY", help="none: as it announces."),
    ] = None,
    external_keys: ExternalMode = None,
    source: SourceNames = None,
    peer_sae: PeerSae = None,
    as_json: AsJson = False,
) -> None:
    """Change a peer while its link runs; what is not given stays as it is.

    Its file in peers.d is written anew (comments in it are lost); other links are not touched.
    """
    wanted = _read_change(
        "vpnctl peer set",
        identity=identity,
        allow=allow,
        endpoint=endpoint,
        tunnel=tunnel,
        keepalive=keepalive,
        local_identity=local_identity,
        wireguard_endpoint=wireguard_endpoint,
        wireguard_key=wireguard_key,
        external=ExternalFlags(external_keys, source, peer_sae),
    )
    if not wanted:
        raise UsageProblem("nothing to change", "vpnctl peer set --help shows what can be")
    client = Client.of(Settings.of(context))
    link = asked_about(client, peer, lambda name: client.change_peer(name, wanted))
    if as_json:
        print_json(link)
    else:
        print(link_line(link))
    for warning in link["warnings"]:
        hint(f"{link['peer']}: {warning}")


@app.command("list")
def list_peers(context: typer.Context, as_json: AsJson = False) -> None:
    """List the peers as they are configured."""
    peers = Client.of(Settings.of(context)).peers()
    if as_json:
        print_json({"schema": SCHEMA, "peers": peers})
    elif not peers:
        print("no peers yet: vpnctl peer add NAME --identity … --endpoint … --allow …")
    else:
        heads = ("peer", "tunnel", "endpoint", "allowed", "keepalive", "identity")
        sys.stdout.write(table(heads, [_row(peer) for peer in peers]))


@app.command()
def show(context: typer.Context, peer: PeerArgument, as_json: AsJson = False) -> None:
    """Show one peer: its configuration and its link."""
    client = Client.of(Settings.of(context))
    link = asked_about(client, peer, client.link)
    configured = next((each for each in client.peers() if each["name"] == peer), None)
    if as_json:
        print_json({"schema": SCHEMA, "peer": configured, "link": link})
        return
    if configured is not None:
        sys.stdout.write(fields(_configuration(configured)) + "\n")
    sys.stdout.write(link_text(link))
    if lines := external_lines(link):
        sys.stdout.write("\n" + fields(lines))


@app.command()
def remove(context: typer.Context, peer: PeerArgument, as_json: AsJson = False) -> None:
    """Remove a peer: its link, its file, its traffic."""
    client = Client.of(Settings.of(context))
    removed = asked_about(client, peer, client.remove_peer)
    if as_json:
        print_json(removed)
    else:
        print(f"{removed['peer']}: removed")


@app.command()
def rekey(context: typer.Context, peer: PeerArgument, as_json: AsJson = False) -> None:
    """Start an exchange for a new key now.

    Traffic runs on under the old key meanwhile.
    """
    client = Client.of(Settings.of(context))
    started = asked_about(client, peer, client.rekey)
    if as_json:
        print_json(started)
    else:
        print(f"{started['peer']}: an exchange for a new key has begun")


def _read_request(
    name: str,
    identity: list[str],
    allow: list[str],
    endpoint: str | None,
    tunnel: str | None,
    keepalive: str | None,
    wait: str | None,
) -> tuple[PeerRequest, float | None]:
    """The request, and how long to wait for the link; UsageProblem with all that is wrong."""
    from cli.values import Flags, number, wait_seconds
    from vpnd import config_fields as fields

    flags = Flags("vpnctl peer add")
    request = PeerRequest(
        name=flags.read("NAME", fields.name, name) or "",
        identity=[
            each.text() for each in flags.read_list("--identity", fields.fingerprint, identity)
        ],
        allowed_ips=[str(each) for each in flags.read_list("--allow", fields.prefix, allow)],
    )
    if endpoint is not None:
        request["endpoint"] = str(flags.read("--endpoint", fields.endpoint, endpoint))
    if tunnel is not None:
        request["tunnel"] = flags.read("--tunnel", fields.name, tunnel)
    if keepalive is not None:
        parse = number(0, 65_535, "seconds, 0 for none")
        request["keepalive"] = flags.read("--keepalive", parse, keepalive) or 0
    seconds = None if wait is None else flags.read("--wait", wait_seconds, wait)
    flags.check()
    return request, seconds


def _read_change(
    command: str,
    *,
    identity: list[str] | None = None,
    allow: list[str] | None = None,
    endpoint: str | None = None,
    tunnel: str | None = None,
    keepalive: str | None = None,
    local_identity: list[str] | None = None,
    wireguard_endpoint: str | None = None,
    wireguard_key: str | None = None,
    external: ExternalFlags | None = None,
) -> PeerChange:
    """What is to change; UsageProblem with all that is wrong. `none` takes a key out of it."""
    from cli.values import Flags, number
    from vpnd import config_fields as fields

    flags = Flags(command)
    change = PeerChange()
    if identity:
        read = flags.read_list("--identity", fields.fingerprint, identity)
        change["identity"] = [each.text() for each in read]
    if allow:
        change["allowed_ips"] = [
            str(each) for each in flags.read_list("--allow", fields.prefix, allow)
        ]
    if local_identity:
        names = flags.read_list("--local-identity", fields.name, local_identity)
        change["local_identity"] = names or None
    for key, flag, given in (
        ("endpoint", "--endpoint", endpoint),
        ("wireguard_endpoint", "--wireguard-endpoint", wireguard_endpoint),
    ):
        if given is not None:
            found = None if given == "none" else flags.read(flag, fields.endpoint, given)
            change[key] = None if found is None else str(found)  # type: ignore[literal-required]
    if wireguard_key is not None:
        unpinned = wireguard_key == "none"
        change["wireguard_key"] = (
            None if unpinned else flags.read("--wireguard-key", fields.wireguard_key, wireguard_key)
        )
    if tunnel is not None:
        change["tunnel"] = flags.read("--tunnel", fields.name, tunnel) or ""
    if keepalive is not None:
        parse = number(0, 65_535, "seconds, 0 for none")
        change["keepalive"] = flags.read("--keepalive", parse, keepalive)
    table = None if external is None else external_table(flags, external)
    if table is not None:
        change["external_keys"] = table
    flags.check()
    return change


def _wait_until_protected(client: Client, link: LinkStatus, seconds: float) -> LinkStatus:
    """The link as soon as it is protected, else as it is after `seconds`."""
    deadline = time.monotonic() + seconds
    with Wakeups(client) as wakeups:
        while not is_protected(link) and (left := deadline - time.monotonic()) > 0:
            wakeups.wait(min(left, WAIT_STEP_SECONDS))
            with suppress(DaemonUnreachable):  # it may be restarting: the deadline decides
                link = client.link(link["peer"])
    return link


def _row(peer: PeerInfo) -> list[str]:
    return [
        peer["name"],
        peer["tunnel"],
        peer["endpoint"] or "comes to us",
        ", ".join(peer["allowed_ips"]),
        f"{peer['keepalive']} s",
        ", ".join(peer["identities"]),
    ]


def _external(peer: PeerInfo) -> str:
    sources = ", ".join(peer.get("key_sources", []))
    return f"{peer['external_keys']}: {sources}" if sources else peer["external_keys"]


def _configuration(peer: PeerInfo) -> list[tuple[str, str]]:
    protect = peer["protect"]
    return [
        ("peer", peer["name"]),
        ("identity", ", ".join(peer["identities"])),
        ("endpoint", peer["endpoint"] or "none: the peer comes to us"),
        ("WireGuard at", peer.get("wireguard_endpoint") or "as the peer announces"),
        ("WireGuard key", peer.get("wireguard_key") or "as the peer announces"),
        ("own identity", ", ".join(peer.get("local_identity", [])) or "the one in use"),
        ("tunnel", peer["tunnel"]),
        ("allowed", ", ".join(peer["allowed_ips"])),
        ("protected", NOTHING if protect is None else ", ".join(protect) or "nothing"),
        ("keepalive", f"{peer['keepalive']} s"),
        ("renewal every", f"{peer['rekey_interval']} s"),
        ("key lifetime", f"{peer['key_lifetime']} s"),
        ("external keys", _external(peer)),
        ("on stop", peer.get("on_stop", "keep")),
        ("file", peer["file"]),
    ]
