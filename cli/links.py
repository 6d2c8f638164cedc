"""Links as a person reads them: one line, or a table with what stands in the way below it."""

from collections.abc import Sequence
from datetime import UTC, datetime

from cli.errors import printable
from cli.show import NOTHING, duration, size, table
from vpnd.api import LinkState, LinkStatus


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
    if key := link["key_in_force"] or link["key_installed"]:
        text += f", key id {key['key_id']}"
    if link["state"] != LinkState.ACTIVE and link["reason"]:
        text += f": {link['reason']}"
    return printable(text)


def links_text(links: Sequence[LinkStatus]) -> str:
    """The table of one link or more; below it why one is not active, and every warning."""
    notes = "".join(f"{printable(note)}\n" for link in links for note in link_notes(link))
    rows = [_row(link) for link in links]
    # A column for key sources only where some link has one: a terminal is 80 columns wide
    heads = [head for head in rows[0] if head != "keys from" or any(row[head] for row in rows)]
    drawn = table(heads, [[row[head] for head in heads] for row in rows])
    return drawn + (f"\n{notes}" if notes else "")


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
            if todo := error.get("hint"):
                notes.append(f"{peer} what to do: {todo}")
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
    force, installed, wireguard = link["key_in_force"], link["key_installed"], link["wireguard"]
    shown = force or installed
    key_id = force["key_id"] if force else NOTHING
    if installed and (force is None or installed["key_id"] != force["key_id"]):
        # The newer key waits for WireGuard's next handshake; both ends show the same mark.
        key_id += f" → {installed['key_id']}"
    handshake = wireguard["last_handshake_seconds"]
    return {
        "peer": link["peer"],
        "state": _state(link),
        "key id": key_id,
        "key age": duration(shown["age_seconds"] if shown else None),
        "suite": str(link["suite"]),
        "keys from": _keys_from(link),
        "handshake": NOTHING if handshake is None else f"{duration(handshake)} ago",
        "received": size(wireguard["rx_bytes"]),
        "sent": size(wireguard["tx_bytes"]),
        "endpoint": wireguard["endpoint"] or link["endpoint"] or NOTHING,
    }


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


def _seconds_since(stamp: str) -> float | None:
    """Of an RFC 3339 stamp; None where it cannot be read."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
    except (ValueError, TypeError):
        return None
