"""What a reload would change, and what of it needs a restart."""

from __future__ import annotations

from typing import Any

import pytest

from kex.identity import Identity
from tests.vpnd.config_files import LON1, Site
from vpnd.config import load_config
from vpnd.config_diff import described, diff, needs_restart
from vpnd.config_model import PeerSettings, validate
from vpnd.config_source import Source
from vpnd.identity_store import create_identity, system_suite, use_identity


def restart_for(site: Site, **changes: dict[str, Any]) -> tuple[str, ...]:
    old = site.load()
    for table, values in changes.items():
        (site.main["node"] if table == "node" else site.main["tunnels"]["backbone"]).update(values)
    return needs_restart(old, site.load())


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("node", {"listen": ["[::]:4000"]}),
        ("node", {"state_dir": "/var/lib/other"}),
        ("node", {"runtime_dir": "/run/other"}),
        ("node", {"control_socket": "/run/other.sock"}),
        ("node", {"max_datagram": 1000}),
        ("node", {"log_level": "debug"}),
        ("backbone", {"listen_port": 4000}),
        ("backbone", {"interface": "wg1"}),
        ("backbone", {"addresses": ["10.255.0.9/24"]}),
        ("backbone", {"mtu": 1400}),
        ("backbone", {"table": 1000}),
        ("backbone", {"fwmark": 7}),
        ("backbone", {"metric": 7}),
        ("backbone", {"backend": "kernel"}),
    ],
    ids=str,
)
def test_what_needs_a_restart_is_named(site: Site, table: str, values: dict[str, Any]) -> None:
    (key,) = values
    prefix = "node" if table == "node" else "tunnels.backbone"
    assert f"{prefix}.{key}" in restart_for(site, **{table: values})


def test_so_does_another_namespace(site: Site) -> None:
    old = site.load()
    site.main["tunnels"]["backbone"]["netns"] = "blue"
    site.write()
    # Not with a look at this node, which may have no way into namespaces
    new = load_config(site.path, with_identities=False)
    assert needs_restart(old, new) == ("tunnels.backbone.netns",)


def test_what_does_not(site: Site) -> None:
    node = {"name": "other", "on_stop": "close"}
    assert restart_for(site, node=node, backbone={"announce": ["10.10.0.0/16"]}) == ()
    site.main["defaults"] = {"keepalive": 5}
    site.main["tunnels"]["two"] = {"interface": "wg-two", "listen_port": 4000}
    assert restart_for(site) == ()


def test_a_further_tunnel_with_another_mark_needs_one(site: Site) -> None:
    """The socket of the key exchange carries it."""
    old = site.load()
    site.main["tunnels"]["two"] = {"interface": "wg-two", "listen_port": 4000, "fwmark": 7}
    assert needs_restart(old, site.load()) == ("tunnels.two.fwmark",)


def test_changes_are_told_with_their_values(site: Site) -> None:
    create_identity(site.state_dir, Identity.generate(system_suite(1)))
    old = site.load()
    site.peers["ams1"]["keepalive"] = 5
    site.peers["ams1"]["on_stop"] = "close"
    site.peers["lon1"] = {"identity": LON1, "allowed_ips": ["10.30.0.0/16"], "tunnel": "backbone"}
    create_identity(site.state_dir, Identity.generate(system_suite(1)), "next")
    use_identity(site.state_dir, "next")
    changes = {
        (each["what"], each["name"], each["change"]): {
            key["key"]: (key["before"], key["after"]) for key in each["keys"]
        }
        for each in described(old, site.load())
    }
    assert changes == {
        ("peer", "lon1", "added"): {},
        ("peer", "ams1", "changed"): {"keepalive": ("25", "5"), "on_stop": (None, "close")},
        ("identity", "next", "added"): {},
        ("identity", "next", "changed"): {"in use": ("default", "next")},
    }
    assert described(old, old) == []


def test_defaults_show_at_the_peers_that_have_them(site: Site) -> None:
    old = site.load()
    site.main["defaults"] = {"rekey_interval": 600}
    assert diff(old, site.load()).peers.changed == {"ams1": ("rekey_interval", "key_lifetime")}


def test_a_changed_peer_is_the_one_that_is_read_back(site: Site) -> None:
    old = site.load()
    site.peers["ams1"].update(
        wireguard_endpoint="192.0.2.1:4500",
        local_identity=["a", "b"],
        wireguard_key="B" * 42 + "A=",
    )
    settings = validate(PeerSettings, site.peers["ams1"], Source(None))
    changed = old.with_changed_peer("ams1", settings)
    assert changed == site.load()
    assert set(diff(old, changed).peers.changed["ams1"]) == {
        "wireguard_endpoint",
        "local_identity",
        "wireguard_key",
    }
