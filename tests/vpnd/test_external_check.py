"""What must hold between a peer's `[external_keys]` and the rest, and how a mistake is told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vpnd.config_files import Site
from vpnd.config_model import ExternalKeys, PeerRequest, validate
from vpnd.config_source import Source
from vpnd.peer_file import render_peer
from vpnd.source_use import SourceUse

KEY = bytes(range(7, 39)).hex()


@pytest.fixture
def linked(site: Site) -> Site:
    """A site with two key files and two QKD sources, whose certificates nobody looks at here."""
    sources: dict[str, Any] = {}
    for name in ("shared", "other"):
        path = site.folder / f"{name}.key"
        path.write_text(KEY)
        path.chmod(0o600)
        sources[name] = {"type": "file", "file": str(path)}
    for name in ("kme-a", "kme-b", "kme-c", "kme-d"):
        sources[name] = {
            "type": "qkd",
            "urls": ["https://kme.example.net:8443"],
            "sae": "sae-fra1" * 8,
            **{each: str(site.folder / f"{each}.pem") for each in ("ca", "certificate", "key")},
        }
    site.main["key_sources"] = sources
    return site


def problems_of(site: Site, **external: Any) -> Any:
    from vpnd.config import load_config
    from vpnd.config_errors import ConfigErrors

    site.peers["ams1"]["external_keys"] = external
    site.write()
    try:
        load_config(site.path, with_identities=False)
    except ConfigErrors as errors:
        return errors.problems
    return ()


QKD = {"source": "kme-a", "peer_sae": "sae-ams1"}


@pytest.mark.parametrize(
    "external",
    [
        {"mode": "off"},
        {"mode": "off", "source": "later"},
        {"mode": "require", **QKD},
        {"mode": "prefer", **QKD, "fallback_limit": 60, "on_mismatch": "close"},
        {"mode": "require", "source": "shared"},
        {"mode": "require", "sources": [QKD, {"source": "shared"}], "require": ["kme-a"]},
        {"mode": "prefer", "sources": [QKD, {"source": "shared"}], "at_least": 2},
        {"mode": "require", "sources": [QKD, {"source": "kme-b", "peer_sae": "sae-b"}]},
        {"mode": "require", **QKD, "min_interval": 0},
    ],
)
def test_what_is_right(linked: Site, external: dict[str, Any]) -> None:
    assert problems_of(linked, **external) == ()


@pytest.mark.parametrize(
    ("external", "key", "words"),
    [
        ({"mode": "require"}, "source", "is missing"),
        ({"mode": "require", "sources": []}, "source", "is missing"),
        ({"mode": "require", **QKD, "sources": [QKD]}, "source", "beside sources"),
        (
            {"mode": "require", "sources": [QKD], "peer_sae": "sae"},
            "peer_sae",
            "beside sources",
        ),
        ({"mode": "require", "source": "kme-x"}, "source", 'no key source "kme-x"'),
        ({"mode": "require", "source": "kme-a"}, "peer_sae", "is missing"),
        ({"mode": "require", "source": "kme-a", "peer_sae": ".."}, "peer_sae", "a step in a path"),
        ({"mode": "require", "source": "shared", "peer_sae": "s"}, "peer_sae", "is a file"),
        ({"mode": "require", "sources": [QKD, QKD]}, "sources", "twice"),
        (
            {"mode": "require", "sources": [QKD, {"source": "kme-b", "peer_sae": "sae-ams1"}]},
            "sources",
            "by the same name",
        ),
        (
            {"mode": "require", "sources": [{"source": f"s{n}"} for n in range(5)]},
            "sources",
            "5 entries",
        ),
        ({"mode": "require", **QKD, "require": ["shared"]}, "require", "no source of this link"),
        ({"mode": "require", **QKD, "require": ["kme-a"] * 2}, "require", "twice"),
        ({"mode": "require", **QKD, "at_least": 2}, "at_least", "2 of 1"),
        (
            {"mode": "require", **QKD, "at_least": 1, "require": ["kme-a"]},
            "at_least",
            "beside require",
        ),
        ({"mode": "require", **QKD, "min_interval": 121}, "min_interval", "rekey_interval"),
        ({"mode": "require", **QKD, "on_mismatch": "ignore"}, "on_mismatch", "not known"),
        ({"mode": "prefer", **QKD, "fallback_limit": -1}, "fallback_limit", "out of range"),
        ({"mode": "require", "source": "kme-a", "peer_sae": "s" * 301}, "peer_sae", "300 bytes"),
        ({"mode": "require", "sources": [{"sauce": "x"}]}, "sources", "unknown key"),
        ({"mode": "require", "sources": ["kme-a"]}, "sources", "no table"),
        ({"mode": "require", "sources": [{}]}, "sources", "names no source"),
        ({"mode": "sometimes", **QKD}, "mode", "not known"),
    ],
)
def test_what_is_wrong(linked: Site, external: dict[str, Any], key: str, words: str) -> None:
    problems = problems_of(linked, **external)
    found = [one for one in problems if one.key == f"external_keys.{key}"]
    assert any(words in one.reason + one.hint for one in found), [str(one) for one in problems]
    assert all(one.file == linked.peer_path("ams1") for one in problems)


def test_what_does_not_fit_into_an_exchange(linked: Site) -> None:
    """Four sources with names of unknown length, beside sixteen prefixes."""
    linked.main["tunnels"]["backbone"]["announce"] = [f"fd00:{n:x}::/48" for n in range(1, 15)]
    four = [{"source": f"kme-{each}", "peer_sae": f"sae-{each}"} for each in "abcd"]
    (problem,) = problems_of(linked, mode="require", sources=four)
    assert problem.key == "external_keys.sources"
    assert "do not fit into an exchange" in problem.reason
    for each in "abcd":
        linked.main["key_sources"][f"kme-{each}"]["kme_id"] = "kme-fra1"
    assert problems_of(linked, mode="require", sources=four) == ()


def test_a_source_whose_own_table_is_wrong_is_told_once(linked: Site) -> None:
    linked.main["key_sources"]["kme-a"]["urls"] = ["ftp://nowhere"]
    problems = problems_of(linked, mode="require", **QKD)
    assert [problem.file for problem in problems] == [linked.path]


def test_a_file_reads_back_as_it_was_meant() -> None:
    external = {
        "mode": "require",
        "sources": [QKD, {"source": "shared"}],
        "require": ["kme-a"],
        "fallback_limit": 60,
        "on_mismatch": "close",
        "min_interval": 60,
    }
    values = {
        "name": "ams1",
        "identity": "vpnd1q8e78uzcrhzw3hw7xpvpjs725yuk2xanjr0e9myag8wjsm36nwnqsds5mlg",
        "allowed_ips": ["10.0.0.0/8"],
        "external_keys": external,
    }
    text = render_peer(validate(PeerRequest, values, Source(None)))
    assert '{ source = "kme-a", peer_sae = "sae-ams1" }' in text


@pytest.mark.parametrize(
    ("external", "minimum"),
    [
        ({"mode": "require"}, 2),
        ({"mode": "prefer"}, 1),
        ({"mode": "require", "at_least": 1}, 1),
        ({"mode": "prefer", "at_least": 2}, 2),
        ({"mode": "require", "require": ["b"]}, 1),
    ],
)
def test_how_many_are_needed(external: dict[str, Any], minimum: int) -> None:
    two = {"sources": [{"source": "a"}, {"source": "b"}]}
    table = validate(ExternalKeys, external | two, Source(None))
    assert table.minimum == minimum
    assert table.uses == (SourceUse("a"), SourceUse("b"))


def test_a_link_that_is_off_uses_none() -> None:
    assert validate(ExternalKeys, {"source": "a"}, Source(None)).uses == ()
