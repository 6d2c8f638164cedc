"""What a source shows a key manager, and whom it believes: CA, certificate and key."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from kex.secret import Secret
from vpnd.config_errors import printable
from vpnd.config_key_sources import RemoteSourceConfig, SkipSourceConfig
from vpnd.file_trust import read_public, read_secret
from vpnd.keysource.base import Certificate
from vpnd.keysource.psk import UnusableContent, psk_context
from vpnd.keysource.unit_credentials import read_credential

MAX_PEM_BYTES: Final = 256 * 1024
MAX_HEADER_BYTES: Final = 8 * 1024
"""A token that is signed, with all that it says, has a few hundred."""

_TOO_WEAK: Final = {
    "EE_KEY_TOO_SMALL": "its key is too short for OpenSSL (RSA needs 2,048 bits)",
    "CA_KEY_TOO_SMALL": "the key of its CA is too short for OpenSSL (RSA needs 2,048 bits)",
    "CA_MD_TOO_WEAK": "it is signed with a hash that OpenSSL no longer takes (SHA-1, MD5)",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files that were read, and the TLS settings that they make."""

    context: ssl.SSLContext
    any_name: ssl.SSLContext
    """The same, but that it takes a certificate whatever the names in it."""
    own: Certificate | None
    """This end's."""
    authorities: tuple[Certificate, ...]
    """Those of the CA file."""
    not_before: float
    """Wall clock: from when on this end's certificate is valid."""
    headers: tuple[tuple[str, Secret], ...]
    """What is sent besides."""


def certificate_of(found: x509.Certificate, what: str) -> Certificate:
    """What is told of a certificate."""
    return Certificate(
        what=what,
        subject=printable(found.subject.rfc4514_string(), limit=256) or "(no subject)",
        not_after=found.not_valid_after_utc.timestamp(),
        sha256=found.fingerprint(SHA256()).hex(),
    )


def load_credentials(config: RemoteSourceConfig) -> Credentials:
    """Read the files. Raises FileFault; UnusableContent where only what is in them is wrong."""
    if isinstance(config, SkipSourceConfig) and config.psk is not None:
        context = psk_context(config.psk, config.psk_identity or "")
        return Credentials(context, context, None, (), 0.0, _headers(config))
    if config.ca is None:
        raise ValueError("neither a CA nor a pre-shared key")
    authorities = _certificates(config.ca)
    leaf = None
    if config.certificate is not None and config.key is not None:
        leaf = _certificates(config.certificate)[0]
        _check_pair(config.key, config.certificate, leaf)
    any_name = _context(config, config.ca, authorities)
    any_name.check_hostname = False
    return Credentials(
        context=_context(config, config.ca, authorities),
        any_name=any_name,
        own=None if leaf is None else certificate_of(leaf, "client"),
        authorities=tuple(certificate_of(one, "CA") for one in authorities),
        not_before=0.0 if leaf is None else leaf.not_valid_before_utc.timestamp(),
        headers=_headers(config),
    )


def _headers(config: RemoteSourceConfig) -> tuple[tuple[str, Secret], ...]:
    found = [(name, _header_value(file)) for name, file in config.headers]
    if config.bearer_token is not None:
        token = _header_value(config.bearer_token).expose()
        if b" " in token:
            raise UnusableContent(
                config.bearer_token,
                "holds no bearer token: there is a space in it",
                "the token alone, without the word Bearer",
            )
        found.append(("Authorization", Secret(b"Bearer " + token)))
    return tuple(found)


def _header_value(file: Path) -> Secret:
    """Without white space around it."""
    value = read_credential(file, limit=MAX_HEADER_BYTES).strip()
    if not value or not all(0x20 <= byte < 0x7F for byte in value):
        raise UnusableContent(
            file,
            "holds nothing that can be sent in a header",
            "one line of printable ASCII: the token, or the value of the header",
        )
    return Secret(value)


def _context(
    config: RemoteSourceConfig, ca: Path, authorities: list[x509.Certificate]
) -> ssl.SSLContext:
    """Raises UnusableContent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # host name and certificate are checked
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False  # RFC 9525, section 1.2: alternative names alone
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
    if config.certificate is None:
        return context
    try:
        context.load_cert_chain(config.certificate, config.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise UnusableContent(
            config.certificate,
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
