"""`vpnctl keysource`, `vpnctl fallback`, and external keys in `status` and `peer`."""

from typing import Any

import pytest

from kex.identity import Fingerprint
from tests.cli.conftest import Vpnctl
from tests.cli.fake_daemon import FakeDaemon, error, link
from vpnd.api import SCHEMA, KeySourceInfo

IDENTITY = Fingerprint(1, bytes(range(32))).text()


def source(name: str, **changes: Any) -> KeySourceInfo:
    found = KeySourceInfo(
        schema=SCHEMA,
        name=name,
        type="qkd",
        address="https://kme.example.net:8443",
        identity="KME-FRA",
        available=True,
        code=None,
        reason="",
        hint="",
        since=None,
        stock=[
            {
                "peer_id": "sae-ams1",
                "stored": 900,
                "capacity": 1000,
                "key_bits": 256,
                "at": "2020-01-02T03:04:05Z",
                "used_per_day": 720.0,
                "days_left": 1.3,
                "low": False,
            }
        ],
        certificates=[
            {
                "what": "client",
                "subject": "CN=sae-fra1",
                "not_after": "2030-01-02T03:04:05Z",
                "sha256": "ab" * 32,
            }
        ],
        warnings=["the client certificate expires in 7 days"],
        prefetched=1,
        counters={"obtained": 5},
        links=[{"peer": "ams1", "peer_sae": "sae-ams1", "mode": "require"}],
    )
    found.update(changes)  # type: ignore[typeddict-item]
    return found


def external(**changes: Any) -> dict[str, Any]:
    mixed = {
        "source": "kme-fra",
        "type": "qkd",
        "key_manager": "KME-FRA",
        "key_ids": ["550e8400-e29b-41d4-a716-446655440000"],
        "bits": 256,
        "age_seconds": 61.0,
    }
    return {
        "mode": "prefer",
        "mixed": ["kme-fra"],
        "in_force": [mixed],
        "installed": [mixed],
        "fallback": None,
    } | changes


def fallback(**changes: Any) -> dict[str, Any]:
    return {
        "since": "2020-01-02T03:04:05Z",
        "reason": "kme-fra: no answer",
        "until": "2020-01-02T04:04:05Z",
        "seconds_left": 1800.0,
        "over_limit": False,
        "extended_seconds": 0,
        "extension_reason": "",
        "extension_uid": None,
    } | changes


def test_the_list(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    assert "no key sources" in vpnctl("keysource", "list").stdout
    down = source("kme-b", available=False, code="source_timeout", reason="no answer", hint="look")
    daemon.key_sources = [source("kme-fra"), down]
    ended = vpnctl("keysource", "list")
    assert ended.code == 0
    assert "900 of 1000" in ended.stdout
    assert "source_timeout" in ended.stdout
    assert "kme-b: no answer\nkme-b: look\n" in ended.stdout
    assert "kme-fra warning: the client certificate" in ended.stdout
    assert vpnctl("keysource", "list", "--json").document["key_sources"] == daemon.key_sources


def test_one_source(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.key_sources = [source("kme-fra")]
    ended = vpnctl("keysource", "show", "kme-fra")
    for expected in ("KME-FRA", "sae-ams1", "720 a day", "1.3 days left", "CN=sae-fra1", "ab" * 32):
        assert expected in ended.stdout
    assert vpnctl("keysource", "show", "kme-fra", "--json").document == daemon.key_sources[0]
    ended = vpnctl("keysource", "show", "kme-x")
    ended.assert_refused(2)
    assert "kme-fra" in ended.hints[0]


def test_a_source_is_tried(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.key_sources = [source("kme-fra")]
    daemon.tested["steps"] = [{"step": "tls", "done": True, "detail": "TLS 1.3", "hint": ""}]
    ended = vpnctl("keysource", "test", "kme-fra")
    assert (ended.code, ended.stdout) == (0, "tls: ok  TLS 1.3\n")
    assert daemon.requests[-1][2] == {"peer": None, "consume_one": False}
    daemon.tested |= {"key_id": "0badc0de", "peer": "ams1", "key_ids": ["id"]}
    ended = vpnctl("keysource", "test", "kme-fra", "--link", "ams1", "--consume-one")
    assert daemon.requests[-1][2] == {"peer": "ams1", "consume_one": True}
    assert "ams1: key id 0badc0de, the same at both ends" in ended.stdout
    vpnctl("keysource", "test", "kme-fra", "--deep")
    assert daemon.requests[-1][2] == {"peer": None, "consume_one": False, "deep": True}
    daemon.tested |= {"done": False, "key_id": None}
    daemon.tested["steps"] = [{"step": "tls", "done": False, "detail": "no", "hint": "renew"}]
    ended = vpnctl("keysource", "test", "kme-fra")
    assert ended.code == 1
    assert ended.hints == ["renew"]
    assert vpnctl("keysource", "test", "kme-fra", "--json").document == daemon.tested


def test_a_fallback_is_extended(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1", "degraded", external_keys=external(fallback=fallback()))]
    ended = vpnctl("fallback", "extend", "ams1", "--for", "2h", "--reason", "repair")
    assert ended.code == 0
    request = ("POST", "/v1/peers/ams1/fallback", {"seconds": 7200, "reason": "repair"})
    assert daemon.requests[-1] == request
    assert "until 2020-01-02T04:04:05Z" in ended.stdout
    daemon.refuses = (409, error("conflict", "ams1: the fallback was extended already"))
    ended = vpnctl("fallback", "extend", "ams1", "--for", "30min", "--reason", "again")
    assert ended.code == 2
    assert "extended already" in ended.errors[0]


@pytest.mark.parametrize("lasts", ["2", "59s", "8d", "2 weeks", "-1h", "1h30"])
def test_times_that_cannot_be(vpnctl: Vpnctl, daemon: FakeDaemon, lasts: str) -> None:
    ended = vpnctl("fallback", "extend", "ams1", f"--for={lasts}", "--reason", "repair")
    ended.assert_refused(2)
    assert daemon.requests == []


@pytest.mark.parametrize("over", [False, True])
def test_a_fallback_in_status(vpnctl: Vpnctl, daemon: FakeDaemon, over: bool) -> None:
    found = external(fallback=fallback(over_limit=over), mixed=[], in_force=[])
    daemon.links = [link("ams1", "degraded", external_keys=found)]
    ended = vpnctl("status", "ams1")
    assert ended.code == (4 if over else 0)
    assert "fallback since 2020-01-02T03:04:05Z" in ended.stdout
    assert ("over its limit since" if over else "limit at") in ended.stdout


def test_sources_and_ids(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1", external_keys=external())]
    assert "kme-fra (1 min 1 s)" in vpnctl("status").stdout
    shown = vpnctl("peer", "show", "ams1").stdout
    assert "qkd key 550e8400-e29b-41d4-a716-446655440000 of KME-FRA, 256 bits" in shown


@pytest.mark.parametrize(
    ("flags", "table"),
    [
        (("--external-keys", "off"), {"mode": "off"}),
        (
            ("--external-keys", "require", "--source", "a", "--peer-sae", "x"),
            {"mode": "require", "source": "a", "peer_sae": "x"},
        ),
        (
            ("--external-keys", "prefer", "--source", "shared"),
            {"mode": "prefer", "source": "shared"},
        ),
        (
            (
                *("--external-keys", "require", "--source", "a", "--peer-sae", "x"),
                *("--source", "shared", "--peer-sae", "none"),
            ),
            {
                "mode": "require",
                "sources": [{"source": "a", "peer_sae": "x"}, {"source": "shared"}],
            },
        ),
    ],
)
def test_a_peer_gets_its_table(
    vpnctl: Vpnctl, daemon: FakeDaemon, flags: tuple[str, ...], table: dict[str, Any]
) -> None:
    add = ("peer", "add", "ams1", "--identity", IDENTITY, "--allow", "10.0.0.0/8")
    assert vpnctl(*add, *flags).code == 0
    assert daemon.requests[-1][2]["external_keys"] == table
    assert vpnctl("peer", "set", "ams1", *flags).code == 0
    assert daemon.requests[-1][2] == {"external_keys": table}


@pytest.mark.parametrize(
    "flags",
    [
        ("--external-keys", "require"),
        ("--source", "a"),
        ("--peer-sae", "x"),
        ("--external-keys", "require", "--source", "a", "--peer-sae", "x", "--peer-sae", "y"),
    ],
)
def test_tables_that_cannot_be(vpnctl: Vpnctl, daemon: FakeDaemon, flags: tuple[str, ...]) -> None:
    ended = vpnctl("peer", "set", "ams1", *flags)
    ended.assert_refused(2)
    assert daemon.requests == []
