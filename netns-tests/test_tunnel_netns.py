"""Two tunnels of one daemon, one with its interface in a network namespace.

            ┌───── fra ─────┐
internet ═══╪═ UDP          │    links: fra ── ams over `backbone`, which is in `blue`
   ║  ║     │ ┌─── blue ──┐ │           fra ── ber over `second`, which is not
   ║  ║     │ │ wg0       │ │
   ║  ║     │ └───────────┘ │
   ║  ║     │   wg1         │
   ║  ║     └───────────────┘
   ║  ╚══ ams ── ams-host
   ╚═════ ber ── ber-host
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from tun_site import Site as Host

from tun.namespace import HELPER_SOCKET
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.meter import Meter, open_meter
from vpnd_lab.node import Node
from vpnd_lab.patience import patient
from vpnd_lab.proof import (
    HANDSHAKE_SECONDS,
    in_force,
    installed,
    prove,
    wait_in_force,
    wait_new_key,
)
from vpnd_lab.site import Site
from vpnd_lab.spec import LabSpec

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

BACKEND = os.environ.get("VPND_TEST_BACKEND", "userspace")
INSIDE = ("ip", "netns", "exec", "blue")
GUARD = "metric 4294967294"
WEAK = ("--inh-caps=-all,+net_admin", "--bounding-set=-all,+net_admin")
"""The daemon's one capability, as its unit has it."""
SILENT = f"""
import signal, socket
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
    listener.bind({str(HELPER_SOCKET)!r})
    listener.listen()
    print("ready", flush=True)
    signal.pause()
"""
LAB = f"""
[sites.fra]
[sites.ams]
[sites.ber]
[tunnels.backbone]
backend = "{BACKEND}"
[tunnels.second]
interface = "wg1"
listen_port = 51830
networks = ["10.254.0.0/24", "fd00:254::/64"]
backend = "{BACKEND}"
[[links]]
sites = ["fra", "ams"]
tunnel = "backbone"
[[links]]
sites = ["fra", "ber"]
tunnel = "second"
"""


class Inside(Node):
    """What is in the namespace `blue` of a site."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.name, site._state, site._plan)
        self.within = INSIDE


@asynccontextmanager
async def configured() -> AsyncIterator[Lab]:
    """Sites with an identity and a configuration; no daemon runs, and there is no namespace yet."""
    async with open_lab(LabSpec.parse(LAB, name="netns")) as lab:
        for site in lab.sites.values():
            await site.init()
        config = lab.site("fra").config_path
        text = config.read_text()
        assert text.count("[tunnels.backbone]\n") == 1
        config.write_text(
            text.replace("[tunnels.backbone]\n", "[tunnels.backbone]\nnetns = 'blue'\n")
        )
        yield lab


@asynccontextmanager
async def lab_with_netns() -> AsyncIterator[Lab]:
    """Daemons that know of each other; the namespace itself is not there yet."""
    async with configured() as lab:
        for site in lab.sites.values():
            await site.start_daemon()
        await lab.link("fra", "ams")
        await lab.link("fra", "ber")
        yield lab


@asynccontextmanager
async def counted(lab: Lab) -> AsyncIterator[Meter]:
    """Traffic between `blue` and the host behind ams."""
    fra, host = lab.site("fra"), lab.node("ams-host")
    addresses = fra.tunnel_address(tunnel="backbone"), host.address()
    async with open_meter(Inside(fra), host, addresses=addresses, rate=50, size=200) as meter:
        await meter.wait_received(20)
        yield meter


async def wait_tunnel(site: Site, tunnel: str, *, error: str | None, seconds: float = 60) -> None:
    """Wait until a tunnel is open (None), or its error has these words."""
    found = "not asked yet"
    with trio.move_on_after(patient(seconds)):
        while True:
            statuses = {one["tunnel"]: one for one in (await site.status())["tunnels"]}
            found = statuses[tunnel]["error"]
            if found == error or (error is not None and error in (found or "")):
                return
            await trio.sleep(0.1)
    raise AssertionError(f"tunnel {tunnel}: {found}, and not {error}")


async def require_all_inside(lab: Lab) -> None:
    """Interface, routes and guards are in the namespace; the socket, and no more, is outside."""
    fra = lab.site("fra")
    inside, outside = Inside(fra), fra
    lan = next(str(prefix) for prefix in lab.site("ams").plan.lan if prefix.version == 4)
    routes = (await inside.run(["ip", "route"])).stdout
    assert f"{lan} dev wg0 proto 157" in routes
    guards = [line for line in routes.splitlines() if line.startswith(f"unreachable {lan}")]
    assert len(guards) == 1
    assert GUARD in guards[0]
    assert lan in (await inside.run(["nft", "list", "table", "inet", "vpnd-wg0"])).stdout
    assert "vpnd-wg0" not in (await outside.run(["nft", "list", "tables"])).stdout
    underlay = str(lab.site("ams").address())
    reached = await inside.run(["ip", "route", "get", underlay], check=False)
    assert reached.returncode != 0, f"{underlay} can be reached from the namespace"
    assert (await inside.run(["ss", "-Hulna"])).stdout.count(":51820 ") == 0
    assert ":51820 " in (await outside.run(["ss", "-Hulna"])).stdout
    assert lan not in (await outside.run(["ip", "route", "show", "table", "all"])).stdout
    links = json.loads((await outside.run(["ip", "-j", "link"])).stdout)
    names = {link["ifname"] for link in links}
    assert "wg0" not in names
    assert "wg1" in names


@pytest.mark.kernel
async def test_a_namespace_that_comes_later_and_a_restart_without_loss() -> None:
    async with lab_with_netns() as lab:
        fra = lab.site("fra")
        # One tunnel waits, and says for what; the other one does not mind
        await wait_tunnel(fra, "backbone", error="ip netns add blue")
        assert "namespace blue" in (await fra.link_status("ams"))["reason"]
        await fra.wait_state("ber", "active")
        await fra.run(["ip", "netns", "add", "blue"])
        await fra.wait_state("ams", "active")
        await require_all_inside(lab)
        (shown,) = (one for one in (await fra.status())["tunnels"] if one["netns"] == "blue")
        assert (shown["tunnel"], shown["error"]) == ("backbone", None)

        async with counted(lab) as meter:
            before = await installed(lab, "fra", "ams")
            old = await in_force(lab, "fra", "ams")
            await fra.kill_daemon(signal.SIGKILL)
            await meter.wait_received(50)
            await fra.start_daemon()
            adopted = {one["tunnel"]: one["adopted"] for one in (await fra.status())["tunnels"]}
            assert adopted == {"backbone": True, "second": True}
            await wait_new_key(lab, "fra", "ams", before=before)
            key = await wait_in_force(lab, "fra", "ams", before=old, seconds=HANDSHAKE_SECONDS)
            await meter.wait_received(50)
            traffic = await meter.stop()
            print(
                f"SIGKILL with an interface in another namespace, {BACKEND}: {traffic.sent} sent, "
                f"{traffic.lost} lost, {traffic.repeated} repeated, {before} -> {key}"
            )
            assert traffic.lost == traffic.repeated == 0
            assert await prove(lab, "fra", "ams", traffic) == key
        await require_all_inside(lab)


async def test_a_namespace_that_is_made_anew() -> None:
    async with lab_with_netns() as lab:
        fra = lab.site("fra")
        await fra.run(["ip", "netns", "add", "blue"])
        await fra.wait_state("ams", "active")
        await fra.wait_state("ber", "active")
        other = lab.traffic("fra-host", "ber-host", rate=50)
        async with other as meter:
            await meter.wait_received(20)
            await fra.run(["ip", "netns", "delete", "blue"])
            await wait_tunnel(fra, "backbone", error="ip netns add blue")
            assert (await fra.link_status("ams"))["state"] == "down"
            gone = trio.current_time()
            await fra.run(["ip", "netns", "add", "blue"])
            await wait_tunnel(fra, "backbone", error=None)
            await fra.wait_state("ams", "active")
            print(f"active again {trio.current_time() - gone:.1f} s after the namespace was there")
            await require_all_inside(lab)
            async with counted(lab) as through:
                await through.wait_received(50)
            traffic = await meter.stop()
        assert traffic.lost == traffic.repeated == 0, "the other tunnel's"


@asynccontextmanager
async def helper(site: Site, *argv: str) -> AsyncIterator[None]:
    """Somebody who listens where vpnd-nsfd would; gone with the block, and the socket with it."""
    async with site.background([sys.executable, *argv]) as process:
        assert process.stdout is not None
        assert (await process.stdout.receive_some()).startswith(b"ready")
        yield
    await site.run(["rm", str(HELPER_SOCKET)])


async def test_a_helper_that_stands_still_holds_up_nobody_else() -> None:
    """A daemon that needs it starts, and takes changes of peers, while it does not answer; and
    opens the tunnel as soon as it does."""
    took: dict[str, float] = {}

    async def timed(name: str, work: Awaitable[object]) -> None:
        began = trio.current_time()
        await work
        took[name] = trio.current_time() - began

    async with configured() as lab:
        fra = lab.site("fra")
        await fra.run(["ip", "netns", "add", "blue"])
        for name in ("ams", "ber"):
            await lab.site(name).start_daemon()
        weak = ["setpriv", *WEAK, str(Path(sys.executable).with_name("vpnd"))]
        async with helper(fra, "-c", SILENT):
            await timed("start", fra.start_daemon(program=weak))
            await timed("add, in its own namespace", lab.link("fra", "ber"))
            await fra.wait_state("ber", "active")
            await timed("add, in the other one", lab.link("fra", "ams"))
            await timed("remove", fra.vpnctl("peer", "remove", "ams"))
            await timed("add again", lab.add_peer("fra", "ams"))
            await timed("reload", fra.vpnctl("reload"))
            assert (await fra.link_status("ams"))["state"] == "down"
            assert (await fra.link_status("ber"))["state"] == "active"
        print("".join(f"{name}: {seconds:.1f} s\n" for name, seconds in took.items()))
        assert max(took.values()) < patient(30), "and not the minute that vpnd-nsfd may take"
        said = fra.daemon_log.read_text()
        assert said.count('"guard_failed"') <= 1, "told once, and not at every try"
        async with helper(fra, str(Path(__file__).with_name("nsfd_unit.py"))):
            await fra.run(["chown", "0", str(HELPER_SOCKET)])  # the user of this daemon
            await fra.wait_state("ams", "active", seconds=90)
            await require_all_inside(lab)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Outside of /run, which a host of its own has for itself, and where the guest's /tmp lies."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def test_without_a_way_into_namespaces_the_configuration_is_refused(folder: Path) -> None:
    config = folder / "vpnd.toml"
    config.write_text(
        '[node]\nname = "fra"\n'
        f'state_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
        '[tunnels.backbone]\ninterface = "wg0"\nlisten_port = 51820\nnetns = "blue"\n'
    )
    config.chmod(0o644)
    (folder / "peers.d").mkdir(mode=0o755)
    limits = ("setpriv", *WEAK)
    with Host("weak") as host:
        # A start goes on with the tunnels that it can have (docs/decisions/0021)
        for program, arguments in (("vpnd", ["--check"]), ("vpnctl", ["check"])):
            for limit, status in ((limits, 2), ((), 0)):
                command = [str(Path(sys.executable).with_name(program)), "--config", str(config)]
                done = subprocess.run(
                    host.command(*limit, *command, *arguments),
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert done.returncode == status, done.stderr
                assert ("tunnels.backbone.netns" in done.stderr) == bool(limit)
                assert ("enable --now vpnd-nsfd.socket" in done.stderr) == bool(limit)
