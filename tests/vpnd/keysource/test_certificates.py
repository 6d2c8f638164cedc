"""Who a source believes, whom it shows itself to, and what happens when files change on disk."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

import pytest
import trio

from tests.vpnd.keysource.authority import Authority
from tests.vpnd.keysource.conftest import (
    FAR,
    OWN_SAE,
    SPEC_KEYS,
    MakeServer,
    QkdConfig,
    Told,
)
from tests.vpnd.keysource.test_qkd_faults import keys
from tests.vpnd.keysource.tls_server import TlsServer
from vpnd.keysource.base import SourceError, SourceFault
from vpnd.keysource.certificate_watch import CertificateWatch
from vpnd.keysource.health import Health
from vpnd.keysource.key_manager import KeyManager
from vpnd.keysource.qkd_source import QkdSource

pytestmark = pytest.mark.slow

Files = dict[str, str]


async def refusal(source: QkdSource) -> SourceError:
    with pytest.raises(SourceError) as refused:
        await source.obtain(FAR)
    return refused.value


@pytest.mark.parametrize(
    ("valid", "names", "says"),
    [
        ((-10, -1), ("127.0.0.1",), "has expired"),
        ((1, 10), ("127.0.0.1",), "is not valid yet"),
        ((-1, 10), ("kme2.example.net",), "is for another"),
        ((-1, 10), (), "is for another"),
    ],
    ids=["expired", "not yet valid", "wrong name", "no name"],
)
async def test_a_certificate_of_the_kme_that_cannot_be_used(
    authority: Authority,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
    valid: tuple[float, float],
    names: tuple[str, ...],
    says: str,
) -> None:
    issued = authority.issue("kme2", names=names, valid_from=valid[0], valid_until=valid[1])
    server = make_server(issued=issued, answers=[keys(SPEC_KEYS[0])])
    await server.start(nursery)
    refused = await refusal(QkdSource("kme", qkd_config(server), told))
    assert refused.fault is SourceFault.CERTIFICATE
    assert f"its certificate {says}" in refused.reason
    assert refused.hint
    assert server.received == []


@pytest.mark.parametrize(
    ("host", "common_name", "names", "server_name"),
    [
        ("localhost", "localhost", (), None),
        ("localhost", "localhost", ("127.0.0.1",), None),
        ("127.0.0.1", "127.0.0.1", (), None),
        ("127.0.0.1", "kme1.example.net", (), "kme1.example.net"),
    ],
    ids=["name", "name beside an address", "address", "server_name"],
)
async def test_a_common_name_is_no_name_of_a_kme(
    authority: Authority,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
    host: str,
    common_name: str,
    names: tuple[str, ...],
    server_name: str | None,
) -> None:
    """RFC 9525: a subject alternative name is, and nothing else."""
    changed = {} if server_name is None else {"server_name": server_name}
    for issued, accepted in (
        (authority.issue(common_name, names=names), False),
        (authority.issue("anything", names=(server_name or host,)), True),
    ):
        server = make_server(issued=issued, answers=[keys(SPEC_KEYS[0])])
        await server.start(nursery)
        url = server.url.replace("127.0.0.1", host)
        source = QkdSource("kme", qkd_config(urls=[url], **changed), told)
        if accepted:
            await source.obtain(FAR)
            continue
        refused = await refusal(source)
        assert refused.fault is SourceFault.CERTIFICATE
        alone = not names
        assert ("but the common name" in refused.reason) == alone
        assert ("check_name" in refused.hint) == alone
        assert server.received == []


async def test_what_a_certificate_says_acts_on_no_terminal(
    authority: Authority,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
) -> None:
    issued = authority.issue("kme\x1b[2J\r\nkme9", names=("127.0.0.1",))
    server = make_server(issued=issued, answers=[keys(SPEC_KEYS[0])])
    await server.start(nursery)
    source = QkdSource("kme", qkd_config(server, kme_name="kme9"), told)
    refused = await refusal(source)
    assert "kme\\x1b[2J\\r\\nkme9" in refused.reason
    told_of = source.status().certificates
    assert all(one.subject.isprintable() for one in told_of)
    assert any("kme9" in one.subject for one in told_of)


async def test_a_kme_of_another_ca(
    authority: Authority,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
) -> None:
    issued = Authority("another CA").issue("kme1", names=("127.0.0.1",))
    server = make_server(issued=issued, answers=[keys(SPEC_KEYS[0])])
    await server.start(nursery)
    refused = await refusal(QkdSource("kme", qkd_config(server), told))
    assert refused.fault is SourceFault.CERTIFICATE
    assert "is not of the CA that `ca` names" in refused.reason
    assert server.received == []


async def test_a_kme_that_does_not_know_our_ca(
    make_server: MakeServer, nursery: trio.Nursery, qkd_config: QkdConfig, told: Told
) -> None:
    """TLS 1.3 tells of it after we have asked: no key is lost by that, and it is said."""
    server = make_server(client_authority=Authority("another CA"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            # trio's server would close without the alert, which ordinary ones send
            connection, _ = listener.accept()
            with pytest.raises(ssl.SSLError), connection:
                server.context().wrap_socket(connection, server_side=True)

        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        source = QkdSource("kme", qkd_config(urls=[url]), told)
        async with trio.open_nursery() as threads:
            threads.start_soon(trio.to_thread.run_sync, refuse)
            refused = await refusal(source)
    assert refused.fault is SourceFault.TLS
    # Which of the two depends on who is quicker
    assert (
        "the TLS connection was refused: tlsv1 alert unknown ca" in refused.reason
        or "the connection broke off before the request was sent" in refused.reason
    )
    assert "maybe_lost" not in source.status().counters


async def test_a_kme_that_closes_before_it_answers(
    make_server: MakeServer, nursery: trio.Nursery, qkd_config: QkdConfig, told: Told
) -> None:
    """Without an alert nobody can know whether it has read what was asked."""
    server = make_server(answers=[b""])
    await server.start(nursery)
    source = QkdSource("kme", qkd_config(server), told)
    refused = await refusal(source)
    assert refused.fault is SourceFault.TLS
    assert "the connection broke off before the answer" in refused.reason
    assert "a certificate that it does not know is one reason" in refused.hint
    assert source.status().counters["maybe_lost"] == 1


async def test_another_name_in_the_certificate_may_be_configured(
    kme: TlsServer, qkd_config: QkdConfig, told: Told
) -> None:
    kme.answers = [keys(SPEC_KEYS[0]), keys(SPEC_KEYS[1])]
    good = QkdSource("kme", qkd_config(kme, server_name="kme1.example.net"), told)
    assert (await good.obtain(FAR)).present
    bad = QkdSource("kme", qkd_config(kme, server_name="kme2.example.net"), told)
    assert (await refusal(bad)).fault is SourceFault.CERTIFICATE


async def test_the_pin_of_a_certificate(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    kme.answers = [keys(SPEC_KEYS[0])]
    pin = f"sha256:{kme.issued.sha256}"
    good = QkdSource("kme", qkd_config(kme, pin=["sha256:" + "0" * 64, pin]), told)
    assert (await good.obtain(FAR)).present
    bad = await refusal(QkdSource("kme", qkd_config(kme, pin="sha256:" + "0" * 64), told))
    assert bad.fault is SourceFault.CERTIFICATE
    assert f"its own has {pin}" in bad.reason
    # Nothing was asked of who did not have it
    assert len(kme.received) == 1


async def test_the_name_in_a_certificate(kme: TlsServer, qkd_config: QkdConfig, told: Told) -> None:
    kme.answers = [keys(SPEC_KEYS[0])]
    assert (await QkdSource("kme", qkd_config(kme, kme_name="KME1"), told).obtain(FAR)).present
    bad = await refusal(QkdSource("kme", qkd_config(kme, kme_name="kme2"), told))
    assert bad.fault is SourceFault.CERTIFICATE
    assert "expected a certificate of kme2; it is of kme1, 127.0.0.1" in bad.reason
    assert len(kme.received) == 1


@pytest.mark.parametrize(
    ("valid", "says"), [((-10, -1), "expired on"), ((1, 10), "is not valid before")]
)
async def test_this_ends_certificate_is_looked_at_before_it_is_shown(
    authority: Authority,
    kme: TlsServer,
    qkd_config: QkdConfig,
    sae_files: Files,
    told: Told,
    valid: tuple[float, float],
    says: str,
) -> None:
    issued = authority.issue(OWN_SAE, valid_from=valid[0], valid_until=valid[1])
    issued.write(Path(sae_files["certificate"]), Path(sae_files["key"]))
    refused = await refusal(QkdSource("kme", qkd_config(kme), told))
    assert refused.fault is SourceFault.CERTIFICATE
    assert says in refused.reason
    assert kme.connections == 0


# ---- files that change


async def test_replaced_files_are_taken_up_without_a_restart(
    authority: Authority, kme: TlsServer, qkd_config: QkdConfig, sae_files: Files, told: Told
) -> None:
    kme.answers = [keys(one) for one in SPEC_KEYS]
    source = QkdSource("kme", qkd_config(kme), told)
    await source.obtain(FAR)
    before = source.status().certificates[0].sha256
    issued = authority.issue(OWN_SAE)
    certificate, key = Path(sae_files["certificate"]), Path(sae_files["key"])
    # One file after the other: between the two the pair does not fit
    certificate.write_bytes(issued.certificate)
    await source.obtain(FAR)
    status = source.status()
    assert status.certificates[0].sha256 == before
    assert any("does not belong to the key" in text for text in status.warnings)
    issued.write(certificate, key)
    await source.obtain(FAR)
    status = source.status()
    assert status.certificates[0].sha256 == issued.sha256
    assert status.warnings == []


@pytest.mark.parametrize("name", ["ca", "certificate", "key"])
@pytest.mark.parametrize("content", [b"", b"-----BEGIN", b"\x00\xff" * 50])
async def test_a_file_written_by_half_leaves_what_was_there(
    kme: TlsServer,
    qkd_config: QkdConfig,
    sae_files: Files,
    told: Told,
    name: str,
    content: bytes,
) -> None:
    kme.answers = [keys(one) for one in SPEC_KEYS]
    source = QkdSource("kme", qkd_config(kme), told)
    await source.obtain(FAR)
    whole = Path(sae_files[name]).read_bytes()
    Path(sae_files[name]).write_bytes(content)
    await source.obtain(FAR)
    assert any("still in use" in text for text in source.status().warnings)
    Path(sae_files[name]).write_bytes(whole)
    await source.obtain(FAR)
    assert source.status().warnings == []


@pytest.mark.parametrize("how", ["removed", "readable by others"])
async def test_a_key_that_is_withdrawn_is_used_no_more(
    kme: TlsServer, qkd_config: QkdConfig, sae_files: Files, told: Told, how: str
) -> None:
    kme.answers = [keys(one) for one in SPEC_KEYS]
    source = QkdSource("kme", qkd_config(kme), told)
    await source.obtain(FAR)
    key = Path(sae_files["key"])
    if how == "removed":
        whole = key.read_bytes()
        key.unlink()
    else:
        key.chmod(0o640)
    refused = await refusal(source)
    assert refused.fault is SourceFault.FILE
    assert str(key) in refused.reason
    assert len(kme.received) == 1
    if how == "removed":
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(whole)
    else:
        key.chmod(0o600)
    assert (await source.obtain(FAR)).present
    assert told.names == ["source_failed", "source_back"]


# ---- expiry


def watched(config: object, told: Told) -> tuple[KeyManager, CertificateWatch]:
    manager = KeyManager("kme", config, "KME")  # type: ignore[arg-type]
    return manager, CertificateWatch(manager, Health("kme", told))


@pytest.mark.parametrize(
    ("days", "events"), [(40, 0), (29.5, 1), (6.5, 1), (0.5, 1)], ids=["40", "29", "6", "0"]
)
async def test_expiry_is_told_once(
    authority: Authority,
    kme: TlsServer,
    qkd_config: QkdConfig,
    sae_files: Files,
    told: Told,
    days: float,
    events: int,
) -> None:
    issued = authority.issue(OWN_SAE, valid_until=days)
    issued.write(Path(sae_files["certificate"]), Path(sae_files["key"]))
    _, watch = watched(qkd_config(kme), told)
    await watch.look()
    await watch.look()
    assert told.names == ["source_certificate_expires"] * events
    assert len(watch.warnings()) == events
    if events:
        assert f"expires in {int(days)} days" in told.events[0]["reason"]
        assert told.events[0]["level"] == ("error" if days < 1 else "warning")


async def test_each_threshold_is_told_and_the_renewal_too(
    authority: Authority,
    kme: TlsServer,
    qkd_config: QkdConfig,
    sae_files: Files,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import vpnd.clock

    now = vpnd.clock.wall()
    certificate, key = Path(sae_files["certificate"]), Path(sae_files["key"])
    authority.issue(OWN_SAE, valid_until=90).write(certificate, key)
    _, watch = watched(qkd_config(kme), told)
    for days in (0, 59.5, 61, 70, 83.5, 85, 89.5, 89.6):
        monkeypatch.setattr(
            "vpnd.keysource.certificate_watch.wall", lambda days=days: now + days * 86400
        )
        await watch.look()
    assert told.names == ["source_certificate_expires"] * 3
    monkeypatch.undo()
    authority.issue(OWN_SAE).write(certificate, key)
    await watch.look()
    assert told.names[3:] == ["source_certificate_renewed"]


async def test_the_kmes_certificate_is_watched_too(
    authority: Authority,
    make_server: MakeServer,
    nursery: trio.Nursery,
    qkd_config: QkdConfig,
    told: Told,
) -> None:
    issued = authority.issue("kme1", names=("127.0.0.1",), valid_until=3.5)
    server = make_server(issued=issued, answers=[keys(SPEC_KEYS[0])])
    await server.start(nursery)
    source = QkdSource("kme", qkd_config(server), told)
    await source.obtain(FAR)
    (warning,) = source.status().warnings
    assert "the key manager's certificate CN=kme1 expires in 3 days" in warning
    steps = await source.probe(None)
    assert [(step.step, step.done) for step in steps] == [
        ("connect", True),
        ("tls", True),
        ("certificate", True),
        ("status", True),
    ]
    assert f"sha256:{issued.sha256}" in steps[2].detail
    assert steps[1].detail == "TLSv1.3"


async def test_an_unusable_pair_is_an_event_once(
    kme: TlsServer, qkd_config: QkdConfig, sae_files: Files, told: Told
) -> None:
    _, watch = watched(qkd_config(kme), told)
    await watch.look()
    Path(sae_files["certificate"]).write_bytes(b"half")
    await watch.look()
    await watch.look()
    assert told.names == ["source_certificate_unusable"]
    assert "what was there before is in use" in told.events[0]["reason"]
