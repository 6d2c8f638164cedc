"""Which backend carries a tunnel, and how wireguard-go is started, lost and found again.

Whether the kernel has WireGuard is asked of the kernel itself, so every test runs everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_tun_tunnel import new_psk, peer, spec
from tun_site import Refused, Site

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def alone() -> Iterator[Site]:
    with Site("a") as site:
        # Where the kernel has WireGuard, nothing may have asked for TUN yet.
        site.run("modprobe", "tun", check=False)
        yield site


@pytest.fixture
def site(alone: Site) -> Iterator[Site]:
    yield alone
    alone.clear()


@pytest.fixture(scope="module")
def kernel_has_wireguard(alone: Site) -> bool:
    if not alone.succeeds("ip", "link", "add", "probe", "type", "wireguard"):
        return False
    alone.run("ip", "link", "delete", "probe")
    return True


def kind(site: Site) -> str:
    shown = site.run("ip", "-d", "link", "show", "wg0")
    return "kernel" if "    wireguard" in shown else "userspace"


@pytest.mark.kernel
def test_auto_takes_the_kernel_where_it_has_wireguard(
    site: Site, kernel_has_wireguard: bool
) -> None:
    expected = "kernel" if kernel_has_wireguard else "userspace"
    assert site.call("open", **spec(1, backend="auto"))["backend"] == expected
    assert kind(site) == expected
    assert bool(site.data_planes()) != kernel_has_wireguard
    # What carries the tunnel already is as good.
    site.call("aclose")
    assert site.call("open", **spec(1, backend="auto"))["adopted"]


@pytest.mark.kernel
def test_auto_adopts_either(site: Site) -> None:
    key = site.call("open", **spec(1, backend="userspace"))["public_key"]
    site.call("aclose")
    adopted = site.call("open", **spec(1, backend="auto"))
    assert adopted == {"backend": "userspace", "public_key": key, "adopted": True}


@pytest.mark.kernel
def test_insisting_on_the_kernel_gets_it_or_says_what_to_install(
    site: Site, kernel_has_wireguard: bool
) -> None:
    running = site.call("open", **spec(1, backend="userspace"))
    site.call("add_peer", **peer(new_psk(), 2, new_psk()))
    planes = site.data_planes()
    if kernel_has_wireguard:
        site.call("aclose")
        other = site.call("open", **spec(1, backend="kernel"))
        assert other["backend"] == kind(site) == "kernel"
        assert not other["adopted"]
        assert other["public_key"] != running["public_key"]
        assert site.data_planes() == []
        back = site.call("open", **spec(1, backend="userspace"))
        assert back["backend"] == kind(site) == "userspace"
        return
    with pytest.raises(Refused, match="apt-get install linux-image") as refused:
        site.call("open", **spec(1, backend="kernel"))
    assert refused.value.name == "BackendUnavailable"
    assert site.data_planes() == planes, "the running one was left alone"
    assert site.call("open", **spec(1))["public_key"] == running["public_key"]
    assert len(site.call("peers")) == 1


def test_insisting_on_userspace_without_the_program_says_what_to_install(site: Site) -> None:
    site.call("set_path", path="/nonexistent")
    with pytest.raises(Refused, match="apt-get install wireguard-go") as refused:
        site.call("open", **spec(1, backend="userspace"))
    site.call("set_path", path=None)
    assert refused.value.name == "BackendUnavailable"
    assert not site.succeeds("ip", "link", "show", "wg0")


def test_wireguard_go_is_nobodys_child_and_knows_nothing_of_the_daemon(site: Site) -> None:
    site.call("open", **spec(1, backend="userspace"))
    (line,) = site.data_planes()
    pid = line.split()[0]
    session, parent = site.run("ps", "-o", "sid=,ppid=", "-p", pid).split()
    assert session not in (site.run("ps", "-o", "sid=", "-p", str(site.call("pid"))).strip(), "0")
    assert parent == "1"
    environment = site.run("sh", "-c", f"tr '\\0' '\\n' < /proc/{pid}/environ")
    names = {entry.partition("=")[0] for entry in environment.split()}
    assert names == {
        "PATH", "WG_TUN_FD", "WG_UAPI_FD", "WG_PROCESS_FOREGROUND", "LOG_LEVEL", "GOTRACEBACK",
    }  # fmt: skip
    assert site.run("readlink", f"/proc/{pid}/cwd").strip() == "/"
    assert site.run("readlink", f"/proc/{pid}/fd/0").strip() == "/dev/null"
    assert "memfd:" in site.run("readlink", f"/proc/{pid}/fd/2")
    assert site.run("stat", "-c", "%a", "/run/wireguard/wg0.sock").strip() == "600"


def test_a_killed_wireguard_go_is_told_and_started_anew(site: Site) -> None:
    first = site.call("open", **spec(1, backend="userspace"))
    site.run("kill", "-KILL", site.data_planes()[0].split()[0])
    with pytest.raises(Refused) as refused:
        site.call("peers")
    assert refused.value.name == "InterfaceMissing"
    assert site.run("ls", "/run/wireguard").strip() == "wg0.sock", "left behind by the process"
    second = site.call("open", **spec(1, backend="userspace"))
    assert not second["adopted"]
    assert second["public_key"] != first["public_key"]
    site.call("delete")
    assert site.run("ls", "/run/wireguard") == ""


def test_a_wireguard_go_that_cannot_be_reached_is_replaced(site: Site) -> None:
    """Its socket file is gone; our alias on its interface says whose it is."""
    first = site.call("open", **spec(1, backend="userspace"))
    site.run("rm", "/run/wireguard/wg0.sock")
    second = site.call("open", **spec(1, backend="userspace"))
    assert not second["adopted"]
    assert second["public_key"] != first["public_key"]
    assert len(site.data_planes()) == 1
    assert site.call("peers") == {}


def test_the_socket_of_another_namespace_is_not_taken(site: Site) -> None:
    site.run("ip", "netns", "add", "other")
    site.run("ip", "netns", "exec", "other", "wireguard-go", "wg0")
    planes = site.data_planes()
    assert len(planes) == 1
    with pytest.raises(Refused, match="another network namespace") as refused:
        site.call("open", **spec(1, backend="userspace"))
    assert refused.value.name == "NotOurs"
    assert site.data_planes() == planes
    assert site.run("ls", "/run/wireguard").strip() == "wg0.sock"
    assert not site.succeeds("ip", "link", "show", "wg0")
    site.run("ip", "-n", "other", "link", "delete", "wg0")
    site.run("ip", "netns", "delete", "other")


def test_a_foreign_wireguard_go_is_refused_and_untouched(site: Site) -> None:
    site.run("wireguard-go", "wg0")
    planes = site.data_planes()
    for backend in ("auto", "userspace"):
        with pytest.raises(Refused) as refused:
            site.call("open", **spec(1, backend=backend))
        assert refused.value.name == "NotOurs"
    assert site.data_planes() == planes
    assert "public key" not in site.run("wg", "show", "wg0"), "it got no key"


@pytest.mark.kernel
def test_a_half_made_kernel_interface_is_made_again(site: Site, kernel_has_wireguard: bool) -> None:
    """What a daemon leaves that is killed between an interface's creation and its alias."""
    if not kernel_has_wireguard:  # a link that only looks like one
        site.run("ip", "link", "add", "wg0", "group", str(0x76706E64), "type", "veth")
        with pytest.raises(Refused) as refused:
            site.call("open", **spec(1, backend="auto"))
        assert refused.value.name == "NotOurs"
        return
    site.run("ip", "link", "add", "wg0", "group", str(0x76706E64), "type", "wireguard")
    made = site.call("open", **spec(1, backend="kernel"))
    assert not made["adopted"]
    assert "group default" in site.run("ip", "link", "show", "wg0")
    site.call("aclose")
    # Between alias and key: ours by its alias, and given a key.
    site.run("ip", "link", "delete", "wg0")
    site.run("ip", "link", "add", "wg0", "type", "wireguard")
    site.run("ip", "link", "set", "wg0", "alias", "vpnd:test")
    made = site.call("open", **spec(1, backend="kernel"))
    assert not made["adopted"]
    assert site.run("wg", "show", "wg0", "listen-port").strip() == "51820"
