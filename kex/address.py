"""Where a datagram came from or goes to, as the key exchange sees it: opaque but for equality."""

from __future__ import annotations

from typing import NamedTuple


class Address(NamedTuple):
    """A UDP address. `host` is a numeric IPv4 or IPv6 address, with a zone where it has one."""

    host: str
    port: int

    def encoded(self) -> bytes:
        """The bytes that a cookie is bound to."""
        return f"{self.host}|{self.port}".encode()

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
