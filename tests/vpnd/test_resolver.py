"""Which address of a name is tried next, and what a name service that is silent holds up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from tun.netlink import HERE
from vpnd import resolver
from vpnd.config_fields import Endpoint
from vpnd.resolver import PeerAddresses

NAME = Endpoint("ams1.example.net", 51821)
Answer = list[tuple[Any, ...]]


@contextmanager
def name_service(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Answer]) -> Iterator[None]:
    """The C library's, as far as it is asked: there is no network here."""

    def getaddrinfo(host: str, port: int, **_: object) -> Answer:
        assert (host, port) == (NAME.host, NAME.port)
        return answer()

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


def found(*hosts: str) -> Answer:
    return [
        (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", (host, NAME.port, 0, 0))
        if ":" in host
        else (socket.AF_INET, socket.SOCK_DGRAM, 17, "", (host, NAME.port))
        for host in hosts
    ]


async def test_the_families_take_turns_and_all_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = PeerAddresses(NAME)
    answer = found("192.0.2.1", "192.0.2.2", "2001:db8::1")
    with name_service(monkeypatch, lambda: answer):
        tried = []
        for _ in range(6):
            assert await addresses.advance() == ""
            assert addresses.current is not None
            tried.append(addresses.current.host)
    assert tried == ["2001:db8::1", "192.0.2.1", "192.0.2.2"] * 2


async def test_a_name_that_moves_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = PeerAddresses(NAME)
    for host in ("192.0.2.1", "192.0.2.9"):
        answer = found(host)
        with name_service(monkeypatch, lambda answer=answer: answer):  # type: ignore[misc]
            assert await addresses.advance() == ""
        assert addresses.current is not None
        assert addresses.current.host == host


async def test_a_name_that_cannot_be_looked_up_leaves_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown() -> Answer:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    addresses = PeerAddresses(NAME)
    with name_service(monkeypatch, lambda: found("192.0.2.1")):
        await addresses.advance()
    with name_service(monkeypatch, unknown):
        assert "ams1.example.net: cannot be looked up: Name or" in await addresses.advance()
    with name_service(monkeypatch, list):
        assert await addresses.advance() == "ams1.example.net: has no address"
    assert addresses.current is not None
    assert addresses.current.host == "192.0.2.1"


async def test_a_silent_name_service_holds_up_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More look-ups hang than there are threads for anything by default."""
    released, results = threading.Event(), []

    def silent() -> Answer:
        released.wait(60)
        return found("192.0.2.1")

    async def look_up() -> None:
        results.append(await PeerAddresses(NAME).advance())

    monkeypatch.setattr(resolver, "RESOLVE_SECONDS", 10.0)
    with name_service(monkeypatch, silent):
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(look_up)
                await trio.testing.wait_all_tasks_blocked()
                with trio.fail_after(5):
                    assert await HERE.run(lambda rtnl: bool(rtnl.links()))
                    await trio.to_thread.run_sync(bool)
                assert not results, "all of them hang still"
        finally:
            released.set()
        assert results == ["ams1.example.net: no answer from the name service"] * 100
        with trio.fail_after(30):
            while await PeerAddresses(NAME).advance():
                pass  # until the threads that were given up have ended


async def test_addresses_of_many_hosts_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may not lead where a number may not."""
    useless = ["224.0.0.5", "0.0.0.0", "255.255.255.255", "ff02::1", "::", "fe80::1"]  # noqa: S104
    addresses = PeerAddresses(NAME)
    with name_service(monkeypatch, lambda: found(*useless, "192.0.2.1")):
        for _ in range(3):
            assert await addresses.advance() == ""
            assert addresses.current is not None
            assert addresses.current.host == "192.0.2.1"
    with name_service(monkeypatch, lambda: found("224.0.0.5")):
        said = await addresses.advance()
    assert said == "ams1.example.net: has no address of one host, but 224.0.0.5"
