"""TLS with a pre-shared key (RFC 4279), which draft-cisco-skip recommends.

TLS 1.2 alone, with the cipher suites that have the pre-shared key in them: so a connection proves
that the other end has it. With TLS 1.3 a server could answer with a certificate instead, which
nobody would check. Python has it from 3.13 on.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any, Final

from vpnd.file_trust import FileFault
from vpnd.keysource.unit_credentials import read_credential

MIN_PSK: Final = 16
MAX_PSK: Final = 256
"""Bytes."""
CIPHERS: Final = (
    "kECDHEPSK+CHACHA20:kDHEPSK+AESGCM:kDHEPSK+CHACHA20:kECDHEPSK+AES:kDHEPSK+AES:"
    "kPSK+AESGCM:kPSK+CHACHA20:kPSK+AES:!aRSA:!eNULL"
)
"""Those with forward secrecy first."""
_HEX: Final = re.compile(rb"([0-9A-Fa-f]{2})+")


class UnusableContent(FileFault):
    """A file that is there and safe, with something in it that cannot be used (yet)."""


def has_psk() -> bool:
    """Whether this Python can do it."""
    return bool(getattr(ssl, "HAS_PSK", False))


def psk_context(file: Path, identity: str) -> ssl.SSLContext:
    """Raises FileFault; UnusableContent where only what is in the file is wrong."""
    if not has_psk():
        raise FileFault(
            file,
            "cannot be used: this Python has no TLS with a pre-shared key",
            "run vpnd with Python 3.13 or newer; or use certificates, if the provider has them",
        )
    key = _read_psk(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # there are no certificates
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)

    def answer(hint: str | None) -> tuple[str, bytes]:
        return identity, key

    changed: Any = context  # Python 3.11 does not know it
    changed.set_psk_client_callback(answer)
    return context


def _read_psk(file: Path) -> bytes:
    """Hexadecimal digits are the bytes that they mean; any other text is itself."""
    text = read_credential(file, limit=4 * MAX_PSK).strip()
    key = bytes.fromhex(text.decode("ascii")) if _HEX.fullmatch(text) else text
    if not MIN_PSK <= len(key) <= MAX_PSK:
        raise UnusableContent(
            file,
            f"has {len(key)} bytes of pre-shared key; {MIN_PSK} to {MAX_PSK}",
            "hexadecimal digits, or a text that is taken as it is",
        )
    return key
