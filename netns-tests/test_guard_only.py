"""`vpnd --guard-only`, as vpnd-guard.service runs it at boot: guard routes, and nothing else.

One site without a cable; `lo` is all that is up, as it is that early.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from tun_site import Site

from kex.identity import Fingerprint
from vpnd.own_networks import OwnNetworks

pytestmark = pytest.mark.netns

GUARD = "metric 4294967294"


@pytest.fixture
def site() -> Iterator[Site]:
    with Site("boot") as site:
        yield site


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two peers and no identity: guards need none."""
    path = tmp_path / "vpnd.toml"
    path.write_text(
        f"""
        [node]
        name = "fra"
        state_dir = "{tmp_path}/state"
        runtime_dir = "{tmp_path}/run"
        [tunnels.backbone]
        interface = "wg0"
        listen_port = 51820
        addresses = ["10.255.0.1/24"]
        """
    )
    (tmp_path / "peers.d").mkdir(mode=0o755)
    for number, (name, prefixes) in enumerate(
        {"ams": '"10.20.0.0/16", "fd00:20::/48"', "ber": '"10.30.0.0/16", "0.0.0.0/0"'}.items()
    ):
        identity = Fingerprint.of(1, bytes([number]) * 1216).text()
        (tmp_path / "peers.d" / f"{name}.toml").write_text(
            f'identity = "{identity}"\nallowed_ips = [{prefixes}]\nprotect = []\n'
        )
    for file in (path, *(tmp_path / "peers.d").iterdir()):
        file.chmod(0o644)
    return path


def guard_only(site: Site, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        site.command(sys.executable, "-m", "vpnd", "--config", str(config), "--guard-only"),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def guards(site: Site) -> set[str]:
    shown = site.run("ip", "-4", "route").splitlines() + site.run("ip", "-6", "route").splitlines()
    return {line.split()[1] for line in shown if line.startswith("unreachable") and GUARD in line}


def test_they_stand_before_everything_else(site: Site, config: Path) -> None:
    for _ in range(2):
        done = guard_only(site, config)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "guard routes of 2 peer(s) stand\n"
        assert guards(site) == {"10.20.0.0/16", "10.30.0.0/16", "fd00:20::/48"}
    fence = site.run("nft", "list", "table", "inet", "vpnd-wg0")
    assert all(prefix in fence for prefix in ("10.20.0.0/16", "10.30.0.0/16", "fd00:20::/48"))
    assert not site.succeeds("ip", "link", "show", "wg0")
    assert not (config.parent / "run").exists()


def test_a_network_of_this_host_that_the_daemon_has_seen_stays_in_reach(
    site: Site, config: Path
) -> None:
    """The fence comes before the network: a LAN within a peer's prefix is known from before."""
    networks = OwnNetworks(config.parent / "state")
    networks.remember("backbone", frozenset({("lan0", ip_network("10.20.7.0/24"))}))
    assert guard_only(site, config).returncode == 0
    fence = site.run("nft", "list", "table", "inet", "vpnd-wg0")
    assert 'oifname "lan0" ip daddr 10.20.7.0/24 accept' in fence
    # What cannot be read is none, and no fault
    (config.parent / "state" / "own-networks.json").write_text("{")
    assert guard_only(site, config).returncode == 0
    assert "lan0" not in site.run("nft", "list", "table", "inet", "vpnd-wg0")


def test_what_is_announced_within_a_peer_s_prefix_is_behind_this_node(
    site: Site, config: Path
) -> None:
    config.write_text(config.read_text() + 'announce = ["10.20.5.0/24", "10.30.0.0/16"]\n')
    assert guard_only(site, config).returncode == 0
    fence = site.run("nft", "list", "table", "inet", "vpnd-wg0")
    assert fence.count("ip daddr 10.20.5.0/24 accept") == 2
    # What a peer has as a whole is the peer's
    assert "10.30.0.0/16 accept" not in fence


def test_without_a_fence(site: Site, config: Path) -> None:
    config.write_text(config.read_text() + 'fence = "off"\n')
    assert guard_only(site, config).returncode == 0
    assert "vpnd-" not in site.run("nft", "list", "tables")
    assert "10.20.0.0/16" in guards(site)


def test_one_that_cannot_stand_keeps_no_other_away(site: Site, config: Path) -> None:
    site.run("ip", "route", "add", "blackhole", "10.20.0.0/16", *GUARD.split(), "proto", "99")
    done = guard_only(site, config)
    assert done.returncode == 1
    assert done.stderr.startswith("vpnd: error: ams: ")
    assert "10.30.0.0/16" in guards(site)


def test_those_of_a_namespace_stand_in_it_once_it_is_there(site: Site, config: Path) -> None:
    config.write_text(config.read_text() + '[tunnels.inner]\ninterface = "wg1"\n'
                      'listen_port = 51830\nnetns = "blue"\n')  # fmt: skip
    for name, tunnel in (("ams", "inner"), ("ber", "backbone")):
        file = config.parent / "peers.d" / f"{name}.toml"
        file.write_text(file.read_text() + f'tunnel = "{tunnel}"\n')
    done = guard_only(site, config)
    # Nothing leaves a namespace that is not there: no reason to call the boot a failed one
    assert (done.returncode, done.stdout) == (0, "guard routes of 1 peer(s) stand\n")
    assert done.stderr.startswith("vpnd: note: ams: ")
    assert "ip netns add blue" in done.stderr
    site.run("ip", "netns", "add", "blue")
    done = guard_only(site, config)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "guard routes of 2 peer(s) stand\n"
    assert guards(site) == {"10.30.0.0/16"}
    for family, prefix in (("-4", "10.20.0.0/16"), ("-6", "fd00:20::/48")):
        shown = site.run("ip", "-n", "blue", family, "route")
        assert f"unreachable {prefix}" in shown
        assert GUARD in shown


def test_whatever_is_wrong_the_guards_stand(site: Site, config: Path) -> None:
    """Of the sound file, of the one with errors as far as it can be read, and without vpnd.toml."""
    file = config.parent / "peers.d" / "ams.toml"
    everything = {"10.20.0.0/16", "10.30.0.0/16", "fd00:20::/48"}
    file.write_text("identity = 1\nallowed_ips = [“10.20.0.0/16”, fd00:20::/48]\n")
    done = guard_only(site, config)
    assert done.returncode == 2
    assert "ams.toml:2: column 16 holds U+201C LEFT DOUBLE QUOTATION MARK" in done.stderr
    assert guards(site) == everything
    flush(site)
    config.write_text("[node]\nname = fra\n")
    done = guard_only(site, config)
    assert done.returncode == 2
    assert "vpnd.toml:2" in done.stderr
    assert guards(site) == everything
    flush(site)
    config.unlink()
    done = guard_only(site, config)
    assert done.returncode == 2
    assert guards(site) == everything


def test_a_daemon_that_cannot_start_leaves_guards(site: Site, config: Path) -> None:
    """Without an identity, and with a vpnd.toml that nothing can run by."""
    for spoil in (lambda: None, lambda: config.write_text("[node\n")):
        spoil()
        done = subprocess.run(
            site.command(sys.executable, "-m", "vpnd", "--config", str(config)),
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode in (1, 2)
        assert guards(site) == {"10.20.0.0/16", "10.30.0.0/16", "fd00:20::/48"}
        flush(site)


def flush(site: Site) -> None:
    for family in ("-4", "-6"):
        site.run("ip", family, "route", "flush", "proto", "157")
    assert guards(site) == set()
