"""Real tunnels between two sites, on the backend that VPND_TEST_BACKEND names.

        ┌──────────── a ───────────┐                  ┌──────────── b ───────────┐
        │ wg0  10.7.0.1, fd00:7::1 │                  │ wg0  10.7.0.2, fd00:7::2 │
        │ eth0 192.0.2.1           ├──────────────────┤ eth0 192.0.2.2           │
        │      2001:db8::1         │                  │      2001:db8::2         │
        └──────────────────────────┘                  └──────────────────────────┘

The default is `userspace`. A backend that is not there fails the tests; it skips none.
"""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tun_site import Refused, Site

from vpnd.handshake import SESSION_RENEWS

pytestmark = [pytest.mark.netns, pytest.mark.kernel]

BACKEND = os.environ.get("VPND_TEST_BACKEND", "userspace")
A, B = "10.7.0.1", "10.7.0.2"
A6, B6 = "fd00:7::1", "fd00:7::2"


def new_psk() -> str:
    return secrets.token_hex(32)


def spec(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "interface": "wg0",
        "tunnel_name": "test",
        "listen_port": 51820,
        "addresses": [f"10.7.0.{number}/24", f"fd00:7::{number}/64"],
        "backend": BACKEND,
    } | changes


def peer(public_key: str, number: int, psk: str, **changes: Any) -> dict[str, Any]:
    """The peer at site a (1) or b (2).

    Site b only answers: two handshakes that cross fail both, and are tried again 5 s later.
    """
    return {
        "public_key": public_key,
        "psk": psk,
        "endpoint": ["192.0.2.2", 51820] if number == 2 else None,
        "keepalive": 25 if number == 2 else 0,
        "allowed_ips": [f"10.7.0.{number}/32", f"fd00:7::{number}/128"],
    } | changes


@pytest.fixture(scope="module")
def cabled() -> Iterator[tuple[Site, Site]]:
    with Site("a") as a, Site("b") as b:
        a.connect(b, 1)
        yield a, b


@pytest.fixture
def sites(cabled: tuple[Site, Site]) -> Iterator[tuple[Site, Site]]:
    """Two sites without a tunnel; what a test leaves is taken away."""
    yield cabled
    for site in cabled:
        site.clear()


@pytest.fixture
def linked(sites: tuple[Site, Site]) -> tuple[Site, Site, str, str, str]:
    """Two sites with a tunnel that works; their public keys, and their PSK."""
    a, b = sites
    key_a = a.call("open", **spec(1))["public_key"]
    key_b = b.call("open", **spec(2))["public_key"]
    psk = new_psk()
    b.call("add_peer", **peer(key_a, 1, psk))
    a.call("add_peer", **peer(key_b, 2, psk))
    assert a.ping(B).received == 1
    return a, b, key_a, key_b, psk


def forget_session(site: Site, key: str, number: int, psk: str) -> None:
    """Make one end forget its session, so that its next packet needs a handshake.

    Setting the link down and up does so with kernel WireGuard only.
    """
    site.call("remove_peer", public_key=key)
    site.call("add_peer", **peer(key, number, psk))


def test_a_tunnel_carries_ipv4_and_ipv6(linked: tuple[Site, Site, str, str, str]) -> None:
    a, b, key_a, key_b, psk = linked
    assert a.ping(B6).received == 1
    assert b.ping(A).received == 1
    assert b.ping(A6).received == 1
    (status,) = a.call("peers").values()
    assert status["handshake_stamp"] is not None
    assert status["rx_bytes"] > 0
    assert status["tx_bytes"] > 0
    assert status["keepalive"] == 25
    assert status["endpoint"] == ["192.0.2.2", 51820]
    assert status["allowed_ips"] == ["10.7.0.2/32", "fd00:7::2/128"]
    assert status["psk"] is None, "keys are read only when asked for"
    (status,) = a.call("peers", with_keys=True).values()
    assert status["psk"] == psk
    assert psk not in status["shown"]
    assert a.call("matches", public_key=key_b, psk=psk)
    assert not a.call("matches", public_key=key_b, psk=new_psk())
    assert a.run("wg", "show", "wg0", "peers").strip() == bytes_to_base64(key_b)
    assert b.run("wg", "show", "wg0", "peers").strip() == bytes_to_base64(key_a)


def bytes_to_base64(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode()


def test_an_underlay_of_ipv6_does_too(sites: tuple[Site, Site]) -> None:
    a, b = sites
    key_a = a.call("open", **spec(1))["public_key"]
    key_b = b.call("open", **spec(2))["public_key"]
    psk = new_psk()
    b.call("add_peer", **peer(key_a, 1, psk))
    a.call("add_peer", **peer(key_b, 2, psk, endpoint=["2001:db8::2", 51820]))
    assert a.ping(B).received == 1
    (status,) = b.call("peers").values()
    assert status["endpoint"] == ["2001:db8::1", 51820], "b has learnt it"


def test_no_peer_ever_stands_without_a_psk(linked: tuple[Site, Site, str, str, str]) -> None:
    a, b, key_a, key_b, psk = linked
    assert a.call("peers", with_keys=True)[key_b]["psk"] == psk
    assert b.call("peers", with_keys=True)[key_a]["psk"] == psk


def test_a_renewed_psk_loses_no_packet(linked: tuple[Site, Site, str, str, str]) -> None:
    a, b, key_a, key_b, _ = linked
    pings = a.start_pings(B, count=150, interval=0.02)
    psk = new_psk()
    b.call("set_psk", public_key=key_a, psk=psk)
    a.call("set_psk", public_key=key_b, psk=psk)
    result = a.end_pings(pings)
    assert result.sent == result.received == 150
    before = a.call("peers", with_keys=True)[key_b]
    assert before["psk"] == psk
    # The next handshake is made with it.
    forget_session(a, key_b, 2, psk)
    assert a.ping(B).received == 1
    after = a.call("peers")[key_b]
    assert after["handshake_stamp"] != before["handshake_stamp"]
    assert after["allowed_ips"] == before["allowed_ips"]
    assert after["endpoint"] == before["endpoint"]


def test_a_wrong_psk_at_one_end_is_noticed_by_the_next_handshake(
    linked: tuple[Site, Site, str, str, str],
) -> None:
    a, _, _, key_b, psk = linked
    wrong = new_psk()
    a.call("set_psk", public_key=key_b, psk=wrong)
    assert a.ping(B).received == 1, "a running session goes on"
    forget_session(a, key_b, 2, wrong)
    assert not a.succeeds("ping", "-c1", "-W2", B)
    a.call("set_psk", public_key=key_b, psk=psk)
    assert a.ping(B).received == 1


def test_a_psk_for_a_peer_that_is_not_there_creates_none(
    linked: tuple[Site, Site, str, str, str],
) -> None:
    a, _, _, key_b, _ = linked
    with pytest.raises(Refused) as refused:
        a.call("set_psk", public_key=new_psk(), psk=new_psk())
    assert refused.value.name == "PeerMissing"
    a.call("remove_peer", public_key=key_b)
    for call, values in (
        ("set_psk", {"psk": new_psk()}),
        ("matches", {"psk": new_psk()}),
        ("update_peer", {"keepalive": 5}),
    ):
        with pytest.raises(Refused) as refused:
            a.call(call, public_key=key_b, **values)
        assert refused.value.name == "PeerMissing"
    a.call("remove_peer", public_key=key_b)
    assert a.call("peers") == {}
    assert not a.succeeds("ping", "-c1", "-W1", B)


def test_a_peer_with_a_new_key_takes_the_prefixes_of_the_old_one(
    linked: tuple[Site, Site, str, str, str],
) -> None:
    a, b, key_a, key_b, _ = linked
    b.call("delete")
    new_key_b = b.call("open", **spec(2))["public_key"]
    assert new_key_b != key_b
    psk = new_psk()
    b.call("add_peer", **peer(key_a, 1, psk))
    a.call("replace_peer", old=key_b, **peer(new_key_b, 2, psk))
    peers = a.call("peers", with_keys=True)
    assert list(peers) == [new_key_b]
    assert peers[new_key_b]["allowed_ips"] == ["10.7.0.2/32", "fd00:7::2/128"]
    assert peers[new_key_b]["psk"] == psk
    assert a.ping(B).received == 1


def test_a_peer_is_updated_in_what_is_given_only(
    linked: tuple[Site, Site, str, str, str],
) -> None:
    a, _, _, key_b, psk = linked
    a.call("update_peer", public_key=key_b, keepalive=7)
    a.call("update_peer", public_key=key_b, endpoint=["2001:db8::2", 51820])
    a.call("update_peer", public_key=key_b, allowed_ips=["10.7.0.2/32", "10.8.0.0/16"])
    status = a.call("peers", with_keys=True)[key_b]
    assert status["keepalive"] == 7
    assert status["endpoint"] == ["2001:db8::2", 51820]
    assert status["allowed_ips"] == ["10.7.0.2/32", "10.8.0.0/16"]
    assert status["psk"] == psk
    assert a.ping(B).received == 1


def test_a_peer_with_the_interfaces_own_key_is_refused(
    linked: tuple[Site, Site, str, str, str],
) -> None:
    a, _, key_a, key_b, _ = linked
    with pytest.raises(Refused, match="own key"):
        a.call("add_peer", **peer(key_a, 3, new_psk()))
    assert list(a.call("peers")) == [key_b]


def test_a_peer_with_many_prefixes_is_set_and_read_whole(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    a.call("open", **spec(1))
    prefixes = sorted(f"10.{n // 256}.{n % 256}.0/24" for n in range(2500))
    key, psk = new_psk(), new_psk()
    a.call("add_peer", **peer(key, 2, psk, allowed_ips=prefixes))
    a.call("add_peer", **peer(new_psk(), 3, new_psk()))
    peers = a.call("peers", with_keys=True)
    assert len(peers) == 2
    assert peers[key]["allowed_ips"] == prefixes
    assert peers[key]["psk"] == psk


def test_the_data_plane_outlives_the_daemon_and_is_adopted(
    linked: tuple[Site, Site, str, str, str],
) -> None:
    a, b, key_a, key_b, _ = linked
    planes = a.data_planes()
    assert len(planes) == (1 if BACKEND == "userspace" else 0)
    before = a.call("peers")[key_b]
    pings = b.start_pings(A, count=100, interval=0.02)
    a.kill_driver()
    adopted = a.call("open", **spec(1))
    result = b.end_pings(pings)
    assert result.sent == result.received == 100
    assert adopted == {"backend": BACKEND, "public_key": key_a, "adopted": True}
    assert a.data_planes() == planes
    (began, _), (then, _) = before["handshake_stamp"], a.call("peers")[key_b]["handshake_stamp"]
    assert then == began or then >= began + SESSION_RENEWS  # a slow machine takes that long
    psk = new_psk()
    a.call("set_psk", public_key=key_b, psk=psk)
    b.call("set_psk", public_key=key_a, psk=psk)
    forget_session(a, key_b, 2, psk)
    assert a.ping(B).received == 1


def test_an_adopted_interface_is_brought_to_the_spec(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    first = a.call("open", **spec(1))
    a.run("ip", "address", "add", "10.9.9.9/32", "dev", "wg0")  # somebody else's: stays
    a.call("aclose")
    changed = spec(
        1, listen_port=51899, mtu=1380, fwmark=51, addresses=["10.7.0.1/24", "10.7.1.1/24"]
    )
    second = a.call("open", **changed)
    assert second["adopted"]
    assert second["public_key"] == first["public_key"]
    shown = a.run("ip", "address", "show", "wg0")
    assert "mtu 1380" in shown
    for address in ("10.7.0.1/24", "10.7.1.1/24", "10.9.9.9/32"):
        assert address in shown
    assert "fd00:7::1" not in shown
    assert a.run("wg", "show", "wg0", "listen-port").strip() == "51899"
    assert a.run("wg", "show", "wg0", "fwmark").strip() == "0x33"


def test_a_deleted_tunnel_leaves_nothing(linked: tuple[Site, Site, str, str, str]) -> None:
    a, _, _, _, _ = linked
    a.call("set_routes", prefixes=["10.20.0.0/16", "fd00:20::/48"])
    a.call("delete")
    assert not a.succeeds("ip", "link", "show", "wg0")
    assert a.data_planes() == []
    assert a.run("ls", "/run/wireguard") == ""
    assert "10.20" not in a.run("ip", "route", "show", "table", "all")
    assert "fd00:20" not in a.run("ip", "-6", "route", "show", "table", "all")
    assert "wg0" not in a.run("ip", "-6", "route", "show", "table", "all")
    a.call("delete")  # a second time is no error
    for call in ("peers", "add_peer"):
        with pytest.raises(Refused) as refused:
            a.call(call, **(peer(new_psk(), 2, new_psk()) if call == "add_peer" else {}))
        assert refused.value.name == "InterfaceMissing"


def test_a_lost_interface_is_told_and_made_anew_with_a_new_key(
    linked: tuple[Site, Site, str, str, str],
) -> None:
    a, b, key_a, key_b, psk = linked
    a.run("ip", "link", "delete", "wg0")
    with pytest.raises(Refused) as refused:
        a.call("set_psk", public_key=key_b, psk=new_psk())
    assert refused.value.name == "InterfaceMissing"
    with pytest.raises(Refused) as refused:
        a.call("set_routes", prefixes=["10.20.0.0/16"])
    assert refused.value.name == "InterfaceMissing"
    new = a.call("open", **spec(1))
    assert not new["adopted"]
    assert new["public_key"] != key_a
    assert a.call("peers") == {}
    b.call("replace_peer", old=key_a, **peer(new["public_key"], 1, psk))
    a.call("add_peer", **peer(key_b, 2, psk))
    assert a.ping(B).received == 1


def test_a_foreign_interface_is_refused_and_untouched(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    a.run("ip", "link", "add", "wg0", "type", "veth", "peer", "name", "wg0peer")
    for alias in ("", "somebody's", "vpnd:other"):
        a.run("ip", "link", "set", "wg0", "alias", alias)
        before = a.run("ip", "-d", "address", "show", "wg0")
        with pytest.raises(Refused) as refused:
            a.call("open", **spec(1))
        assert refused.value.name == "NotOurs"
        assert a.run("ip", "-d", "address", "show", "wg0") == before
    assert a.data_planes() == []


def test_a_tunnel_that_lost_its_alias_is_not_ours_any_more(
    linked: tuple[Site, Site, str, str, str],
) -> None:
    a, _, _, _, _ = linked
    a.run("ip", "link", "set", "wg0", "alias", "mine now")
    with pytest.raises(Refused) as refused:
        a.call("delete")
    assert refused.value.name == "NotOurs"
    assert a.ping(B).received == 1


def test_a_foreign_address_is_refused_before_anything_is_made(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    for address in ("192.0.2.1/24", "2001:db8::1/64"):
        with pytest.raises(Refused) as refused:
            a.call("open", **spec(1, addresses=[address]))
        assert refused.value.name == "NotOurs"
        assert "eth0" in str(refused.value)
        assert not a.succeeds("ip", "link", "show", "wg0")
    assert a.ping("192.0.2.2").received == 1


@contextmanager
def taken_port(site: Site, port: int) -> Iterator[None]:
    """A UDP port that another program of the site has."""
    take = f"import socket; s = socket.socket(2, 2); s.bind(('', {port})); print(1, flush=True)"
    holder = subprocess.Popen(
        site.command("python3", "-c", take + "; input()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "1\n"
    yield
    holder.communicate("\n")


def test_a_port_in_use_is_told_and_nothing_is_left(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    with taken_port(a, 51820), pytest.raises(Refused, match="51820: the UDP port is in use"):
        a.call("open", **spec(1))
    assert not a.succeeds("ip", "link", "show", "wg0")
    assert a.data_planes() == []
    assert a.call("open", **spec(1))["backend"] == BACKEND


def test_a_tunnel_keeps_its_port_when_the_new_one_is_in_use(
    linked: tuple[Site, Site, str, str, str],
) -> None:
    a, _, key_a, _, _ = linked
    with taken_port(a, 51899), pytest.raises(Refused, match="51899: the UDP port is in use"):
        a.call("open", **spec(1, listen_port=51899))
    assert a.ping(B).received == 1
    assert a.call("open", **spec(1))["public_key"] == key_a
