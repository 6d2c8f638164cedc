"""A tunnel whose interface lives in another network namespace, its UDP socket outside.

        ┌──────────── a ───────────┐                  ┌──────────── b ───────────┐
        │ ┌───────── blue ───────┐ │                  │                          │
        │ │ wg0  10.7.0.1        │ │                  │ wg0  10.7.0.2            │
        │ └──────────────────────┘ │                  │                          │
        │ eth0 192.0.2.1           ├──────────────────┤ eth0 192.0.2.2           │
        └──────────────────────────┘                  └──────────────────────────┘

Each test runs twice: as root, who enters the namespace himself, and as a user with CAP_NET_ADMIN
alone, who asks the helper.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from test_tun_tunnel import A, B, new_psk, peer, spec
from tun_site import Refused, Site

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

USER = "65534"
ONE_CAPABILITY = (
    "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs",
    "--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin",
    "--bounding-set=-all,+net_admin",
)  # fmt: skip
INSIDE = ("ip", "netns", "exec", "blue")


@pytest.fixture(params=["root", pytest.param("helper", marks=pytest.mark.kernel)])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param == "root":
        with Site("a") as site:
            yield site
        return
    with unprivileged() as site, helper_of(site):
        yield site


@contextmanager
def unprivileged() -> Iterator[Site]:
    with Site("a", driver_runs_by=ONE_CAPABILITY) as site:
        # In the emulator nothing has asked for it yet, and such a user may not load it
        site.run("modprobe", "tun", check=False)
        site.run("chown", USER, "/run/wireguard")
        yield site


@contextmanager
def helper_of(site: Site) -> Iterator[subprocess.Popen[str]]:
    unit = site.python("nsfd_unit.py")
    assert unit.stdin is not None
    assert unit.stdout is not None
    with unit.stdin, unit.stdout:
        try:
            assert unit.stdout.readline() == "ready\n"
            yield unit
        finally:
            unit.terminate()
            unit.wait()


def test_it_carries_traffic_and_is_adopted(site: Site) -> None:
    site.run("ip", "netns", "add", "blue")
    with Site("b") as other:
        site.connect(other, 1)
        site.call("set_guards", prefixes=["10.20.0.0/16", "fd00:20::/48"], netns="blue")
        made = site.call("open", **spec(1, netns="blue", mtu=1380))
        theirs = other.call("open", **spec(2))["public_key"]
        psk = new_psk()
        other.call("add_peer", **peer(made["public_key"], 1, psk))
        site.call("add_peer", **peer(theirs, 2, psk))
        site.call("set_routes", prefixes=["10.20.0.0/16", "fd00:20::/48", "10.7.0.2/32"])

        pinged = site.run(*INSIDE, "ping", "-q", "-n", "-c3", "-i0.2", "-W10", B)
        assert " 3 received" in pinged
        assert other.ping(A).received == 1

        assert not site.succeeds("ip", "link", "show", "wg0"), "it is in the namespace alone"
        assert "mtu 1380" in site.run(*INSIDE, "ip", "link", "show", "wg0")
        assert ":51820 " in site.run("ss", "-Hulna")
        assert site.run(*INSIDE, "ss", "-Hulna") == "", "its socket is outside"
        assert not site.succeeds(*INSIDE, "ping", "-c1", "-W1", "192.0.2.2"), "no underlay inside"
        for family, prefix in (("-4", "10.20.0.0/16"), ("-6", "fd00:20::/48")):
            shown = site.run(*INSIDE, "ip", family, "route")
            assert f"{prefix} dev wg0 proto 157" in shown
            assert f"unreachable {prefix}" in shown
            outside = site.run("ip", family, "route", "show", "table", "all")
            assert prefix not in outside
            assert "wg0" not in outside

        site.kill_driver()
        assert site.call("open", **spec(1, netns="blue", mtu=1380)) == {**made, "adopted": True}
        assert " 1 received" in site.run(*INSIDE, "ping", "-q", "-c1", "-W10", B)
        site.call("delete")
        assert not site.succeeds(*INSIDE, "ip", "link", "show", "wg0")
        assert site.data_planes() == []


def test_the_driver_of_the_other_tests_has_one_capability() -> None:
    with unprivileged() as site:
        status = site.run("cat", f"/proc/{site.call('pid')}/status")
        assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}\n" in status
        for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
            assert f"Cap{kind}:\t0000000000001000\n" in status
        site.run("ip", "netns", "add", "blue")
        for call, values in (
            ("open", spec(1, netns="blue")),
            ("set_guards", {"prefixes": ["10.20.0.0/16"], "netns": "blue"}),
        ):
            with pytest.raises(
                Refused, match=r"systemctl enable --now vpnd-nsfd\.socket"
            ) as refused:
                site.call(call, **values)
            assert refused.value.name == "NamespaceOutOfReach"


def test_a_namespace_that_is_not_there_changes_nothing(site: Site) -> None:
    for _ in range(2):
        with pytest.raises(Refused, match="ip netns add blue") as refused:
            site.call("open", **spec(1, netns="blue"))
        assert refused.value.name == "NamespaceMissing"
        # As `ip netns` leaves it where it was cut short: a file, and nothing behind it
        site.run("mkdir", "-p", "/run/netns")
        site.run("install", "-m", "0", "/dev/null", "/run/netns/blue")
    site.run("rm", "/run/netns/blue")
    site.run("ln", "-s", "/proc/1/ns/net", "/run/netns/blue")
    with pytest.raises(Refused, match="ip netns attach blue"):
        site.call("open", **spec(1, netns="blue"))
    assert not site.succeeds("ip", "link", "show", "wg0")
    assert site.data_planes() == []


def test_a_namespace_that_is_made_anew_gets_another_interface(site: Site) -> None:
    """The old one is kept alive by a process: its interface has to go all the same, and its port
    with it."""
    site.run("ip", "netns", "add", "blue")
    made = site.call("open", **spec(1, netns="blue"))
    with subprocess.Popen(
        site.command(*INSIDE, "sh", "-c", "echo ready; exec cat"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as inmate:  # fmt: skip
        assert inmate.stdout is not None
        assert inmate.stdout.readline() == "ready\n"
        site.run("ip", "netns", "delete", "blue")
        with pytest.raises(Refused, match="namespace blue was deleted") as refused:
            site.call("peers")
        assert refused.value.name == "InterfaceMissing"
        site.call("aclose")
        site.run("ip", "netns", "add", "blue")
        again = site.call("open", **spec(1, netns="blue"))
        assert not again["adopted"]
        assert again["public_key"] != made["public_key"]
        inmate.kill()


def test_what_is_left_outside_goes(site: Site) -> None:
    """From before the tunnel was to live in a namespace, or of a daemon that was killed just
    before the move."""
    site.run("ip", "netns", "add", "blue")
    made = site.call("open", **spec(1))
    site.kill_driver()
    again = site.call("open", **spec(1, netns="blue"))
    assert not again["adopted"]
    assert again["public_key"] != made["public_key"]
    assert not site.succeeds("ip", "link", "show", "wg0")
    assert site.succeeds(*INSIDE, "ip", "link", "show", "wg0")


def test_somebody_elses_interface_in_the_namespace_is_left_alone(site: Site) -> None:
    site.run("ip", "netns", "add", "blue")
    site.run(*["ip", "-n", "blue", "link", "add", "wg0", "type", "veth", "peer", "name", "other"])
    with pytest.raises(Refused, match="without an alias") as refused:
        site.call("open", **spec(1, netns="blue"))
    assert refused.value.name == "NotOurs"
    assert "veth" in site.run("ip", "-d", "-n", "blue", "link", "show", "wg0")
