"""Labs as networks: what is built, what is seen from inside, and that nothing is left of it.

fra-host ── fra ── internet ── ams ── ams-host
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest
import trio

from vpnd_lab import CommandFailed, Lab, LabError, LabSpec, WaitTimeout, open_lab
from vpnd_lab.pytest_plugin import LabFactory
from vpnd_lab.state import find, lab_root
from vpnd_lab.teardown import members

pytestmark = pytest.mark.netns

TWO_SITES = "[sites.fra]\n[sites.ams]\n"


def host_view() -> dict[str, str]:
    """What a lab must not change on the host."""
    interfaces = set(os.listdir("/sys/class/net"))
    return {
        "interfaces of a lab": str(interfaces & {"internet", "fra", "ams", "fra-host", "ams-host"}),
        "hostname": Path("/proc/sys/kernel/hostname").read_text(),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "forwarding of IPv6": Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text(),
        "mounts": str([m for m in Path("/proc/self/mounts").read_text().split() if "lab" in m]),
    }


async def ping(lab: Lab, source: str, address: object, *, patience: float = 5) -> None:
    await lab.node(source).run(["ping", "-c1", f"-W{patience}", str(address)])


@pytest.mark.parametrize("family", [4, 6])
async def test_sites_reach_each_other_and_hosts_their_gateway(
    lab_factory: LabFactory, family: Literal[4, 6]
) -> None:
    async with lab_factory(TWO_SITES) as lab:
        await ping(lab, "fra", lab.site("ams").address(family))
        await ping(lab, "ams", lab.site("fra").address(family))
        gateway = next(a for a in lab.site("fra").addresses[2:] if a.version == family)
        await ping(lab, "fra-host", gateway.ip)
        # No tunnel yet: the router has no route to what is behind the other site.
        with pytest.raises(CommandFailed) as caught:
            await ping(lab, "fra-host", lab.node("ams-host").address(family), patience=0.2)
        assert caught.value.returncode == 1


async def test_nothing_on_the_host_is_changed_and_nothing_is_left() -> None:
    before = host_view()
    async with open_lab(LabSpec.parse(TWO_SITES)) as lab:
        assert host_view() == before
        assert [state.name for state in find(lab_root())].count(lab.name) == 1
        (state,) = (state for state in find(lab_root()) if state.name == lab.name)
        assert len(members(state)) == 5
        await lab.node("fra").run(["sh", "-c", "setsid sleep 1000 < /dev/null > /dev/null 2>&1 &"])
        assert len(members(state)) == 6
    assert members(state) == set()
    assert not lab.folder.exists()
    assert host_view() == before


async def test_a_failing_block_leaves_nothing(lab_factory: LabFactory) -> None:
    with pytest.raises(ZeroDivisionError):
        async with lab_factory(TWO_SITES) as lab:
            _ = 1 // 0
    assert not lab.folder.exists()


async def test_a_cancelled_block_leaves_nothing(lab_factory: LabFactory) -> None:
    with trio.CancelScope() as scope:
        async with lab_factory(TWO_SITES) as lab:
            scope.cancel()
            await trio.sleep(math.inf)
    assert scope.cancelled_caught
    assert not lab.folder.exists()


async def test_two_labs_of_one_file_side_by_side(lab_factory: LabFactory) -> None:
    async with lab_factory(TWO_SITES) as one, lab_factory(TWO_SITES) as two:
        assert one.name != two.name
        for lab in (one, two):
            await ping(lab, "fra", lab.site("ams").address(6))
        # The same names and addresses, and yet two: a socket in one is not in the other.
        (one.folder / "fra/run/vpnd/mine").touch()
        there = await two.site("fra").run(["ls", "/run/vpnd"])
        assert there.stdout == ""
        await one.node("internet").run(["ip", "link", "set", "dev", "ams", "down"])
        await ping(two, "fra", two.site("ams").address(4))


async def test_the_site_has_run_hostname_and_interfaces_of_its_own(lab_factory: LabFactory) -> None:
    async with lab_factory(TWO_SITES) as lab:
        site = lab.site("fra")
        assert (await site.run(["hostname"])).stdout == "fra\n"
        seen = (await site.run(["ls", "/sys/class/net"])).stdout.split()
        assert sorted(seen) == ["fra-host", "internet", "lo"]
        await site.run(["sh", "-c", "echo x > /var/run/wireguard/wg0.name; echo y > /run/vpnd/f"])
        assert (site.folder / "run/wireguard/wg0.name").read_text() == "x\n"
        assert (site.folder / "run/vpnd/f").read_text() == "y\n"
        # The lab's folder is where it was, so that the site's files have one path.
        await site.run(["test", "-f", str(lab.folder / "state.json")])


async def test_commands_have_stdin_exit_codes_and_limits(lab_factory: LabFactory) -> None:
    async with lab_factory("[sites.fra]\nhosts = []") as lab:
        site = lab.site("fra")
        assert (await site.run(["cat"], stdin="hällo")).stdout == "hällo"
        assert (await site.run(["sh", "-c", "exit 7"], check=False)).returncode == 7
        with pytest.raises(CommandFailed, match=r"(?s)in fra, `sh -c .* exited with 3.*    why"):
            await site.run(["sh", "-c", "echo why >&2; exit 3"])
        with pytest.raises(WaitTimeout, match="sleep 1000"):
            await site.run(["sleep", "1000"], seconds=0.05)
        with pytest.raises(LabError, match=r"no node nowhere .*fra, internet"):
            lab.node("nowhere")
        with pytest.raises(LabError, match="internet is a router"):
            lab.site("internet")


async def test_a_daemon_that_ends_is_quoted(lab_factory: LabFactory) -> None:
    async with lab_factory("[sites.fra]\nhosts = []") as lab:
        site = lab.site("fra")
        site.config_path.write_text("this is no configuration")
        with pytest.raises(LabError, match="daemon of fra ended before it answered") as caught:
            await site.start_daemon()
        said = site.daemon_log.read_text().strip().splitlines()
        assert said
        assert said[-1] in str(caught.value)
        assert site.daemon is None


async def test_three_routers_in_a_row_and_a_small_mtu(lab_factory: LabFactory) -> None:
    text = """
        [routers.r1]
        neighbours = ["r2"]
        [routers.r2]
        [routers.r3]
        neighbours = ["r2"]
        [sites.fra.uplinks.r1]
        mtu = 1280
        [sites.ams]
        uplinks = ["r3"]
        """
    async with lab_factory(text) as lab:
        for family in (4, 6):
            address = lab.site("fra").address(4 if family == 4 else 6)
            await ping(lab, "ams", address)
        ping_big = ["ping", "-c1", "-W1", "-Mdo", "-s1400", str(lab.site("ams").address(4))]
        with pytest.raises(CommandFailed, match="mtu"):
            await lab.site("fra").run(ping_big)


async def test_lab_of_twelve_sites_is_built(lab_factory: LabFactory) -> None:
    text = "".join(f"[sites.s{n}]\n" for n in range(12))
    started = time.monotonic()
    async with lab_factory(text) as lab:
        print(f"25 nodes in {time.monotonic() - started:.2f} s")
        await ping(lab, "s0", lab.site("s11").address(6))


def test_without_root_there_is_a_reason() -> None:
    program = """if True:
        import trio, vpnd_lab
        async def main():
            async with vpnd_lab.open_lab(vpnd_lab.LabSpec.parse("[sites.a]")):
                pass
        trio.run(main)
    """
    # The checkout may lie where only root may go: in a mount namespace it lies elsewhere as well
    checkout, visible = Path(__file__).resolve().parent.parent, "/mnt"
    done = subprocess.run(
        [
            *(
                "unshare",
                "--mount",
                "sh",
                "-c",
                f'mount --rbind {checkout} {visible} && exec "$0" "$@"',
            ),
            *("setpriv", "--reuid=65534", "--clear-groups"),
            *(os.path.realpath("/proc/self/exe"), "-c", program),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": ":".join(path.replace(str(checkout), visible) for path in sys.path),
        },
    )
    assert "a lab needs root, for its network namespaces (run it with sudo)" in done.stderr
