"""Which key source a link uses, and as whom that source knows the far end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from kex.external import MAX_SAE_LENGTH
from vpnd import config_fields as fields
from vpnd.config_errors import kind_of, shown
from vpnd.config_fields import FieldError

MAX_PEER_SAE_BYTES: Final = MAX_SAE_LENGTH
"""What fits into an exchange (docs/protocol.md, section 5.2)."""
_HINT: Final = 'such as [{ source = "kme-a", peer_sae = "sae-ams1" }, { source = "shared" }]'


@dataclass(frozen=True, slots=True)
class SourceUse:
    """A source of [key_sources], and the far end's SAE ID or system ID there; None for a file."""

    source: str
    peer_sae: str | None = None

    def __str__(self) -> str:
        return self.source if self.peer_sae is None else f"{self.source} ({self.peer_sae})"


def read_peer_sae(value: object) -> str:
    """The far end's SAE ID or system ID: printable, not empty, 300 bytes at most."""
    found = fields.text(value)
    if not found:
        raise FieldError("is empty", "the far end's SAE ID, or its system ID")
    if len(found.encode()) > MAX_PEER_SAE_BYTES:
        raise FieldError(
            f"is longer than {MAX_PEER_SAE_BYTES} bytes", "an exchange has no room for more"
        )
    if found.endswith("=") or "vpnd-identity" in found:
        raise FieldError("looks like a key", "an SAE ID or a system ID is a name, and no secret")
    return no_step_of_a_path(found)


def no_step_of_a_path(name: str) -> str:
    """A name that stands in the path of a request, where these two mean another folder, encoded
    as well."""
    if name in (".", ".."):
        raise FieldError("is a step in a path, and no name", "the ID that the key manager has")
    return name


def source_uses(value: object) -> tuple[SourceUse, ...]:
    """`sources`, a list of tables."""
    if not isinstance(value, list):
        raise FieldError(f"must be a list, is {kind_of(value)}", _HINT)
    return tuple(_use(item) for item in value)


def _use(item: object) -> SourceUse:
    if not isinstance(item, dict):
        raise FieldError(f"has an entry that is {kind_of(item)} and no table", _HINT)
    table: dict[str, Any] = item
    for key in table:
        if key not in ("source", "peer_sae"):
            raise FieldError(f"has an entry with an unknown key {shown(key)}", _HINT)
    if "source" not in table:
        raise FieldError("has an entry that names no source", _HINT)
    far = table.get("peer_sae")
    return SourceUse(fields.name(table["source"]), None if far is None else read_peer_sae(far))
