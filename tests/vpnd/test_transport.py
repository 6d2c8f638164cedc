"""The sockets of the key exchange, on loopback, whose IPv4 addresses are all of 127.0.0.0/8."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from kex.address import Address
from vpnd.config_fields import ListenAddress
from vpnd.event_feed import EventFeed
from vpnd.journal import Journal
from vpnd.transport import Transport

ASKED = ["127.0.0.1", "127.0.0.7", "127.1.2.3"]


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def echoing(*listen: ListenAddress) -> AsyncIterator[Transport]:
    """A transport that answers each datagram with the same."""
    transport = Transport(listen, Journal(EventFeed()))
    transport.open()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.run, transport.send, lambda: False)
            yield transport
            nursery.cancel_scope.cancel()
    finally:
        transport.close()


async def answer(
    asked: str, port: int, receive: Callable[[trio.socket.SocketType], None] = lambda _: None
) -> tuple[str, list[tuple[int, int, bytes]]]:
    """Who answers a datagram to this address, and with which ancillary data."""
    family = socket.AF_INET6 if ":" in asked else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_DGRAM) as asker:
        receive(asker)
        await asker.sendto(b"hello", (asked, port))
        with trio.fail_after(30):
            data, ancillary, _, source = await asker.recvmsg(64, 64)
    assert data == b"hello"
    assert isinstance(source, tuple)
    return source[0], ancillary


@pytest.mark.parametrize("wildcard", ["::", "0.0.0.0"])  # noqa: S104
async def test_an_answer_leaves_from_the_address_that_was_asked(wildcard: str) -> None:
    port = free_port()
    async with echoing(ListenAddress(wildcard, port)):
        for asked in ASKED:
            assert (await answer(asked, port))[0] == asked
        if wildcard == "::":
            assert (await answer("::1", port))[0] == "::1"


async def test_the_socket_that_was_asked_answers() -> None:
    port = free_port()
    async with echoing(*(ListenAddress(address, port) for address in ASKED)) as transport:
        for asked in ASKED:
            assert (await answer(asked, port))[0] == asked
        assert transport.unsent == 0


async def test_an_own_datagram_leaves_as_the_kernel_chooses() -> None:
    async with echoing(ListenAddress("::", free_port())) as transport:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hearer:
            await hearer.bind(("127.0.0.7", 0))
            transport.send(b"first", Address("127.0.0.7", hearer.getsockname()[1]))
            with trio.fail_after(30):
                data, source = await hearer.recvfrom(64)
        assert (data, source[0]) == (b"first", "127.0.0.1")


@pytest.mark.parametrize(
    ("asked", "listen"),
    [("127.0.0.1", "::"), ("127.0.0.1", "0.0.0.0"), ("127.0.0.1", "127.0.0.1"), ("::1", "::")],  # noqa: S104
)
async def test_datagrams_have_the_dscp_of_wireguards_handshake(asked: str, listen: str) -> None:
    def receive_tos(asker: trio.socket.SocketType) -> None:
        if ":" in asked:
            asker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        else:
            asker.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)

    port = free_port()
    async with echoing(ListenAddress(listen, port)):
        _, ((_, _, value),) = await answer(asked, port, receive_tos)
    assert value[0] == 0x88
    assert not any(value[1:])


async def test_ipv4_and_ipv6_may_have_a_socket_each_at_one_port() -> None:
    port = free_port()
    both = (ListenAddress("::", port), ListenAddress("127.0.0.1", port))
    async with echoing(*both) as transport:
        assert transport.local_names() == [f"[::]:{port}", f"127.0.0.1:{port}"]
        assert (await answer("127.0.0.1", port))[0] == "127.0.0.1"
        assert (await answer("::1", port))[0] == "::1"


async def test_a_port_that_is_taken_is_waited_for(autojump_clock: trio.abc.Clock) -> None:
    del autojump_clock
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        async with echoing(ListenAddress("127.0.0.1", port)) as transport:
            assert "another program has this port" in transport.problems()[0]
            assert transport.local_names() == []
            transport.send(b"lost", Address("127.0.0.1", port))
            assert transport.unsent == 1
            other.close()
            with trio.fail_after(30):
                while transport.problems():  # noqa: ASYNC110  # nobody is told
                    await trio.sleep(0.1)
            assert transport.local_names() == [f"127.0.0.1:{port}"]


async def test_an_address_that_is_not_there_leaves_the_others_alone() -> None:
    port = free_port()
    entries = (ListenAddress("192.0.2.77", port), ListenAddress("127.0.0.1", port, "no-such-dev"))
    async with echoing(*entries, ListenAddress("127.0.0.1", port)) as transport:
        first, second = transport.problems()
        assert "no interface has this address" in first
        assert f"127.0.0.1:{port} on no-such-dev" in second
        assert "there is no device no-such-dev" in second
        assert (await answer("127.0.0.1", port))[0] == "127.0.0.1"
