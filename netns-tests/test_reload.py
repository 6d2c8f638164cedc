"""What changes while the daemon runs: reload, peers changed live, a second carrier, rotation.

        fra-host ── fra ══ internet ══ ams ── ams-host
                     └───── wg0 ───────┘

Traffic is counted by sequence numbers. That a link was left alone shows in two ways: nothing of
it was lost, and its counters and its WireGuard peer are what they were.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from linking import settled
from report import Case

from vpnd_lab.errors import CommandFailed
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.meter import Meter, Report
from vpnd_lab.patience import patient
from vpnd_lab.proof import (
    HANDSHAKE_SECONDS,
    KeyPair,
    in_force,
    installed,
    same_preshared_key,
    wait_in_force,
    wait_new_key,
)
from vpnd_lab.site import Site
from vpnd_lab.spec import LabSpec

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long]

BACKEND = os.environ.get("VPND_TEST_BACKEND", "userspace")
TWO = f"""
[sites.fra]
[sites.ams]
[tunnels.backbone]
backend = "{BACKEND}"
"""
THREE = f"""
[sites.fra]
[sites.ams]
[sites.lon]
[tunnels.backbone]
backend = "{BACKEND}"
[[links]]
sites = ["fra", "ams"]
[[links]]
sites = ["fra", "lon"]
"""


@asynccontextmanager
async def linked(text: str) -> AsyncIterator[Lab]:
    async with open_lab(LabSpec.parse(text, name="reload"), start="links") as lab:
        for link in lab.plan.links:
            one, other = link.sites
            await lab.site(one).wait_state(other, "active")
            await lab.site(other).wait_state(one, "active")
        yield lab


@asynccontextmanager
async def counted(lab: Lab) -> AsyncIterator[Meter]:
    async with lab.traffic("fra-host", "ams-host", rate=100) as meter:
        await meter.wait_received(30)
        yield meter


def nothing_lost(case: Case, traffic: Report) -> None:
    case.traffic(traffic)
    assert traffic.lost == traffic.repeated == 0


def peer_file(site: Site, peer: str) -> Any:
    return site.config_path.parent / "peers.d" / f"{peer}.toml"


async def routes(site: Site) -> set[str]:
    """The guarded prefixes of IPv4."""
    shown = await site.run(["ip", "route", "show", "type", "unreachable", "proto", "157"])
    return {line.split()[1] for line in shown.stdout.splitlines()}


async def wait_logged(site: Site, words: str) -> None:
    """Wait until the daemon has written these words."""
    with trio.fail_after(patient(30)):
        while True:
            if words in site.daemon_log.read_text():
                return
            await trio.sleep(0.05)


async def wireguard_peer(site: Site, peer: str) -> dict[str, str]:
    """A peer's line of `wg show dump`, without what counts up or changes with a renewal."""
    key = (await site.link_status(peer))["wireguard"]["peer_public_key"]
    dump = (await site.run(["wg", "show", "wg0", "dump"])).stdout.splitlines()
    fields = next(line.split("\t") for line in dump if line.startswith(key))
    return {"allowed": fields[3], "keepalive": fields[7]}


@pytest.mark.kernel
async def test_a_reload_takes_what_changed_and_leaves_other_links_alone(case: Case) -> None:
    async with linked(THREE) as lab, counted(lab) as meter:
        fra = lab.site("fra")
        before, other = await fra.status(), await wireguard_peer(fra, "ams")
        lon = peer_file(fra, "lon")
        # Changed: a keepalive, one prefix more and one less
        text = lon.read_text()
        prefixes = await routes(fra)
        gone = "10.3.0.0/16"
        assert gone in prefixes
        lon.write_text(
            "keepalive = 7\n"
            + "\n".join(line for line in text.splitlines() if "keepalive" not in line).replace(
                f'"{gone}"', '"10.33.0.0/16"'
            )
            + "\n"
        )
        asked = await fra.vpnctl("reload", "--dry-run")
        assert [each["key"] for each in asked["changes"][0]["keys"]] == ["allowed_ips", "keepalive"]
        assert await wireguard_peer(fra, "lon") != {}
        assert gone in await routes(fra)
        await fra.vpnctl("reload")
        after = await wireguard_peer(fra, "lon")
        assert "10.33.0.0/16" in after["allowed"]
        assert gone not in after["allowed"]
        assert after["keepalive"] == "7"
        assert await routes(fra) == (prefixes - {gone}) | {"10.33.0.0/16"}
        into = (await fra.run(["ip", "route", "show", "dev", "wg0"])).stdout
        assert "10.33.0.0/16" in into
        assert gone not in into
        # Removed, by SIGHUP
        lon.unlink()
        assert fra.daemon is not None
        os.kill(fra.daemon.pid, signal.SIGHUP)
        await wait_logged(fra, "SIGHUP")
        assert [link["peer"] for link in (await fra.status())["links"]] == ["ams"]
        assert "10.33.0.0/16" not in await routes(fra)
        # Added, by hand
        lon.write_text(text)
        result = await fra.vpnctl("reload")
        assert [(each["what"], each["change"]) for each in result["changes"]] == [("peer", "added")]
        await fra.wait_state("lon", "active")
        await meter.wait_received(30)
        traffic = await meter.stop()
        assert await wireguard_peer(fra, "ams") == other
        status = await fra.status()
        assert status["pid"] == before["pid"]
        names = fra.daemon_log.read_text()
        assert names.count('"event": "reloaded"') == 3
        assert "SIGHUP" in names
        assert "internal_error" not in names
        nothing_lost(case, traffic)


async def test_a_configuration_that_cannot_be_taken_changes_nothing(case: Case) -> None:
    async with linked(TWO) as lab, counted(lab) as meter:
        fra = lab.site("fra")
        ams = peer_file(fra, "ams")
        good, main = ams.read_text(), fra.config_path.read_text()
        kept = await wireguard_peer(fra, "ams"), await routes(fra), await fra.vpnctl("peer", "list")

        async def refused(*words: str) -> None:
            with pytest.raises(CommandFailed) as failed:
                await fra.vpnctl("reload")
            assert failed.value.returncode == 2
            for word in words:
                assert word in failed.value.stderr
            now = await wireguard_peer(fra, "ams"), await routes(fra)
            assert (*now, await fra.vpnctl("peer", "list")) == kept

        ams.write_text('identity = "vpnd1nonsense"\nallowed_ips = ["10.0.0.1/8"]\nkeepalve = 3\n')
        await refused("identity", "allowed_ips[0]", "keepalve")
        # By SIGHUP nobody waits for an answer: each error is a record of its own
        assert fra.daemon is not None
        os.kill(fra.daemon.pid, signal.SIGHUP)
        for key in ("identity", "allowed_ips[0]", "keepalve"):
            await wait_logged(fra, f" {key}: ")
        assert fra.daemon_log.read_text().count('"event": "reload_refused"') == 3
        assert (await wireguard_peer(fra, "ams"), await routes(fra)) == kept[:2]
        ams.write_text(good)
        fra.config_path.write_text(main.replace("listen_port = 51820", "listen_port = 51999"))
        await refused("restart vpnd for tunnels.backbone.listen_port")
        # A change that could be taken beside one that cannot: neither is
        ams.write_text(good + "keepalive = 9\n")
        await refused("restart vpnd")
        fra.config_path.write_text(main)
        ams.write_text(good)
        assert (await fra.vpnctl("reload"))["changes"] == []
        await meter.wait_received(30)
        nothing_lost(case, await meter.stop())


async def test_a_peer_is_changed_live_and_after_a_restart_it_is_the_same(case: Case) -> None:
    async with linked(TWO) as lab, counted(lab) as meter:
        fra = lab.site("fra")
        await fra.vpnctl("peer", "set", "ams", "--keepalive", "11")
        assert (await wireguard_peer(fra, "ams"))["keepalive"] == "11"
        assert "keepalive = 11" in peer_file(fra, "ams").read_text()
        with pytest.raises(CommandFailed) as failed:
            await fra.vpnctl("peer", "set", "ams", "--allow", "10.255.0.1/32")
        assert "this node's own address" in failed.value.stderr
        # WireGuard at another address than the key exchange: it is led there at once. Where it
        # is then is not asked: a datagram that ams had under way leads it back
        there = lab.site("ams").address(6)
        await fra.vpnctl("peer", "set", "ams", "--wireguard-endpoint", f"[{there}]:51820")
        await wait_logged(fra, f'"event": "endpoint_moved", "peer": "ams", "to": "{there}"')
        await fra.kill_daemon()
        await fra.start_daemon()
        await fra.wait_state("ams", "active")
        assert (await wireguard_peer(fra, "ams"))["keepalive"] == "11"
        await meter.wait_received(30)
        nothing_lost(case, await meter.stop())


async def wait_wireguard_at(site: Site, peer: str, endpoint: str, seconds: float = 60) -> None:
    def there(status: Any) -> bool:
        return bool(status["wireguard"]["endpoint"] == endpoint)

    await site.wait_link(peer, there, what=f"at {endpoint}", seconds=seconds)


@pytest.mark.long
async def test_wireguard_follows_a_name_that_resolves_anew() -> None:
    """The peer's address is another one: the exchange finds it by its name, and WireGuard is led
    there once its session is dead. The peer cannot call."""
    async with linked(TWO) as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        hosts = fra.folder / "hosts"
        hosts.write_text(f"{ams.address(4)} ams.test\n")
        await fra.run(["mount", "--bind", str(hosts), "/etc/hosts"])
        await fra.kill_daemon()
        await fra.start_daemon()
        await fra.vpnctl("peer", "set", "ams", "--endpoint", "ams.test:51821")
        await ams.vpnctl("peer", "set", "fra", "--endpoint", "none", "--keepalive", "0")
        await fra.wait_state("ams", "active")
        hosts.write_text(f"{ams.address(6)} ams.test\n")
        for site in (fra, ams):
            drop = "add table inet t; add chain inet t c { type filter hook output priority 0; }; "
            drop += "add rule inet t c ip daddr 198.18.0.0/15 drop"
            await site.run(["nft", drop])
        await wait_wireguard_at(fra, "ams", f"[{ams.address(6)}]:51820", seconds=400)
        await fra.run(["ping", "-c3", "-W5", str(ams.tunnel_address(4))])
        assert "endpoint_moved" in fra.daemon_log.read_text()


@pytest.mark.kernel
async def test_two_carriers_between_two_gateways(case: Case) -> None:
    """A second tunnel and a second identity at each end, made, used and removed live."""
    async with linked(TWO) as lab, counted(lab) as meter:
        addresses = {"fra": "10.254.0.1", "ams": "10.254.0.2"}
        texts, before = {}, {}
        for name, address in addresses.items():
            site = lab.site(name)
            made = await site.vpnctl("id", "new", "second")
            texts[name] = made["identity"]["text"]
            before[name] = site.config_path.read_text()
            site.config_path.write_text(
                f"{before[name]}\n[tunnels.second]\ninterface = 'wg1'\nlisten_port = 51822\n"
                f"addresses = ['{address}/24']\nbackend = '{BACKEND}'\n"
            )
            changes = (await site.vpnctl("reload"))["changes"]
            assert [(each["what"], each["name"]) for each in changes] == [
                ("tunnel", "second"),
                ("identity", "second"),
            ]
        for name, peer in (("fra", "ams"), ("ams", "fra")):
            other = lab.site(peer)
            arguments = [
                *("peer", "add", f"{peer}-2", "--identity", texts[peer]),
                *("--local-identity", "second", "--tunnel", "second"),
                *("--endpoint", f"{other.address(4)}:{other.plan.listen_port}"),
                *("--allow", f"{addresses[peer]}/32"),
            ]
            await lab.site(name).vpnctl(*arguments)
        for name, peer in (("fra", "ams"), ("ams", "fra")):
            await lab.site(name).wait_state(f"{peer}-2", "active")
            assert (await lab.site(name).link_status(peer))["state"] == "active"
        assert await same_preshared_key(lab, "fra", "ams", interface="wg1")
        fra = lab.site("fra")
        await fra.run(["ping", "-c3", "-i0.2", "-W2", addresses["ams"]])
        with pytest.raises(CommandFailed) as failed:
            await fra.vpnctl(
                "peer", "add", "third", "--identity", texts["ams"], "--local-identity", "second",
                "--tunnel", "second", "--allow", "10.254.0.99/32",
            )  # fmt: skip
        assert "one pair of identities on two links" in failed.value.stderr
        # And away again
        await fra.vpnctl("peer", "remove", "ams-2")
        fra.config_path.write_text(before["fra"])
        await fra.vpnctl("reload")
        assert "wg1" not in (await fra.run(["ip", "-o", "link"])).stdout
        await meter.wait_received(30)
        nothing_lost(case, await meter.stop())


@pytest.mark.parametrize("suite", [pytest.param("1", marks=pytest.mark.kernel), "2"])
async def test_an_identity_is_rotated_without_loss(case: Case, suite: str) -> None:
    """Each step of docs/operations.md; from suite 1 to suite 2 both ends need a new one."""
    async with linked(TWO) as lab, counted(lab) as meter:
        fra, ams = lab.site("fra"), lab.site("ams")
        rotating = {"fra": fra} if suite == "1" else {"fra": fra, "ams": ams}
        old = {"fra": fra.identity, "ams": ams.identity}
        new = dict(old)
        for name, site in rotating.items():
            made = await site.vpnctl("id", "new", "next", "--suite", suite)
            new[name] = made["identity"]["text"]
            await site.vpnctl("reload")

        async def pin(identities: dict[str, list[str]]) -> None:
            for at, peer in ((ams, "fra"), (fra, "ams")):
                words = [word for one in identities[peer] for word in ("--identity", one)]
                await at.vpnctl("peer", "set", peer, *words)

        def both(first: dict[str, str], then: dict[str, str]) -> dict[str, list[str]]:
            return {name: list(dict.fromkeys([first[name], then[name]])) for name in old}

        await pin(both(old, new))
        before = await installed(lab, "fra", "ams")
        for site in rotating.values():
            await site.vpnctl("id", "use", "next")
            await site.vpnctl("reload")
        await pin(both(new, old))
        for at, peer in ((ams, "fra"), (fra, "ams")):
            await wait_identity(at, peer, new[peer])
        # A change may have cut an exchange short; the next one makes both ends equal again
        key = await settled_alike(lab)
        assert key.one not in ("", before.one)
        await pin({name: [text] for name, text in new.items()})
        for site in rotating.values():
            await site.vpnctl("id", "remove", "default")
            await site.vpnctl("reload")
        key, taken_up = await settled_alike(lab), await in_force(lab, "fra", "ams")
        await fra.vpnctl("peer", "rekey", "ams")
        await wait_new_key(lab, "fra", "ams", before=key)
        await wait_in_force(lab, "fra", "ams", before=taken_up, seconds=HANDSHAKE_SECONDS)
        status = await ams.link_status("fra")
        assert (status["state"], status["suite"]) == ("active", int(suite))
        assert await same_preshared_key(lab, "fra", "ams")
        await meter.wait_received(30)
        nothing_lost(case, await meter.stop())


async def settled_alike(lab: Lab) -> KeyPair:
    """The key, once no exchange is under way or owed any more; the same at both ends."""
    key = await settled(lab, "fra", "ams")
    assert key.one == key.other
    return key


async def wait_identity(site: Site, peer: str, text: str) -> None:
    def uses(status: Any) -> bool:
        return bool(status["identity"] == text and status["state"] == "active")

    await site.wait_link(peer, uses, what="using the new identity")


async def test_a_key_goes_with_the_identity_that_it_was_agreed_with() -> None:
    """Another peer under the same name is not the one whose traffic may pass."""
    async with linked(TWO) as lab:
        fra, ams = lab.site("fra"), lab.site("ams")
        stranger = (await ams.vpnctl("id", "new", "stranger"))["identity"]["text"]
        await fra.vpnctl("peer", "set", "ams", "--identity", stranger)
        await fra.wait_state("ams", "closed", seconds=10)
        assert (await fra.run(["wg", "show", "wg0", "peers"])).stdout == ""
        refused = await lab.node("fra-host").run(
            ["ping", "-c1", "-W2", str(lab.node("ams-host").address(4))], check=False
        )
        assert "nreachable" in refused.stdout
        await ams.vpnctl("id", "use", "stranger")
        await ams.vpnctl("reload")
        await fra.wait_state("ams", "active")


@pytest.mark.kernel
@pytest.mark.parametrize("on_stop", ["keep", "close"])
async def test_what_a_clean_stop_leaves(on_stop: str) -> None:
    async with linked(TWO) as lab:
        fra, target = lab.site("fra"), str(lab.node("ams-host").address(4))
        text = fra.config_path.read_text()
        fra.config_path.write_text(text.replace("[node]\n", f'[node]\non_stop = "{on_stop}"\n'))
        await fra.vpnctl("reload")
        assert (await fra.link_status("ams"))["expires_seconds"] > 400
        guards = await routes(fra)
        await fra.stop_daemon()
        peers = (await fra.run(["wg", "show", "wg0", "peers"])).stdout
        assert bool(peers) == (on_stop == "keep")
        assert await routes(fra) == guards
        into = (await fra.run(["ip", "route", "show", "dev", "wg0", "proto", "157"])).stdout
        assert bool(into) == (on_stop == "keep")
        done = await lab.node("fra-host").run(["ping", "-c1", "-W2", target], check=False)
        assert (done.returncode == 0) == (on_stop == "keep")
        await fra.start_daemon()
        await fra.wait_state("ams", "active")
