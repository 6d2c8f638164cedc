"""Certificates for tests: a CA, and what it signs."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, as PEM."""

    certificate: bytes
    key: bytes

    @property
    def sha256(self) -> str:
        found = x509.load_pem_x509_certificate(self.certificate)
        return found.fingerprint(hashes.SHA256()).hex()

    def write(self, certificate: Path, key: Path) -> None:
        certificate.write_bytes(self.certificate)
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(self.key)


class Authority:
    """A CA that was made just now; of its own making, or `signed_by` another one."""

    def __init__(
        self,
        name: str = "test CA",
        days: float = 365,
        *,
        signed_by: Authority | None = None,
        may_sign: bool = True,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    ) -> None:
        self._key = key or ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        now = datetime.datetime.now(datetime.UTC)
        issuer = signed_by or self
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(issuer._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.BasicConstraints(ca=may_sign, path_length=None), critical=True)
            .sign(issuer._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        common_name: str,
        *,
        names: tuple[str, ...] = (),
        valid_from: float = -1,
        valid_until: float = 90,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
        sha1: bool = False,
        usage: x509.ObjectIdentifier | None = None,
        self_signed: bool = False,
    ) -> Issued:
        """`names` are DNS names or addresses; validity in days from now; `usage`: extended."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(_name(common_name) if self_signed else self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + valid_from * DAY)
            .not_valid_after(now + valid_until * DAY)
        )
        if names:
            alternative = x509.SubjectAlternativeName([_general(name) for name in names])
            builder = builder.add_extension(alternative, critical=False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        certificate = builder.sign(key if self_signed else self._key, hashes.SHA256())
        if sha1:
            certificate = self._signed_with_sha1(certificate)
        return Issued(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    def _signed_with_sha1(self, found: x509.Certificate) -> x509.Certificate:
        """The same with the signature of long ago, which `cryptography` makes no more."""
        assert isinstance(self._key, rsa.RSAPrivateKey)
        with_sha256, with_sha1 = (bytes.fromhex(f"2a864886f70d0101{n}") for n in ("0b", "05"))
        signed = found.tbs_certificate_bytes.replace(with_sha256, with_sha1)
        whole = found.public_bytes(serialization.Encoding.DER).replace(with_sha256, with_sha1)
        signature = self._key.sign(signed, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303
        return x509.load_der_x509_certificate(whole.replace(found.signature, signature))


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
