"""What is believed of a key manager's TLS, and what is said where it cannot be."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.vpnd.keysource.authority import Authority, Issued
from tests.vpnd.keysource.conftest import FAR, OWN_SAE, SPEC_KEYS, MakeServer, QkdConfig, Told
from tests.vpnd.keysource.test_qkd_faults import keys
from vpnd.file_trust import FileFault
from vpnd.keysource.base import SourceError, SourceFault
from vpnd.keysource.credentials import load_credentials
from vpnd.keysource.qkd_source import QkdSource

pytestmark = pytest.mark.slow

Files = dict[str, str]
LOOPBACK = ("127.0.0.1", "kme1.example.net")


async def refusal(source: QkdSource) -> SourceError:
    with pytest.raises(SourceError) as refused:
        await source.obtain(FAR)
    return refused.value


# ---- whom `ca` makes believed

ROOT = Authority("a root CA", key=rsa.generate_private_key(65537, 2048))
INTERMEDIATE = Authority("an intermediate CA", signed_by=ROOT)


@pytest.mark.parametrize("believed", ["the root", "the intermediate", "the certificate itself"])
@pytest.mark.parametrize("chain", ["whole", "leaf alone"])
async def test_a_partial_chain_is_enough(
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    sae_files: Files,
    told: Told,
    believed: str,
    chain: str,
) -> None:
    leaf = INTERMEDIATE.issue("kme1", names=LOOPBACK)
    shown = leaf.certificate + (INTERMEDIATE.pem if chain == "whole" else b"")
    server = make_server(issued=Issued(shown, leaf.key), answers=[keys(SPEC_KEYS[0])])
    await server.start(nursery)
    Path(sae_files["ca"]).write_bytes(
        {
            "the root": ROOT.pem,
            "the intermediate": INTERMEDIATE.pem,
            "the certificate itself": leaf.certificate,
        }[believed]
    )
    source = QkdSource("kme", qkd_config(server), told)
    if (believed, chain) == ("the root", "leaf alone"):
        refused = await refusal(source)
        assert "is not of the CA that `ca` names" in refused.reason
        assert "an intermediate one" in refused.hint
    else:
        assert (await source.obtain(FAR)).present


@pytest.mark.parametrize(
    "text",
    [
        "# Zertifizierungsstelle Köln — 量子\n".encode(),
        "# Köln\n".encode("latin-1"),
        b"\xef\xbb\xbf",
    ],
    ids=["UTF-8", "Latin-1", "byte order mark"],
)
@pytest.mark.parametrize("name", ["ca", "certificate"])
async def test_text_beside_the_blocks_of_a_pem_file(
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    sae_files: Files,
    told: Told,
    name: str,
    text: bytes,
) -> None:
    server = make_server(answers=[keys(SPEC_KEYS[0])])
    await server.start(nursery)
    file = Path(sae_files[name])
    file.write_bytes(text + file.read_bytes() + text)
    assert (await QkdSource("kme", qkd_config(server), told).obtain(FAR)).present


@pytest.mark.parametrize("name", ["ca", "certificate", "key"])
@pytest.mark.parametrize("content", [b"\xc3\xa4", b"", b"-----BEGIN CERTIFICATE-----\n"])
def test_the_file_that_is_wrong_is_blamed(
    qkd_config: QkdConfig, sae_files: Files, name: str, content: bytes
) -> None:
    config = qkd_config(urls=["https://kme1"])
    Path(sae_files[name]).write_bytes(content)
    with pytest.raises(FileFault) as refused:
        load_credentials(config)
    assert refused.value.path == Path(sae_files[name])


# ---- what is wrong with a certificate, in its own words

SHORT = rsa.generate_private_key(65537, 1024)  # noqa: S505 -- that is the point
NO_CA = Authority("not a CA", signed_by=ROOT, may_sign=False)


def lax(context: ssl.SSLContext) -> None:
    """As old and as careless as OpenSSL can be made."""
    context.set_ciphers("ALL:@SECLEVEL=0")


@pytest.mark.parametrize(
    ("issued", "says", "hint"),
    [
        (ROOT.issue("kme1", names=LOOPBACK, key=SHORT), "has a key that is too short", "anew"),
        (ROOT.issue("kme1", names=LOOPBACK, sha1=True), "signed with a hash", "anew"),
        (
            ROOT.issue("kme1", names=LOOPBACK, usage=ExtendedKeyUsageOID.CLIENT_AUTH),
            "is not made for servers",
            "serverAuth",
        ),
        (
            Issued(
                (signed := NO_CA.issue("kme1", names=LOOPBACK)).certificate + NO_CA.pem, signed.key
            ),
            "may not sign others",
            "CA:FALSE",
        ),
        (
            ROOT.issue("kme1", names=LOOPBACK, self_signed=True),
            "is signed by itself, and is not in `ca`",
            "itself into `ca`",
        ),
    ],
    ids=["RSA 1024", "SHA-1", "extended key usage", "CA:FALSE", "self-signed"],
)
async def test_a_certificate_that_openssl_does_not_take(
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    sae_files: Files,
    told: Told,
    issued: Issued,
    says: str,
    hint: str,
) -> None:
    server = make_server(issued=issued, change_context=lax)
    await server.start(nursery)
    Path(sae_files["ca"]).write_bytes(ROOT.pem)
    refused = await refusal(QkdSource("kme", qkd_config(server), told))
    assert refused.fault is SourceFault.CERTIFICATE
    assert f"its certificate {says}" in refused.reason or says in refused.reason
    assert hint in refused.hint
    assert server.received == []


@pytest.mark.parametrize(
    ("issued", "says"),
    [
        (ROOT.issue(OWN_SAE, key=SHORT), "its key is too short"),
        (ROOT.issue(OWN_SAE, sha1=True), "signed with a hash that OpenSSL no longer takes"),
    ],
    ids=["RSA 1024", "SHA-1"],
)
def test_a_weak_certificate_of_this_end(
    qkd_config: QkdConfig, sae_files: Files, issued: Issued, says: str
) -> None:
    config = qkd_config(urls=["https://kme1"])
    issued.write(Path(sae_files["certificate"]), Path(sae_files["key"]))
    with pytest.raises(FileFault) as refused:
        load_credentials(config)
    assert refused.value.path == config.certificate
    assert says in refused.value.reason


# ---- a server that speaks another TLS


def old(context: ssl.SSLContext) -> None:
    lax(context)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1


def psk_alone(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("PSK")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "hint"),
    [(old, "it has TLS 1.1 at most"), (psk_alone, "TLS-PSK (SKIP) alone")],
    ids=["TLS 1.1", "TLS-PSK"],
)
async def test_a_server_without_a_tls_in_common(
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
    change: Callable[[ssl.SSLContext], None],
    hint: str,
) -> None:
    server = make_server(change_context=change)
    await server.start(nursery)
    refused = await refusal(QkdSource("kme", qkd_config(server), told))
    assert refused.fault is SourceFault.TLS
    assert hint in refused.hint
    assert server.received == []


async def test_a_certificate_of_this_end_that_is_not_for_clients(
    authority: Authority,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    sae_files: Files,
    told: Told,
) -> None:
    server = make_server(answers=[keys(SPEC_KEYS[0])])
    server.change_context = lambda context: setattr(
        context, "maximum_version", ssl.TLSVersion.TLSv1_2
    )
    await server.start(nursery)
    issued = authority.issue(OWN_SAE, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    issued.write(Path(sae_files["certificate"]), Path(sae_files["key"]))
    refused = await refusal(QkdSource("kme", qkd_config(server), told))
    assert refused.fault is SourceFault.TLS
    assert "clientAuth" in refused.hint
