"""The certificates of a network of key managers: a CA, and right and wrong ones made with it.

Keys are ECDSA on P-256. An application's ID (SAE ID) is the certificate's subject CN, and a DNS
name in it besides where it can be one.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CertificateKind = Literal[
    "good", "expired", "not-yet-valid", "wrong-ca", "wrong-name", "wrong-purpose", "no-names"
]
CERTIFICATE_KINDS: tuple[CertificateKind, ...] = get_args(CertificateKind)

WRONG_NAME = "somebody-else.example"
VALID_DAYS = 90.0
"""More than the 30 from which on vpnd warns."""
_CA_DAYS = 3650.0
_DNS_LABELS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    def write(self, certificate: Path, key: Path) -> None:
        """Write both, each file whole or not at all; the key with mode 0600."""
        write_file(key, self.key, mode=0o600)
        write_file(certificate, self.certificate, mode=0o644)


@dataclass(frozen=True, slots=True)
class _Issuer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, name: str) -> _Issuer:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        usage = _key_usage(signs_certificates=True)
        certificate = (
            _builder(subject, subject, key, *_validity("good", _CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    def write(self, folder: Path, name: str) -> None:
        Credentials(_pem(self.certificate), _private(self.key)).write(
            folder / f"{name}.pem", folder / f"{name}.key"
        )

    @classmethod
    def load(cls, folder: Path, name: str) -> _Issuer:
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{folder / name}.key is not a key of this authority")
        return cls(certificate, key)


class Authority:
    """The CA that a network's key managers and applications trust, and another one that none does.

    Lives in a folder, so that each key manager can make itself a new certificate.
    """

    def __init__(self, folder: Path, trusted: _Issuer, untrusted: _Issuer) -> None:
        self.folder = folder
        self._trusted = trusted
        self._untrusted = untrusted

    @property
    def ca_file(self) -> Path:
        """The certificate of the CA, PEM."""
        return self.folder / "ca.pem"

    @property
    def wrong_ca_file(self) -> Path:
        """The certificate of the CA that signs the wrong ones, PEM."""
        return self.folder / "wrong-ca.pem"

    @classmethod
    def create(cls, folder: Path) -> Authority:
        """Make both CAs in `folder`, which is made, too. Raises OSError."""
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        _Issuer.create("vpnd lab QKD CA").write(folder, "ca")
        # The same name: only the signature tells that it is another one.
        _Issuer.create("vpnd lab QKD CA").write(folder, "wrong-ca")
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """What `create` made. Raises OSError, ValueError."""
        return cls(folder, _Issuer.load(folder, "ca"), _Issuer.load(folder, "wrong-ca"))

    def server(
        self, names: Sequence[str], *, kind: CertificateKind = "good", days: float = VALID_DAYS
    ) -> Credentials:
        """A key manager's certificate for DNS names and IP addresses; the first is its CN, too.

        `days`: how long it is valid from now on.
        """
        wanted = [WRONG_NAME, "203.0.113.99"] if kind == "wrong-name" else list(names)
        return self._issue(wanted, kind, days, ExtendedKeyUsageOID.SERVER_AUTH)

    def client(
        self, sae: str, *, kind: CertificateKind = "good", days: float = VALID_DAYS
    ) -> Credentials:
        """An application's certificate, with its SAE ID as CN. `days`: as for `server`."""
        wanted = [WRONG_NAME if kind == "wrong-name" else sae]
        return self._issue(wanted, kind, days, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self, names: Sequence[str], kind: CertificateKind, days: float, use: x509.ObjectIdentifier
    ) -> Credentials:
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        if kind == "wrong-purpose":
            use = purposes[1 - purposes.index(use)]
        if kind == "no-names":
            names = [f"{names[0]} of the lab"]  # a name with spaces, which no host can have
        issuer = self._untrusted if kind == "wrong-ca" else self._trusted
        key = ec.generate_private_key(ec.SECP256R1())
        identifier = x509.SubjectKeyIdentifier.from_public_key(issuer.key.public_key())
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        builder = (
            _builder(_name(names[0]), issuer.certificate.subject, key, *_validity(kind, days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(authority, critical=False)
        )
        if alternatives := [alternative for name in names if (alternative := _alternative(name))]:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
        return Credentials(_pem(builder.sign(issuer.key, hashes.SHA256())), _private(key))


def write_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file, whole or not at all, that never has another mode than this."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)  # whatever the umask
        file.write(content)
    temporary.replace(path)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(name: str) -> x509.GeneralName | None:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name) if _DNS_LABELS.fullmatch(name) else None


def _validity(kind: CertificateKind, days: float) -> tuple[datetime.datetime, datetime.datetime]:
    now = datetime.datetime.now(datetime.UTC)
    hour, day = datetime.timedelta(hours=1), datetime.timedelta(days=1)
    match kind:
        case "expired":
            return now - 30 * day, now - hour
        case "not-yet-valid":
            return now + day, now + 30 * day
        case _:
            return now - hour, now + days * day


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
