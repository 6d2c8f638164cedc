"""The flags of `vpnctl peer add` and `peer set` that make a peer's table [external_keys]."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cli.values import Flags

ExternalMode = Annotated[
    str | None,
    typer.Option(
        "--external-keys",
        metavar="MODE",
        help="off, prefer or require; replaces the whole table [external_keys].",
        autocompletion=lambda: ["off", "prefer", "require"],
    ),
]
SourceNames = Annotated[
    list[str] | None,
    typer.Option(
        "--source", metavar="NAME", help="A source of [key_sources]; repeat it for several."
    ),
]
PeerSae = Annotated[
    list[str] | None,
    typer.Option(
        "--peer-sae",
        metavar="ID",
        help="The far end's SAE ID or system ID there, one for each --source; none for a file.",
    ),
]


@dataclass(frozen=True)
class ExternalFlags:
    """As given; None where not."""

    mode: str | None
    sources: list[str] | None
    peer_saes: list[str] | None


def external_table(flags: "Flags", given: ExternalFlags) -> dict[str, Any] | None:
    """The table, or None where none of the flags was given; what is wrong goes to `flags`."""
    from vpnd import config_fields as fields
    from vpnd.source_use import read_peer_sae

    names = [flags.read("--source", fields.name, name) for name in given.sources or []]
    far = [
        None if text == "none" else flags.read("--peer-sae", read_peer_sae, text)
        for text in given.peer_saes or []
    ]
    if given.mode is None:
        if names or far:
            given_one = "--source" if names else "--peer-sae"
            flags.problem(f"{given_one}: the mode is missing", "--external-keys prefer, or require")
        return None
    mode = flags.read("--external-keys", fields.choice("off", "prefer", "require"), given.mode)
    if mode == "off" and not names:
        return {"mode": "off"}
    if not names:
        flags.problem("--external-keys: the source is missing", "--source NAME")
    if far and len(far) != len(names):
        flags.problem(
            f"--peer-sae: {len(far)} for {len(names)} source(s)",
            "one for each --source, in their order; none for a file",
        )
        return None
    pairs = list(zip(names, far or [None] * len(names), strict=True))
    table: dict[str, Any] = {"mode": mode}
    if len(pairs) == 1:
        return table | _use(*pairs[0])
    return table | {"sources": [_use(*pair) for pair in pairs]}


def _use(source: str | None, peer_sae: str | None) -> dict[str, Any]:
    return {"source": source} | ({} if peer_sae is None else {"peer_sae": peer_sae})
