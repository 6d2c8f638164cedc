"""Peers that come and go at run time: their files, the configuration with them, the difference."""

from __future__ import annotations

import tempfile
from base64 import b64encode
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kex.identity import Fingerprint
from tests.examples import examples
from tests.vpnd.config_files import AMS1, LON1, Site
from vpnd.atomic_file import FileExists
from vpnd.config import load_config
from vpnd.config_diff import diff
from vpnd.config_errors import ConfigErrors
from vpnd.config_model import PeerRequest, validate
from vpnd.config_source import Source
from vpnd.file_trust import FileFault
from vpnd.peer_file import peer_path, remove_peer_file, render_peer, write_peer_file


def request(**values: Any) -> PeerRequest:
    whole = {"name": "lon1", "identity": LON1, "allowed_ips": ["10.30.0.0/16"]} | values
    return validate(PeerRequest, whole, Source(None))


def test_a_peer_that_is_added_is_the_one_that_is_read_back(site: Site) -> None:
    before = site.load()
    wanted = request(endpoint="[2001:db8::1]:51821", keepalive=0, protect=[])
    after = before.with_peer(wanted)
    assert write_peer_file(before.node.peers_dir, "lon1", wanted) == site.peer_path("lon1")
    assert load_config(site.path) == after
    assert site.peer_path("lon1").stat().st_mode & 0o777 == 0o644
    assert after.without_peer("lon1") == before
    remove_peer_file(before.node.peers_dir, "lon1")
    remove_peer_file(before.node.peers_dir, "lon1")
    assert load_config(site.path) == before


def test_what_was_not_said_is_not_written(site: Site) -> None:
    """So a later change of `[defaults]` reaches the peer."""
    site.main["defaults"] = {"rekey_interval": 3600}
    config = site.load()
    wanted = request()
    assert render_peer(wanted) == f'identity = "{LON1}"\nallowed_ips = ["10.30.0.0/16"]\n'
    assert config.with_peer(wanted).peers["lon1"].key_lifetime == 3600 + 480


def test_all_that_speaks_against_a_peer_is_told(site: Site) -> None:
    config = site.load()
    with pytest.raises(ConfigErrors) as caught:
        config.with_peer(
            request(
                identity=AMS1,
                allowed_ips=["10.20.0.0/16", "0.0.0.0/0"],
                key_lifetime=500,
                rekey_interval=300,
            )
        )
    assert {problem.key for problem in caught.value.problems} == {
        "identity",
        "allowed_ips[0]",
        "key_lifetime",
        "protect",
    }
    assert all(problem.file is None for problem in caught.value.problems)
    with pytest.raises(ConfigErrors, match="there is a peer ams1 already"):
        config.with_peer(request(name="ams1"))
    with pytest.raises(ConfigErrors, match="there is no tunnel"):
        config.with_peer(request(tunnel="front"))
    with pytest.raises(KeyError):
        config.without_peer("lon1")


def test_a_file_that_is_there_is_not_overwritten(site: Site) -> None:
    site.write()
    before = site.peer_path("ams1").read_text()
    with pytest.raises(FileExists):
        write_peer_file(site.peers_dir, "ams1", request(name="ams1"))
    assert site.peer_path("ams1").read_text() == before
    write_peer_file(site.peers_dir, "ams1", request(name="ams1"), replace=True)
    assert site.peer_path("ams1").read_text() != before
    assert sorted(path.name for path in site.peers_dir.iterdir()) == ["ams1.toml"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFault, match="cannot be made: Not a directory"):
        write_peer_file(tmp_path / "file" / "peers.d", "lon1", request())
    write_peer_file(tmp_path / "new" / "peers.d", "lon1", request())
    assert peer_path(tmp_path / "new" / "peers.d", "lon1").exists()


v4 = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.integers(0, 2**32 - 1).map(IPv4Address),
    st.integers(1, 32),
)
v6 = st.builds(
    lambda address, length: IPv6Network((address, length), strict=False),
    st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(IPv6Address),
    st.integers(8, 128),
)
prefixes = st.lists((v4 | v6).map(str), min_size=1, max_size=8)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
identities = st.binary(max_size=4).map(lambda seed: Fingerprint.of(1, seed).text())
endpoints = st.sampled_from(["192.0.2.1:1", "[2001:db8::1]:65535", "a-b.example:51821"])
requests = st.fixed_dictionaries(
    {
        "name": names,
        "identity": identities | st.lists(identities, min_size=1, max_size=8),
        "allowed_ips": prefixes,
    },
    optional={
        "endpoint": endpoints | st.none(),
        "tunnel": names | st.none(),
        "wireguard_key": st.none()
        | st.binary(min_size=32, max_size=32)
        .map(lambda key: key[:-1] + bytes([key[-1] & 0x7F]))
        .filter(any)
        .map(lambda key: b64encode(key).decode()),
        "keepalive": st.integers(0, 65535),
        "rekey_interval": st.integers(120, 86400),
        "key_lifetime": st.integers(420, 172800) | st.none(),
        "protect": prefixes | st.just([]) | st.none(),
        "external_keys": st.fixed_dictionaries(
            {},
            optional={
                "mode": st.just("off"),
                "source": names,
                "peer_sae": st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=16),
                "sources": st.lists(
                    st.fixed_dictionaries({"source": names}, optional={"peer_sae": names}),
                    max_size=4,
                ),
                "require": st.lists(names, min_size=1, max_size=4),
                "at_least": st.integers(1, 4),
                "fallback_limit": st.integers(0, 86400),
                "on_mismatch": st.sampled_from(["keep", "close"]),
                "min_interval": st.integers(0, 600),
            },
        ),
    },
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@settings(max_examples=examples(200), deadline=None)
@given(values=requests)
def test_any_peer_reads_back_as_it_was_meant(folder: Path, values: dict[str, Any]) -> None:
    wanted = validate(PeerRequest, values, Source(None))
    site = Site(folder / "node")
    site.folder.mkdir(exist_ok=True)
    site.main["tunnels"] = {
        wanted.tunnel or "only": {"interface": "wg0", "listen_port": 51820, "addresses": []}
    }
    site.peers = {}
    config = site.load()
    try:
        added = config.with_peer(wanted)
    except ConfigErrors:
        # What the peer's table cannot know: a lifetime too short for the interval, twins
        return
    write_peer_file(site.peers_dir, wanted.name, wanted)
    try:
        assert load_config(site.path).peers == added.peers
    finally:
        remove_peer_file(site.peers_dir, wanted.name)


def test_the_difference_of_two_configurations(site: Site) -> None:
    site.peers["lon1"] = {"identity": LON1, "allowed_ips": ["10.30.0.0/16"]}
    old = site.load()
    assert not diff(old, site.load())
    del site.peers["lon1"]
    site.peer_path("lon1").unlink()
    site.peers["ams1"].update(keepalive=5, rekey_interval=600)
    site.peers["par1"] = {
        "identity": Fingerprint.of(1, b"par1").text(),
        "allowed_ips": ["10.40.0.0/16"],
    }
    site.main["node"]["log_level"] = "debug"
    site.main["tunnels"]["backbone"]["mtu"] = 1400
    change = diff(old, site.load())
    assert change
    assert change.node == ("log_level",)
    assert (change.tunnels.added, change.tunnels.removed) == ((), ())
    assert change.tunnels.changed == {"backbone": ("mtu",)}
    assert (change.peers.added, change.peers.removed) == (("par1",), ("lon1",))
    # key_lifetime follows the interval
    assert sorted(change.peers.changed["ams1"]) == ["keepalive", "key_lifetime", "rekey_interval"]


def test_saying_a_default_out_loud_changes_nothing(site: Site) -> None:
    old = site.load()
    site.peers["ams1"].update(keepalive=25, rekey_interval=120, external_keys={"mode": "off"})
    site.main["node"]["max_datagram"] = 1232
    assert not diff(old, site.load())
