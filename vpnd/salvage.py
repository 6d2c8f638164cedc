"""What can still be read out of a file that is wrong: prefixes to be guarded, and little else.

Nothing that is read here is believed enough to start a link by it. It is enough to keep traffic
from leaving in the clear while somebody mends the file.
"""

from __future__ import annotations

import codecs
import os
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final

from vpnd.config_fields import Address, Prefix, fits_name
from vpnd.config_source import MAX_CONFIG_BYTES
from vpnd.odd_characters import wide_encoding, without_mark

MAX_SALVAGED: Final = 4096
"""Prefixes of one file; as many as allowed_ips may have."""

_PREFIX: Final = re.compile(
    r"(?<![0-9A-Za-z.:/])(?P<host>[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)"
    r"\s*/\s*(?P<length>[0-9]{1,3})(?![0-9A-Za-z./])"
)
_KEY: Final = re.compile(r"""\s*["']?(?P<key>[A-Za-z_-]+)["']?\s*[=:]""")
_ENTRY: Final = r"""^\s*["']?{key}["']?\s*=\s*(?P<value>"[^"\n]*"|'[^'\n]*')"""
_ENDPOINT: Final = re.compile(r"\[?(?P<host>[0-9A-Fa-f:.]+)\]?:[0-9]+")
_ESCAPED: Final = re.compile(r"\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})")


@dataclass(frozen=True, slots=True)
class SalvagedPeer:
    """Of a peer's file."""

    tunnel: str | None
    """None where it names none."""
    allowed: tuple[Prefix, ...]
    """In allowed_ips, or in any key that is not `protect`."""
    protect: tuple[Prefix, ...]


def read_leniently(path: Path) -> str:
    """As much of a file's text as there is, whoever owns it and however it is encoded; '' where
    it cannot be read. Not of what is no regular file: a FIFO would hold up the caller."""
    with suppress(OSError, ValueError):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            return decoded_leniently(file.read(MAX_CONFIG_BYTES))
    return ""


def decoded_leniently(data: bytes) -> str:
    """Text in whatever encoding, without characters that only look like nothing."""
    wide = wide_encoding(data)
    if wide is not None:
        big = data.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)) or data[:1] == b"\0"
        text = data.decode(f"{wide}-{'BE' if big else 'LE'}", errors="replace")
        if b"/" in data.replace(b"/\0", b"").replace(b"\0/", b""):
            # Only its mark says so: other text behind a few bytes of garbage
            text += "\n" + data.decode("utf-8", errors="replace")
    else:
        text = data.decode("utf-8", errors="replace")
    text = without_mark(text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        " " if unicodedata.category(character) == "Zs" else character
        for character in text
        if unicodedata.category(character) != "Cf"
    )


def salvage_peer(text: str) -> SalvagedPeer:
    """What a peer's file says of prefixes, valid or not. Raises nothing."""
    values: dict[str, Any] = {}
    with suppress(ValueError, RecursionError):
        values = tomllib.loads(text)
    if values:
        protect = _prefixes(_strings(values.get("protect")))
        others = {key: value for key, value in values.items() if key != "protect"}
        tunnel = values.get("tunnel")
        return SalvagedPeer(
            tunnel=tunnel if isinstance(tunnel, str) and fits_name(tunnel) else None,
            allowed=_prefixes(_strings(others)),
            protect=protect,
        )
    text = _ESCAPED.sub(_unescaped, text)
    tunnel = _entry(text, "tunnel")
    if tunnel is not None and not fits_name(tunnel):
        tunnel = None
    kept: dict[bool, list[str]] = {False: [], True: []}
    key = ""
    for line in text.split("\n"):
        content = _without_comment(line)
        begun = _KEY.match(content)
        if begun is not None and not _PREFIX.match(content.strip()):
            key = begun["key"]
        kept[key == "protect"].append(content)
    return SalvagedPeer(tunnel, _prefixes(kept[False]), _prefixes(kept[True]))


def salvage_endpoints(text: str) -> tuple[Address, ...]:
    """The numeric addresses of the endpoints that a peer's file names."""
    found = []
    for key in ("endpoint", "wireguard_endpoint"):
        match = _ENDPOINT.fullmatch(_entry(text, key) or "")
        if match is not None:
            with suppress(ValueError):
                found.append(ip_address(match["host"]))
    return tuple(found)


def salvage_path(text: str, key: str, default: Path) -> Path:
    """The path that a key of [node] has, in a text that may be no TOML."""
    found = _entry(text, key, "node")
    return default if found is None or not found.startswith("/") or "\0" in found else Path(found)


def salvage_tables(text: str) -> Mapping[str, Mapping[str, Any]]:
    """[tunnels.NAME] as they are written, where the text is TOML; by name."""
    with suppress(ValueError, RecursionError):
        tables = tomllib.loads(text).get("tunnels")
        if isinstance(tables, dict):
            return {name: table for name, table in tables.items() if isinstance(table, dict)}
    return {}


def _entry(text: str, key: str, table: str = "") -> str | None:
    """The string that a key has: as a parser reads it, else on the first line that looks so."""
    with suppress(ValueError, RecursionError):
        values: Any = tomllib.loads(text)
        values = values.get(table, {}) if table else values
        found = values.get(key) if isinstance(values, dict) else None
        return found if isinstance(found, str) else None
    match = re.search(_ENTRY.format(key=re.escape(key)), text, re.MULTILINE)
    if match is not None:
        with suppress(ValueError):
            found = tomllib.loads(f"value = {match['value']}")["value"]
            return found if isinstance(found, str) else None
    return None


def _unescaped(match: re.Match[str]) -> str:
    number = int(match[1] or match[2], 16)
    return chr(number) if number < 0x110000 else ""


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)


def _prefixes(texts: Iterable[str]) -> tuple[Prefix, ...]:
    """Every prefix in the texts but default routes, for which there is no guard; host bits are
    cut off."""
    found: dict[Prefix, None] = {}
    for text in texts:
        for match in _PREFIX.finditer(text):
            with suppress(ValueError):
                prefix = ip_network(f"{match['host']}/{match['length']}", strict=False)
                if prefix.prefixlen > 0 and len(found) < MAX_SALVAGED:
                    found[prefix] = None
    return tuple(found)


def _without_comment(line: str) -> str:
    quote = ""
    for index, character in enumerate(line):
        if character == quote:
            quote = ""
        elif not quote and character in "\"'":
            quote = character
        elif not quote and character == "#":
            return line[:index]
    return line
