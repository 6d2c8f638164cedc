"""The daemon as a process: what it tells and does not tell, what it takes, how it stops."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, socket

import pytest
import trio

from vpnd_lab.errors import CommandFailed, DaemonFailed
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.patience import patient
from vpnd_lab.proof import same_preshared_key
from vpnd_lab.site import Site
from vpnd_lab.spec import LabSpec

pytestmark = pytest.mark.netns

BACKEND = os.environ.get("VPND_TEST_BACKEND", "userspace")
LAB_FILE = f"""
[sites.fra]
[sites.ams]
[tunnels.backbone]
backend = "{BACKEND}"
"""
PORT = 51821


def spec() -> LabSpec:
    return LabSpec.parse(LAB_FILE, name="daemon")


async def active(lab: Lab) -> None:
    for site, peer in (("fra", "ams"), ("ams", "fra")):
        await lab.site(site).wait_state(peer, "active")


async def secrets_of(site: Site) -> list[bytes]:
    """The keys of a site, as bytes: WireGuard's from the interface, the identity from its file."""
    own = (await site.run(["wg", "show", "wg0", "private-key"])).stdout.split()
    peers = (await site.run(["wg", "show", "wg0", "preshared-keys"])).stdout.splitlines()
    keys = [base64.b64decode(key) for key in (*own, *(line.split("\t")[1] for line in peers))]
    seed = (site.folder / "state" / "identity.key").read_text().split()[-1]
    return [key for key in [*keys, base64.b64decode(seed)] if any(key)]


async def test_no_secret_is_in_a_log_an_event_or_an_answer() -> None:
    async with open_lab(spec(), start="links") as lab:
        await active(lab)
        fra = lab.site("fra")
        told = []
        for arguments in (
            ("status",),
            ("status", "ams"),
            ("peer", "list"),
            ("peer", "show", "ams"),
        ):
            told.append(json.dumps(await fra.vpnctl(*arguments)))
        await fra.vpnctl("peer", "rekey", "ams")
        await fra.wait_link("ams", lambda s: s["counters"]["key_installed"] >= 2, what="renewed")
        secrets = await secrets_of(fra)
        assert len(secrets) >= 3
        public = await lab.site("ams").run(["wg", "show", "wg0", "peers"])
        told.append(fra.daemon_log.read_text())
        for folder in ("run", "etc"):
            told += [
                path.read_text(errors="replace")
                for path in (fra.folder / folder).rglob("*")
                if path.is_file()
            ]
        everything = "\n".join(told)
        # The search finds what is there: a public key stands in the status
        assert public.stdout.split()[0] in everything
        for secret in secrets:
            for form in (secret.hex(), base64.b64encode(secret).decode().rstrip("=")):
                assert form not in everything


async def test_the_process_can_be_neither_dumped_nor_read_by_others() -> None:
    async with open_lab(spec(), start="daemons") as lab:
        process = lab.site("fra").daemon
        assert process is not None
        limits = (await read(f"/proc/{process.pid}/limits")).splitlines()
        assert next(line for line in limits if "core file" in line).split()[4:6] == ["0", "0"]
        status = (await read(f"/proc/{process.pid}/status")).splitlines()
        locked = next(line for line in status if line.startswith("VmLck"))
        assert int(locked.split()[1]) > 0, "memory is not locked"
        mode = (lab.site("fra").control_socket).stat().st_mode
        assert mode & 0o777 == 0o600


async def read(path: str) -> str:
    return await trio.Path(path).read_text()


async def test_junk_on_the_port_changes_nothing() -> None:
    async with open_lab(spec(), start="links") as lab:
        await active(lab)
        fra = lab.site("fra")
        before = await fra.status()
        target = str(fra.address(4))
        code = (
            "import os, socket, sys\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "for n in range(3000):\n"
            "    size = (0, 1, 15, 33, 60, 88, 1232, 1233, 1400)[n % 9]\n"
            "    head = bytes((0x10 | n % 16, n % 4, 0, 1 + n % 6))\n"
            f"    s.sendto((head + os.urandom(1500))[:size], ({target!r}, {PORT}))\n"
        )
        await lab.site("ams").run(["python3", "-c", code])

        def counted(status: dict[str, int]) -> int:
            return sum(n for name, n in status.items() if name.startswith("rejected"))

        after = await fra.status()
        print(f"refused: {counted(after['counters']) - counted(before['counters'])} of 3000")
        assert after["links"][0]["state"] == "active"
        assert after["pid"] == before["pid"]
        await fra.vpnctl("peer", "rekey", "ams")
        await fra.wait_link(
            "ams",
            lambda status: (
                status["key_installed"]["key_id"] != before["links"][0]["key_installed"]["key_id"]
            ),
            what="renewed",
        )
        assert await same_preshared_key(lab, "fra", "ams")
        assert "internal_error" not in fra.daemon_log.read_text()


async def test_a_second_daemon_is_refused_and_the_first_goes_on() -> None:
    async with open_lab(spec(), start="daemons") as lab:
        fra = lab.site("fra")
        done = await fra.run(
            [str(vpnd()), "--config", str(fra.config_path)], check=False, seconds=30
        )
        assert done.returncode == 1
        assert "vpnd: error:" in done.stderr
        assert "Traceback" not in done.stderr
        assert (await fra.status())["node"] == "fra"


def vpnd() -> str:
    from vpnd_lab.programs import program

    return program("vpnd")


@pytest.mark.parametrize(
    ("what", "words"),
    [("identity readable by others", "identity.key"), ("nonsense in the file", "vpnd.toml")],
)
async def test_a_bad_start_is_told_and_touches_nothing(what: str, words: str) -> None:
    async with open_lab(spec(), start="network") as lab:
        fra = lab.site("fra")
        await fra.init()
        if what.startswith("identity"):
            (fra.folder / "state" / "identity.key").chmod(0o644)
        else:
            fra.config_path.write_text('[node]\nname = 5\nlisten = "nowhere"\n[tunnels.x]\n')
        with pytest.raises(DaemonFailed) as failed:
            await fra.start_daemon()
        assert words in str(failed.value)
        assert "Traceback" not in str(failed.value)
        links = (await fra.run(["ip", "-o", "link"])).stdout
        assert "wg0" not in links


async def test_ready_and_stopping_are_told_to_the_service_manager() -> None:
    async with open_lab(spec(), start="network") as lab:
        fra = lab.site("fra")
        await fra.init()
        path = fra.folder / "notify"
        with closing(socket(AF_UNIX, SOCK_DGRAM)) as manager:
            manager.bind(str(path))
            manager.setblocking(False)
            async with fra.background(
                [vpnd(), "--config", str(fra.config_path)], env={"NOTIFY_SOCKET": str(path)}
            ):
                with trio.fail_after(patient(30)):
                    await trio.lowlevel.wait_readable(manager)
                    assert b"READY=1" in manager.recv(4096)
                status = await fra.status()
                os.kill(status["pid"], signal.SIGTERM)
                with trio.fail_after(patient(30)):
                    await trio.lowlevel.wait_readable(manager)
                    assert b"STOPPING=1" in manager.recv(4096)


async def test_a_clean_stop_leaves_the_tunnel_and_a_removed_peer_leaves_nothing() -> None:
    async with open_lab(spec(), start="links") as lab:
        await active(lab)
        fra = lab.site("fra")
        ping = ["ping", "-c3", "-i0.2", "-W2", str(lab.node("ams-host").address(4))]
        await fra.stop_daemon()
        await lab.node("fra-host").run(ping)
        with pytest.raises(CommandFailed) as failed:
            await fra.vpnctl("status")
        assert failed.value.returncode == 3
        await fra.start_daemon()
        await fra.wait_state("ams", "active")
        await fra.vpnctl("peer", "remove", "ams")
        assert (await fra.run(["wg", "show", "wg0", "peers"])).stdout == ""
        routes = await fra.run(["ip", "route", "show", "proto", "157"])
        routes6 = await fra.run(["ip", "-6", "route", "show", "proto", "157"])
        assert routes.stdout + routes6.stdout == ""
        assert not list((fra.folder / "etc").rglob("ams.toml"))
        assert (await fra.vpnctl("peer", "list")) is not None


async def test_traffic_of_a_link_without_a_key_stays_in() -> None:
    """Before the first key, and with the interface gone, the guard routes hold the traffic."""
    async with open_lab(spec(), start="daemons") as lab:
        await lab.add_peer("fra", "ams")  # and ams does not know fra
        host, target = lab.node("fra-host"), str(lab.node("ams-host").address(4))
        refused = await host.run(["ping", "-c1", "-W2", target], check=False)
        assert refused.returncode != 0
        assert "nreachable" in refused.stdout
        await lab.site("fra").kill_daemon()
        await lab.site("fra").run(["ip", "link", "delete", "wg0"])
        refused = await host.run(["ping", "-c1", "-W2", target], check=False)
        assert "nreachable" in refused.stdout


FULL_STDERR = """
import os, sys
read, write = os.pipe()
os.set_blocking(write, False)
try:
    while True:
        os.write(write, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(write, True)
os.set_inheritable(read, True)  # nobody reads it, and it stays open
os.dup2(write, 2)
os.execv(sys.argv[1], sys.argv[1:])
"""


async def test_a_log_that_nobody_reads_stops_nothing() -> None:
    async with open_lab(spec(), start="links") as lab:
        await active(lab)
        fra = lab.site("fra")
        await fra.stop_daemon()
        vpnd = str(Path(sys.executable).parent / "vpnd")
        await fra.start_daemon(program=(sys.executable, "-c", FULL_STDERR, vpnd))
        await active(lab)
        before = await same_preshared_key(lab, "fra", "ams")
        assert before
        await fra.vpnctl("peer", "rekey", "ams")
        await fra.wait_link("ams", lambda status: status["state"] == "active", what="active")
        assert (await fra.vpnctl("status"))["pid"] > 0
        await fra.stop_daemon()
