"""A key from outside that was mixed into a link's key: names and IDs, which are not secret."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kex.external import ExternalKeyReference


@dataclass(frozen=True, slots=True)
class MixedKey:
    """What is to be shown of one external key. The key itself is not here."""

    source: str
    """As this end's [key_sources] calls it."""
    source_type: str
    manager: str
    """What the initiator's key manager calls itself; empty for a file."""
    key_ids: tuple[str, ...]
    bits: int
    at: float
    """When it was had here, on the boot clock."""

    @classmethod
    def of(cls, source: str, reference: ExternalKeyReference, at: float) -> MixedKey:
        return cls(
            source, reference.source_type, reference.source, reference.key_ids, reference.bits, at
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"key_ids": list(self.key_ids)}

    @classmethod
    def from_json(cls, values: object) -> MixedKey:
        """Raises ValueError, TypeError, KeyError for what is none."""
        if not isinstance(values, dict):
            raise TypeError("no object")
        ids = values["key_ids"]
        if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
            raise TypeError("key_ids")
        source, source_type, manager = (values[n] for n in ("source", "source_type", "manager"))
        if not all(isinstance(text, str) for text in (source, source_type, manager)):
            raise TypeError("names")
        bits, at = int(values["bits"]), float(values["at"])
        return cls(source, source_type, manager, tuple(ids), bits, at)
