"""A mistake in one file, and the gateway is started again, as at a boot.

        fra-host ── fra ══ internet ══ ams ── ams-host      the link that is well
                              ║
                              └─────── lon ── lon-host      the link whose file is wrong

The capture is at `internet`: whatever a gateway lets out in the clear passes there.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from linking import THREE, linked
from offered import offered

from vpnd_lab.errors import CommandFailed
from vpnd_lab.lab import Lab
from vpnd_lab.patience import patient
from vpnd_lab.programs import program
from vpnd_lab.site import Site

pytestmark = pytest.mark.netns


def peers_dir(site: Site) -> Path:
    return site.config_path.parent / "peers.d"


def lon_file(site: Site) -> Path:
    return peers_dir(site) / "lon.toml"


def _typing_error(site: Site) -> None:
    file = lon_file(site)
    file.write_text(file.read_text().replace("identity =", "idendity ="))


def _mode(site: Site) -> None:
    lon_file(site).chmod(0o664)


def _no_tunnel_named(site: Site) -> None:
    file = lon_file(site)
    lines = [line for line in file.read_text().splitlines() if not line.startswith("tunnel")]
    file.write_text("\n".join(lines) + "\n")
    with site.config_path.open("a") as main:
        main.write('\n[tunnels.second]\ninterface = "wg9"\nlisten_port = 51899\n')


def _folder_gone(site: Site) -> None:
    peers_dir(site).rename(peers_dir(site).with_name("not-mounted"))


FAULTS: dict[str, Callable[[Site], None]] = {
    "typing error": _typing_error,
    "mode 0664": _mode,
    "no tunnel named": _no_tunnel_named,
    "folder gone": _folder_gone,
}


async def as_after_a_boot(site: Site) -> None:
    """Nothing of vpnd's is left in the kernel; then what the units do, up to the daemon."""
    if site.daemon is not None:
        await site.kill_daemon()
    await site.run(["sh", "-c", "ip link delete wg0; ip link delete wg9 2>/dev/null; "
                    "ip -4 route flush proto 157; ip -6 route flush proto 157; true"])  # fmt: skip
    vpnd = [program("vpnd"), "--config", str(site.config_path), "--guard-only"]
    with pytest.raises(CommandFailed) as told:
        await site.run(vpnd, seconds=60)
    assert told.value.returncode == 2
    print(told.value.stderr)


@asynccontextmanager
async def spoiled(lab: Lab, fault: Callable[[Site], None]) -> AsyncIterator[None]:
    """With the fault, and without it again."""
    fra = lab.site("fra")
    main = fra.config_path.read_text()
    kept = {file: file.read_text() for file in peers_dir(fra).iterdir()}
    fault(fra)
    try:
        yield
    finally:
        peers_dir(fra).mkdir(mode=0o755, exist_ok=True)
        fra.config_path.write_text(main)
        for file, text in kept.items():
            file.write_text(text)
            file.chmod(0o644)


async def test_nothing_leaves_in_the_clear_and_the_good_link_runs() -> None:
    async with linked(THREE) as lab:
        fra = lab.site("fra")
        async with (
            lab.capture("fra-host") as lan,
            offered(lab, "fra-host", "ams-host") as to_ams,
            offered(lab, "fra-host", "lon-host") as to_lon,
        ):
            await to_ams.wait_received(5)
            await to_lon.wait_received(5)
            for name, fault in FAULTS.items():
                print(f"--- {name}")
                async with spoiled(lab, fault):
                    await as_after_a_boot(fra)
                    # lon itself does send, through its tunnel; what it sends is not in the clear
                    async with lab.capture("internet") as underlay:
                        await fra.start_daemon()
                        if name != "folder gone":
                            await fra.wait_state("ams", "active")
                            await to_ams.wait_received(5)
                        before = (await lan.seen()).clear
                        await lan.wait(
                            lambda seen, before=before: seen.clear > before + 100,  # type: ignore[misc]
                            what="more traffic for both sites",
                        )
                        status = await fra.status()
                        await check_told(fra, status, name)
                        assert (await underlay.seen()).clear == 0
                # Mended, and a reload is all that it takes
                await fra.vpnctl("reload")
                for peer in ("ams", "lon"):
                    await fra.wait_state(peer, "active")
                assert (await fra.status())["configuration"]["state"] == "current"
            await to_lon.wait_received(5)


async def logged(site: Site, text: str) -> None:
    """Wait for it in the daemon's log."""
    with trio.fail_after(patient(60)):
        while text not in site.daemon_log.read_text():  # noqa: ASYNC110  # a file
            await trio.sleep(0.05)


async def check_told(fra: Site, status: dict[str, object], fault: str) -> None:
    """Status says first what is wrong, and that it is not what runs."""
    found = status["configuration"]
    assert isinstance(found, dict)
    assert found["state"] == "errors"
    gone = fault == "folder gone"
    assert {held["peer"] for held in found["held"]} == ({"ams", "lon"} if gone else {"lon"})
    named = [error["file"] for error in found["errors"]]
    assert str(peers_dir(fra) if gone else lon_file(fra)) in named
    vpnctl = [program("vpnctl"), "--config", str(fra.config_path)]
    shown = (await fra.run([*vpnctl, "status"])).stdout
    assert shown.startswith("what is on disk is not what runs: ")
    for arguments, code in ((["status", "--strict"], 4), (["status", "lon"], 4), (["check"], 2),
                            (["reload"], 2), (["reload", "--dry-run"], 2)):  # fmt: skip
        with pytest.raises(CommandFailed) as told:
            await fra.run([*vpnctl, *arguments])
        assert told.value.returncode == code, arguments
    # A refused reload changes nothing, and what failed at the start is told in the log
    log = fra.daemon_log.read_text()
    assert "configuration_wrong" in log
    assert "peer_held" in log


async def test_what_a_person_does_while_a_peer_is_held() -> None:
    """Repaired by a command, removed by one; and a folder that vanishes while the daemon runs."""
    async with linked(THREE) as lab:
        fra = lab.site("fra")
        async with spoiled(lab, _no_tunnel_named):
            await fra.stop_daemon()
            await fra.start_daemon()
            await fra.wait_state("ams", "active")
            await fra.vpnctl("peer", "set", "lon", "--tunnel", "backbone")
            await fra.wait_state("lon", "active")
            assert 'tunnel = "backbone"' in lon_file(fra).read_text()
            assert (await fra.status())["configuration"]["state"] == "current"
            # The same command moves a link that runs
            for tunnel in ("second", "backbone"):
                moved = await fra.vpnctl("peer", "set", "lon", "--tunnel", tunnel)
                assert moved["tunnel"] == tunnel
            await fra.wait_state("lon", "active")
        text = fra.config_path.read_text()
        # Everything vanishes under a running daemon: no reload takes that for a removal
        aside = peers_dir(fra).with_name("not-mounted")
        peers_dir(fra).rename(aside)
        for make in (False, True):
            if make:
                peers_dir(fra).mkdir(mode=0o755)
            with pytest.raises(CommandFailed, match="remove-all-peers"):
                await fra.vpnctl("reload")
            assert {link["state"] for link in (await fra.status())["links"]} == {"active"}
        assert fra.daemon is not None
        os.kill(fra.daemon.pid, signal.SIGHUP)
        await logged(fra, "reload_refused")
        peers_dir(fra).rmdir()
        aside.rename(peers_dir(fra))
        # A held peer that is removed by its name takes its guards along
        await fra.stop_daemon()
        _mode(fra)
        await fra.start_daemon()
        assert (await fra.link_status("lon"))["state"] == "down"
        lon = [str(prefix) for prefix in lab.site("lon").plan.prefixes("backbone")]
        await fra.vpnctl("peer", "remove", "lon")
        assert not lon_file(fra).exists()
        routes = (await fra.run(["sh", "-c", "ip -4 route; ip -6 route"])).stdout
        assert not [prefix for prefix in lon if f"unreachable {prefix.split('/')[0]}" in routes]
        # All of them, by an operator who says so
        for file in peers_dir(fra).iterdir():
            file.unlink()
        peers_dir(fra).rmdir()
        await fra.vpnctl("reload", "--remove-all-peers")
        assert (await fra.status())["links"] == []
        # The tunnel is in the file, also where there is one; and one file that is deleted is a
        # removal, also of the only peer
        identity = lab.site("lon").identity
        await fra.vpnctl("peer", "add", "lon", "--identity", identity, "--allow", lon[0])
        assert 'tunnel = "backbone"' in lon_file(fra).read_text()
        lon_file(fra).unlink()
        await fra.vpnctl("reload")
        assert (await fra.status())["links"] == []
        # A vpnd.toml that is spoiled: the last good one runs
        fra.config_path.write_text(text.replace("[node]", "[nod"))
        await fra.stop_daemon()
        await fra.start_daemon()
        status = await fra.status()
        assert status["configuration"]["main_is_last_good"]
        assert status["tunnels"][0]["error"] is None
