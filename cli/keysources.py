"""`vpnctl keysource …`: where keys from outside come from, how that is, and whether it works."""

import sys
from contextlib import suppress
from typing import Annotated

import typer

from cli.client import Client, Refused
from cli.errors import CliError, UsageProblem
from cli.errors import hint as tell_hint
from cli.options import AsJson, Settings, new_app
from cli.peer_names import complete_peer
from cli.show import NOTHING, fields, print_json, table
from vpnd.api import SCHEMA, ErrorCode, ExitCode, KeySourceInfo, KeySourceTestRequest

app = new_app(name="keysource", help="List, show and test the key sources of this node.")


def complete_source(context: typer.Context, incomplete: str) -> list[str]:
    """Names for the shell; none where the daemon cannot be asked."""
    with suppress(CliError):
        names = [each["name"] for each in Client.of(Settings.of(context)).key_sources()]
        return [name for name in names if name.startswith(incomplete)]
    return []


SourceArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A key source's name.", autocompletion=complete_source),
]


@app.command("list")
def list_sources(context: typer.Context, as_json: AsJson = False) -> None:
    """List the key sources: whether they can be used, what is in stock, who uses them."""
    sources = Client.of(Settings.of(context)).key_sources()
    if as_json:
        print_json({"schema": SCHEMA, "key_sources": sources})
    elif not sources:
        print("no key sources: [key_sources.NAME] in vpnd.toml makes one")
    else:
        heads = ("source", "type", "state", "stock", "address", "links")
        sys.stdout.write(table(heads, [_row(each) for each in sources]))
        for each in sources:
            for note in _notes(each):
                print(note)


@app.command()
def show(context: typer.Context, name: SourceArgument, as_json: AsJson = False) -> None:
    """Show one key source: stock, certificates, counters, links. Keys are never shown."""
    found = _found(Client.of(Settings.of(context)), name)
    if as_json:
        print_json(found)
        return
    sys.stdout.write(fields(_lines(found)))
    for note in _notes(found):
        print(note)


@app.command("test")
def try_source(
    context: typer.Context,
    name: SourceArgument,
    link: Annotated[
        str | None,
        typer.Option(
            "--link",
            metavar="PEER",
            help="The link that it is tested for; else the first that uses it.",
            autocompletion=complete_peer,
        ),
    ] = None,
    consume_one: Annotated[
        bool,
        typer.Option(
            "--consume-one",
            help="Take a real key: renew the link's key now, with one of this source in it.",
        ),
    ] = False,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Try what a link may do: several keys, sizes, GET and POST; then --consume-one. "
            "Uses up about seven keys.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Try a key source: connection, certificate, status; exit 1 if anything fails.

    Without --consume-one and --deep no key is used up.
    """
    if link is not None:
        from cli.values import Flags
        from vpnd import config_fields

        flags = Flags("vpnctl keysource test")
        link = flags.read("--link", config_fields.name, link)
        flags.check()
    request = KeySourceTestRequest(peer=link, consume_one=consume_one)
    if deep:
        request["deep"] = True
    client = Client.of(Settings.of(context))
    _found(client, name)
    done = client.test_key_source(name, request)
    if as_json:
        print_json(done)
    else:
        hints = set()
        for step in done["steps"]:
            verdict = "ok" if step["done"] else "failed"
            sys.stdout.write(fields([(f"{step['step']}: {verdict}", step["detail"])]))
            if step["hint"] and not step["done"] and step["hint"] not in hints:
                tell_hint(step["hint"])
                hints.add(step["hint"])
        if done["key_id"]:
            print(f"{done['peer']}: key id {done['key_id']}, the same at both ends")
    return ExitCode.DONE if done["done"] else ExitCode.FAILED


def _found(client: Client, name: str) -> KeySourceInfo:
    """One source; where there is none of that name, the error names those that there are."""
    try:
        return client.key_source(name)
    except Refused as refused:
        if refused.slug != ErrorCode.NO_SUCH_SOURCE:
            raise
        known = ", ".join(each["name"] for each in client.key_sources())
        instead = f"the key sources here: {known}" if known else "there are none in vpnd.toml"
        missing = UsageProblem(f"there is no key source {name!r}", instead)
        missing.slug = refused.slug
        raise missing from refused


def _row(source: KeySourceInfo) -> list[str]:
    return [
        source["name"],
        source["type"],
        "usable" if source["available"] else (source["code"] or "not usable"),
        ", ".join(f"{level['stored']} of {level['capacity']}" for level in source["stock"])
        or NOTHING,
        source["address"],
        ", ".join(use["peer"] for use in source["links"]) or NOTHING,
    ]


def _notes(source: KeySourceInfo) -> list[str]:
    notes = []
    if not source["available"]:
        notes.append(f"{source['name']}: {source['reason']}")
        if source["hint"]:
            notes.append(f"{source['name']}: {source['hint']}")
    return [*notes, *(f"{source['name']} warning: {warning}" for warning in source["warnings"])]


def _lines(source: KeySourceInfo) -> list[tuple[str, str]]:
    lines = [
        ("source", source["name"]),
        ("type", source["type"]),
        ("calls itself", source["identity"] or NOTHING),
        ("address", source["address"]),
        ("state", "usable" if source["available"] else source["code"] or "not usable"),
        ("since", source["since"] or NOTHING),
        ("fetched ahead", str(source["prefetched"])),
    ]
    for use in source["links"]:
        far = f", far end {use['peer_sae']}" if use["peer_sae"] else ""
        lines.append(("link", f"{use['peer']} ({use['mode']}){far}"))
    for level in source["stock"]:
        left = level["days_left"]
        lasts = "" if left is None else f", {left:g} days left at the present rate"
        low = ", low" if level["low"] else ""
        text = (
            f"{level['stored']} of {level['capacity']} keys of {level['key_bits']} bits, "
            f"{level['used_per_day']:g} a day{lasts}{low} (at {level['at']})"
        )
        lines.append((f"stock for {level['peer_id']}", text))
    for certificate in source["certificates"]:
        text = f"{certificate['subject']}, until {certificate['not_after']}"
        lines.append((f"certificate, {certificate['what']}", text))
        lines.append(("", f"sha256:{certificate['sha256']}"))
    lines += [(name, str(count)) for name, count in sorted(source["counters"].items())]
    return lines
