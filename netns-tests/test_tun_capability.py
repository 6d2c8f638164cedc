"""All that vpnd asks of the system, done with CAP_NET_ADMIN and no other capability."""

from __future__ import annotations

import pytest
from test_tun_tunnel import new_psk, peer, spec
from tun_site import Site

from tun import generate_keypair

pytestmark = pytest.mark.netns

NET_ADMIN_ALONE = (
    "setpriv",
    "--no-new-privs",
    "--inh-caps=-all,+net_admin",
    "--bounding-set=-all,+net_admin",
)


@pytest.mark.kernel
def test_a_tunnel_from_its_making_to_its_end() -> None:
    with Site("weak", driver_runs_by=NET_ADMIN_ALONE) as site:
        # In the emulator nothing has asked for it yet, and a daemon may not load it.
        site.run("modprobe", "tun", check=False)
        pid = site.call("pid")
        assert "CapEff:\t0000000000001000\n" in site.run("cat", f"/proc/{pid}/status")
        site.call("set_guards", prefixes=["10.20.0.0/16", "fd00:20::/48"], table=5000)
        assert not site.call("put_fence", prefixes=["10.20.0.0/16", "fd00:20::/48"])
        assert "10.20.0.0/16" in site.run("nft", "list", "table", "inet", "vpnd-wg0")
        site.run("nft", "flush", "ruleset")
        assert site.call("put_fence", prefixes=["10.20.0.0/16", "fd00:20::/48"])
        assert "fd00:20::/48" in site.run("nft", "list", "table", "inet", "vpnd-wg0")
        made = site.call("open", **spec(1, fwmark=7, table=5000, mtu=1380))
        key, psk = generate_keypair().public_key.hex(), new_psk()
        site.call("add_peer", **peer(key, 2, psk))
        site.call("set_psk", public_key=key, psk=new_psk())
        site.call("update_peer", public_key=key, allowed_ips=["10.20.0.0/16", "fd00:20::/48"])
        site.call("set_routes", prefixes=["10.20.0.0/16", "fd00:20::/48"])
        for family, prefix in (("-4", "10.20.0.0/16"), ("-6", "fd00:20::/48")):
            shown = site.run("ip", family, "route", "show", "table", "5000")
            assert f"{prefix} dev wg0 proto 157" in shown
            assert f"unreachable {prefix}" in shown
        site.kill_driver()
        assert site.call("open", **spec(1, fwmark=7, table=5000, mtu=1380)) == {
            **made,
            "adopted": True,
        }
        assert set(site.call("peers")) == {key}
        site.call("delete")
        assert not site.succeeds("ip", "link", "show", "wg0")


def test_a_wireguard_go_of_another_user_is_replaced() -> None:
    """What a daemon tried as root leaves to the installed one; it is ours by its alias."""
    with Site("weak", driver_runs_by=NET_ADMIN_ALONE) as site:
        site.run("modprobe", "tun", check=False)
        made = site.call("open", **spec(1, backend="userspace"))
        site.kill_driver()
        site.run("chown", "nobody", "/run/wireguard/wg0.sock")
        again = site.call("open", **spec(1, backend="userspace"))
        assert not again["adopted"]
        assert again["public_key"] != made["public_key"]
        assert len(site.data_planes()) == 1
