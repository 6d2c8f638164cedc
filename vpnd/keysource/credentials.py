"""What a source shows a key manager, and whom it believes: CA, certificate and key."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from vpnd.file_trust import FileFault, read_public, read_secret
from vpnd.keysource.base import Certificate

MAX_PEM_BYTES: Final = 256 * 1024

_TOO_WEAK: Final = {
    "EE_KEY_TOO_SMALL": "its key is too short for OpenSSL (RSA needs 2,048 bits)",
    "CA_KEY_TOO_SMALL": "the key of its CA is too short for OpenSSL (RSA needs 2,048 bits)",
    "CA_MD_TOO_WEAK": "it is signed with a hash that OpenSSL no longer takes (SHA-1, MD5)",
}


class UnusableContent(FileFault):
    """A file that is there and safe, with something in it that cannot be used (yet)."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files that were read, and the TLS settings that they make."""

    context: ssl.SSLContext
    any_name: ssl.SSLContext
    """The same, but that it takes a certificate whatever the names in it."""
    certificates: tuple[Certificate, ...]
    """This end's first, then those of the CA file."""
    not_before: float
    """Wall clock: from when on this end's certificate is valid."""


def certificate_of(found: x509.Certificate, what: str) -> Certificate:
    """What is told of a certificate."""
    return Certificate(
        what=what,
        subject=found.subject.rfc4514_string() or "(no subject)",
        not_after=found.not_valid_after_utc.timestamp(),
        sha256=found.fingerprint(SHA256()).hex(),
    )


def load_credentials(ca: Path, certificate: Path, key: Path) -> Credentials:
    """Read the files. Raises FileFault; UnusableContent where only what is in them is wrong."""
    authorities = _certificates(ca)
    chain = _certificates(certificate)
    _check_pair(key, certificate, chain[0])
    context = _context(ca, authorities, certificate, key)
    any_name = _context(ca, authorities, certificate, key)
    any_name.check_hostname = False
    return Credentials(
        context=context,
        any_name=any_name,
        certificates=(
            certificate_of(chain[0], "client"),
            *(certificate_of(one, "CA") for one in authorities),
        ),
        not_before=chain[0].not_valid_before_utc.timestamp(),
    )


def _context(
    ca: Path, authorities: list[x509.Certificate], certificate: Path, key: Path
) -> ssl.SSLContext:
    """Raises UnusableContent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # host name and certificate are checked
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # What stands in `ca` is believed as it is: an intermediate, or the server's own certificate
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        # As DER: a PEM file may have text of any encoding beside its blocks
        context.load_verify_locations(
            cadata=b"".join(one.public_bytes(Encoding.DER) for one in authorities)
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UnusableContent(
            ca, f"cannot be used: {_reason(error)}", "PEM, of the CA's certificate"
        ) from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise UnusableContent(
            certificate,
            f"cannot be used: {_reason(error)}",
            "PEM, the certificate of the key first",
        ) from None
    return context


def _check_pair(key: Path, certificate: Path, leaf: x509.Certificate) -> None:
    text = read_secret(key, limit=MAX_PEM_BYTES)
    try:
        private = load_pem_private_key(text, password=None)
    except TypeError:
        raise UnusableContent(
            key, "is encrypted, and the daemon has no password", "openssl pkey -in … -out …"
        ) from None
    except Exception as error:  # UnsupportedAlgorithm, ValueError: whatever the parser makes of it
        raise UnusableContent(
            key, f"holds no private key: {type(error).__name__}", "a PEM file, PRIVATE KEY"
        ) from None
    if private.public_key() != leaf.public_key():
        raise UnusableContent(
            certificate,
            f"does not belong to the key in {key}",
            "replace both; until they fit together, the pair before goes on",
        )


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(_read_public(path))
        for one in found:
            certificate_of(one, "")
    except ValueError:
        raise UnusableContent(
            path, "holds no certificate that can be read", "a PEM file, CERTIFICATE"
        ) from None
    return found


def _read_public(path: Path) -> bytes:
    checked = read_public(path, limit=MAX_PEM_BYTES)
    if checked.fault is not None:
        raise checked.fault
    return checked.data


def _no_password() -> bytes:
    """Instead of a question on a terminal."""
    return b""


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "unknown error"
        return _TOO_WEAK.get(reason, reason.lower().replace("_", " "))
    return type(error).__name__
