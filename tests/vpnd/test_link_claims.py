"""Links whose peers announce the same WireGuard key, or another one than is pinned; and a peer
that never gets an answer."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from kex.identity import Identity
from kex.wire import MessageType
from tests.vpnd.link_ends import Site, agree, make_sites
from tests.vpnd.test_transport import free_port
from vpnd.api import LinkState
from vpnd.external_record import ExternalRecords
from vpnd.identity_store import PeerKeyCache, system_suite
from vpnd.journal import Journal
from vpnd.link import ManagedLink
from vpnd.link_record import LinkRecords
from vpnd.tunnels import ManagedTunnel


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, Site]:
    return make_sites(tmp_path)


def wireguard_key(name: str) -> bytes:
    return name.encode().ljust(32, b".")


def pinned(name: str) -> dict[str, Any]:
    return {"wireguard_key": b64encode(wireguard_key(name)).decode()}


def third_site(other: Site, folder: Path) -> Site:
    suite = system_suite(1)
    (folder / "eve").mkdir()
    made = Identity(suite, suite.generate_private_key())
    return Site("eve", folder / "eve", free_port(), made, other.news)


@asynccontextmanager
async def second_link(site: Site, far: Site, **more: Any) -> AsyncIterator[ManagedLink]:
    """One more link of a site that runs, on the same interface."""
    peer = site.configure(far, {}, allowed_ips=["172.16.0.0/12"], **more)
    link = ManagedLink(
        peer,
        cast(ManagedTunnel, site.device),
        own=(site.identity.fingerprint,),
        engine=site.engine,
        records=LinkRecords(site.folder),
        external_records=ExternalRecords(site.folder),
        find_source=site.sources.get,
        peer_keys=PeerKeyCache(site.folder, warn=print),
        journal=Journal(site.feed),
    )
    async with trio.open_nursery() as nursery:
        link.start()
        nursery.start_soon(link.run)
        try:
            yield link
        finally:
            nursery.cancel_scope.cancel()


async def test_an_impostor_loses_the_key_to_its_owner(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    """eve announces the WireGuard key of ams before ams does."""
    fra, ams = sites
    eve = third_site(fra, tmp_path)
    async with (
        fra.running(ams, fra.configure(ams, {})),
        second_link(fra, eve) as to_eve,
        eve.running(fra, eve.configure(fra, {})),
    ):
        await fra.wait_for("key_installed")
        assert to_eve.wireguard.public_key == wireguard_key("eve")
        # Her interface has, as she says, another key now
        eve.link.tunnel_lost()
        eve.device.open.public_key = wireguard_key("ams")
        eve.link.tunnel_opened({})
        with trio.fail_after(20):
            while to_eve.wireguard.public_key != wireguard_key("ams"):
                await fra.news.wait()
        async with ams.running(fra, ams.configure(fra, {})):
            await agree(fra, ams)
            # The one entry on the interface is the one of ams, with its prefixes alone
            assert fra.device.peers.keys() == {wireguard_key("ams")}
            (spec,) = fra.device.peers.values()
            assert [str(prefix) for prefix in spec.allowed_ips] == ["10.0.0.0/8"]
            told = await fra.wait_for("wireguard_key_yielded")
            assert (told["peer"], told["fields"]["other"]) == ("eve", "ams")
            assert to_eve.report.state is LinkState.CLOSED
            assert "is the one of ams now" in to_eve.report.reason
            fra.shake_hands()
            assert fra.link.report.state is LinkState.ACTIVE
            # She says so again, and is told; the log says who contests what
            contested = await fra.wait_for("wireguard_key_contested")
            assert (contested["peer"], contested["fields"]["other"]) == ("eve", "ams")
            with trio.fail_after(40):
                while "WireGuard key" not in eve.link.report.reason:
                    await fra.news.wait()
            assert fra.device.peers.keys() == {wireguard_key("ams")}


@pytest.mark.parametrize("right", [True, False])
async def test_a_pinned_key_is_held_to_by_either_end(sites: tuple[Site, Site], right: bool) -> None:
    fra, ams = sites
    pin = pinned("ams" if right else "someone")
    async with (
        ams.running(fra, ams.configure(fra, {})),
        fra.running(ams, fra.configure(ams, {}, **pin)),
    ):
        if right:
            await agree(fra, ams)
            return
        words = "the WireGuard key is not the one that is pinned for this link"
        with trio.fail_after(60):
            while not (
                words in fra.link.report.reason
                and any(words in told.get("reason", "") for told in ams.named("exchange_failed"))
            ):
                await fra.news.wait()
        assert not fra.device.peers
        assert not fra.named("key_installed")


async def test_a_key_that_is_not_the_one_pinned_now_ends(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with (
        ams.running(fra, ams.configure(fra, {})),
        fra.running(ams, fra.configure(ams, {})),
    ):
        await agree(fra, ams)
        peer = fra.configure(ams, {}, **pinned("someone"))
        config = fra.link.exchanges.config_with(peer, (fra.identity.fingerprint,))
        assert config is not None
        with fra.engine.driving() as (endpoint, now):
            endpoint.update_link(config, now)
            fra.link.take(peer, (fra.identity.fingerprint,))
        closed = await fra.wait_for("link_closed")
        assert "another WireGuard key than the one that is pinned" in closed["reason"]
        with trio.fail_after(20):
            while fra.device.peers:
                await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def relay_without_resp_conf(port: int) -> AsyncIterator[int]:
    """A way to a port of this host, on which no RespConf comes back."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as way:
        await way.bind(("127.0.0.1", 0))

        async def forward() -> None:
            near = None
            while True:
                data, source = await way.recvfrom(2000)
                if source[1] != port:
                    near = source
                    await way.sendto(data, ("127.0.0.1", port))
                elif near is not None and data[0] & 0x0F != MessageType.RESP_CONF:
                    await way.sendto(data, near)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward)
            yield way.getsockname()[1]
            nursery.cancel_scope.cancel()


@pytest.mark.long
async def test_an_end_whose_answers_do_not_arrive_says_so(sites: tuple[Site, Site]) -> None:
    fra, ams = sites
    async with (
        relay_without_resp_conf(ams.port) as port,
        ams.running(fra, ams.configure(fra, {}, endpoint=None)),
        fra.running(ams, fra.configure(ams, {}, endpoint=f"127.0.0.1:{port}")),
    ):
        await ams.wait_for("key_installed")
        ams.shake_hands()  # as of a key before
        with trio.fail_after(120):
            while "begins again after each of our answers" not in ams.link.report.reason:
                await fra.news.wait()
        assert ams.link.report.state is LinkState.DEGRADED
        assert {told["fields"]["code"] for told in fra.named("exchange_failed")} >= {
            "init_conf_unanswered"
        }
        assert "no answer to InitConf" in fra.link.report.reason
