"""The keys in an answer, whichever of the two interfaces it is of."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Entry:
    """A key in an answer; changing it changes the answer's document."""

    fields: dict[str, Any]
    id_name: str

    @property
    def _is_skip(self) -> bool:
        return self.id_name == "keyId"

    @property
    def key_id(self) -> str:
        """Its ID: a UUID (ETSI), or 128 bits in hexadecimal (SKIP)."""
        return str(self.fields[self.id_name])

    @key_id.setter
    def key_id(self, value: str) -> None:
        self.fields[self.id_name] = skip_id(value) if self._is_skip else value

    @property
    def material(self) -> bytes:
        """The key itself."""
        text = self.fields["key"]
        return bytes.fromhex(text) if self._is_skip else base64.b64decode(text)

    @material.setter
    def material(self, value: bytes) -> None:
        self.fields["key"] = value.hex() if self._is_skip else base64.b64encode(value).decode()


def entries(document: Any) -> Iterator[Entry]:
    """Every key in an answer's document; none where it is another answer."""
    if not isinstance(document, dict):
        return
    if isinstance(document.get("keys"), list):
        for fields in document["keys"]:
            yield Entry(fields, "key_ID")
    elif "keyId" in document:
        yield Entry(document, "keyId")


def skip_id(key_id: str) -> str:
    """A UUID as SKIP's key ID: 128 bits in hexadecimal. Raises ValueError."""
    return uuid.UUID(key_id).hex
