"""Links as a person reads them: one line, or a table, and notes on what stands in the way."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from cli.errors import printable
from cli.show import NOTHING, duration, size, table, table_lines
from vpnd.api import LinkState, LinkStatus

FALLS_AWAY: Final = (
    "suite", "endpoint", "keys from", "sent", "received", "key age", "handshake", "key id",
)  # fmt: skip
"""Columns that a narrow terminal goes without, first the one that tells least of a link's health;
`vpnctl peer show` has them all."""

_URGENCY: Final = (
    LinkState.CLOSED, LinkState.DOWN, LinkState.EXCHANGING, LinkState.INSTALLED,
    LinkState.DEGRADED, LinkState.ACTIVE,
)  # fmt: skip


def is_over_limit(link: LinkStatus) -> bool:
    """Whether the link has gone without its external keys for longer than it may."""
    fallback = link["external_keys"].get("fallback")
    return fallback is not None and fallback["over_limit"]


def is_protected(link: LinkStatus, *, strict: bool = False) -> bool:
    """True for active, and for degraded unless `strict`; a state that we do not know is neither.

    A fallback over its limit is none, whatever the state.
    """
    if is_over_limit(link):
        return False
    accepted = {LinkState.ACTIVE} if strict else {LinkState.ACTIVE, LinkState.DEGRADED}
    return link["state"] in accepted


def link_line(link: LinkStatus) -> str:
    """One link in one line, for after a command that changed it."""
    text = f"{link['peer']}: {_state(link)}"
    if (shown := _key_ids(link)) != NOTHING:
        text += f", key id {shown}"
    if link["state"] != LinkState.ACTIVE and link["reason"]:
        text += f": {link['reason']}"
    return printable(text)


def link_text(link: LinkStatus) -> str:
    """All there is to say of one link: a narrow terminal gets a line for each thing."""
    notes = "".join(f"{printable(note)}\n" for note in link_notes(link))
    heads, rows = _table([link])
    return table(heads, rows) + (f"\n{notes}" if notes else "")


def link_lines(links: Sequence[LinkStatus]) -> list[str]:
    """One link or more as a table, a line each, with the heads first."""
    heads, rows = _table(links)
    return table_lines(heads, rows, falls_away=FALLS_AWAY)


def trouble_first(links: Iterable[LinkStatus]) -> list[LinkStatus]:
    """What needs an operator's eyes comes first, else in the order they have."""
    return sorted(links, key=_urgency)


def summary(links: Sequence[LinkStatus]) -> str:
    """How many links there are, and in which states: `12 links: 1 down, 11 active`."""
    counts = Counter(link["state"] for link in links)
    parts = [f"{count} {state}" for state, count in sorted(counts.items(), key=_state_urgency)]
    if over := sum(map(is_over_limit, links)):
        parts.append(f"{over} over the limit of a fallback")
    return f"{len(links)} link{'' if len(links) == 1 else 's'}: {', '.join(parts)}"


def _urgency(link: LinkStatus) -> tuple[int, bool]:
    if is_over_limit(link):
        return -1, False
    return _state_urgency((link["state"], 0)), not link["warnings"]


def _state_urgency(counted: tuple[str, int]) -> int:
    state, _ = counted
    return _URGENCY.index(state) if state in _URGENCY else 0  # a state of a later version


def _table(links: Sequence[LinkStatus]) -> tuple[list[str], list[list[str]]]:
    rows = [_row(link) for link in links]
    # A column for key sources only where some link has one: a terminal is 80 columns wide
    heads = [head for head in rows[0] if head != "keys from" or any(row[head] for row in rows)]
    return heads, [[row[head] for head in heads] for row in rows]


def link_notes(link: LinkStatus) -> list[str]:
    """What an operator has to know beyond the table; nothing for a link that is well."""
    peer = link["peer"]
    notes = []
    if link["state"] != LinkState.ACTIVE:
        age = _seconds_since(link["since"])
        how_long = "" if age is None else f" for {duration(age)}"
        notes.append(f"{peer} {link['state']}{how_long}: {link['reason'] or 'no reason given'}")
        if error := link["last_error"]:
            notes.append(f"{peer} last error at {error['at']}: {error['message']}")
    if alive := link.get("keys_alive"):
        until = f"until {_clock(alive['until'])}" if alive["until"] else "up to the next exchange"
        notes.append(
            f"{peer} sessions of {len(alive['key_ids'])} keys may be alive {until}: "
            f"{', '.join(alive['key_ids'])}"
        )
    if fallback := link["external_keys"].get("fallback"):
        over = "over its limit since" if fallback["over_limit"] else "limit at"
        extended = fallback["extended_seconds"]
        more = f", extended by {duration(extended)}" if extended else ""
        notes.append(
            f"{peer} fallback since {fallback['since']}, {over} {fallback['until']}{more}: "
            f"{fallback['reason']}"
        )
    return [*notes, *(f"{peer} warning: {warning}" for warning in link["warnings"])]


def _row(link: LinkStatus) -> dict[str, str]:
    wireguard = link["wireguard"]
    shown = link["key_in_force"] or link["key_installed"]
    handshake = wireguard["last_handshake_seconds"]
    return {
        "peer": link["peer"],
        "state": _state(link),
        "key id": _key_ids(link),
        "key age": duration(shown["age_seconds"] if shown else None),
        "suite": str(link["suite"] or NOTHING),
        "keys from": _keys_from(link),
        "handshake": NOTHING if handshake is None else f"{duration(handshake)} ago",
        "received": size(wireguard["rx_bytes"]),
        "sent": size(wireguard["tx_bytes"]),
        "endpoint": wireguard["endpoint"] or link["endpoint"] or NOTHING,
    }


def _key_ids(link: LinkStatus) -> str:
    """The key in force, or those of which it is one; behind an arrow the newer one that waits for
    WireGuard's next handshake. Both ends show the same mark."""
    force, installed, alive = link["key_in_force"], link["key_installed"], link.get("keys_alive")
    ids = alive["key_ids"] if alive else [force["key_id"]] if force else []
    shown = " or ".join(ids) or NOTHING
    waits = installed is not None and installed["key_id"] not in ids
    return f"{shown} → {installed['key_id']}" if installed and waits else shown


def _keys_from(link: LinkStatus) -> str:
    """The sources in the key in force, each with the age of its key."""
    known = link["external_keys"].get("in_force")
    if known is None:
        return ", ".join(link["external_keys"]["mixed"])
    named = [f"{each['source']} ({duration(each['age_seconds'])})" for each in known]
    return ", ".join(named) or (NOTHING if link["external_keys"]["mode"] != "off" else "")


def external_lines(link: LinkStatus) -> list[tuple[str, str]]:
    """The external keys in the link's keys, by ID: IDs are not secret."""
    external = link["external_keys"]
    lines = []
    for what, key, mixed in (
        ("in force", link["key_in_force"], external.get("in_force", [])),
        ("installed", link["key_installed"], external.get("installed", [])),
    ):
        if key is None:
            continue
        for each in mixed:
            manager = f" of {each['key_manager']}" if each["key_manager"] else ""
            lines.append(
                (
                    f"in key {key['key_id']} ({what})",
                    f"{each['source']}: {each['type']} key {', '.join(each['key_ids'])}{manager}, "
                    f"{each['bits']} bits, {duration(each['age_seconds'])} old",
                )
            )
    return lines


def _state(link: LinkStatus) -> str:
    return f"{link['state']} (adopted)" if link["adopted"] else link["state"]


def _clock(stamp: str) -> str:
    """The time of day of an RFC 3339 stamp: `12:34:56 UTC`."""
    try:
        return f"{datetime.fromisoformat(stamp).astimezone(UTC):%H:%M:%S} UTC"
    except (ValueError, TypeError):
        return stamp


def _seconds_since(stamp: str) -> float | None:
    """Of an RFC 3339 stamp; None where it cannot be read."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
    except (ValueError, TypeError):
        return None
