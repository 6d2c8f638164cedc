"""What is told of datagrams that do not arrive, on real sockets."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import trio

from kex.address import Address
from tests.vpnd.link_ends import make_sites
from tests.vpnd.test_transport import echoing, free_port
from vpnd.api import LinkState
from vpnd.config_fields import ListenAddress
from vpnd.deliveries import NO_SOCKET, Deliveries, Returned, not_sent, sent_back
from vpnd.transport import Transport

FAR = Address("192.0.2.10", 51821)


class Told:
    """Counts calls, and can be waited for."""

    def __init__(self) -> None:
        self.count = 0
        self.event = trio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.event.set()
        self.event = trio.Event()


async def trouble_of(transport: Transport, address: Address) -> tuple[str, str]:
    """What becomes known of a datagram to an address."""
    told = Told()
    transport.deliveries.watch("ams", address, told)
    transport.send(b"hello", address)
    with trio.fail_after(30):
        while (trouble := transport.deliveries.trouble("ams")) is None:
            await told.event.wait()
    assert trouble.hint
    return trouble.code, trouble.reason


@pytest.mark.parametrize(("listen", "host"), [("127.0.0.1", "127.0.0.1"), ("::", "::1")])
async def test_a_closed_port_is_told(listen: str, host: str) -> None:
    address = Address(host, free_port())
    async with echoing(ListenAddress(listen, free_port())) as transport:
        code, reason = await trouble_of(transport, address)
    assert code == "unreachable"
    assert reason == f"no answer: port {address.port} of {host} is closed (ICMP from {host})"


async def test_a_closed_port_of_ipv4_on_a_socket_of_both_families() -> None:
    address = Address("127.0.0.1", free_port())
    async with echoing(ListenAddress("::", free_port())) as transport:
        code, reason = await trouble_of(transport, address)
    assert code == "unreachable"
    assert "(ICMP from 127.0.0.1)" in reason


async def test_an_error_of_one_address_is_none_of_another() -> None:
    """The kernel gives it to whoever uses the socket next."""
    closed = Address("127.0.0.1", free_port())
    async with echoing(ListenAddress("127.0.0.1", free_port())) as transport:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hearer:
            await hearer.bind(("127.0.0.7", 0))
            well = Address("127.0.0.7", hearer.getsockname()[1])
            transport.deliveries.watch("well", well, Told())
            for number in range(50):
                transport.send(b"into nothing", closed)
                transport.send(number.to_bytes(1, "big"), well)
            with trio.fail_after(30):
                got = [(await hearer.recv(16))[0] for _ in range(50)]
        assert got == list(range(50))
        assert transport.unsent == 0
        assert transport.deliveries.trouble("well") is None


async def test_a_socket_with_errors_goes_on_receiving() -> None:
    """What is not read of its error queue would keep it readable for good."""
    closed = Address("127.0.0.1", free_port())
    port = free_port()
    async with echoing(ListenAddress("127.0.0.1", port)) as transport:
        await trouble_of(transport, closed)
        for _ in range(500):
            transport.send(b"into nothing", closed)
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            await asker.sendto(b"hello", ("127.0.0.1", port))
            with trio.fail_after(30):
                assert await asker.recv(16) == b"hello"


async def test_what_cannot_be_sent_is_told_with_the_reason() -> None:
    async with echoing(ListenAddress("127.0.0.1", free_port())) as transport:
        # No socket for IPv6; and to where one that is bound to 127.0.0.1 cannot send
        code, reason = await trouble_of(transport, Address("2001:db8::1", 51821))
        assert code == "not_sent"
        assert "no socket here sends to IPv6" in reason
        code, reason = await trouble_of(transport, Address("255.255.255.255", 51821))
        assert code == "not_sent"
        assert "(EACCES)" in reason
        assert transport.unsent >= 2


async def test_what_was_not_sent_before_anybody_watched_is_known() -> None:
    async with echoing(ListenAddress("127.0.0.1", free_port())) as transport:
        for number in range(100):  # to strangers: bounded
            transport.send(b"hello", Address(f"2001:db8::{number:x}", 1))
        transport.send(b"hello", Address("2001:db8::1", 51821))
        transport.deliveries.watch("ams", Address("2001:db8::1", 51821), Told())
        assert transport.deliveries.trouble("ams") is not None
        assert len(transport.deliveries._unclaimed) <= 16


def test_what_is_over_is_not_told_any_more() -> None:
    deliveries, told = Deliveries(), Told()
    deliveries.watch("ams", FAR, told)
    deliveries.unsent(FAR, errno.EPERM)
    deliveries.unsent(FAR, errno.EPERM)
    assert told.count == 1
    trouble = deliveries.trouble("ams")
    assert trouble is not None
    assert "a firewall of this host forbids it (EPERM)" in trouble.reason
    deliveries.sent(FAR)
    assert told.count == 2
    assert deliveries.trouble("ams") is None
    assert deliveries.nothing_heard("ams").code == "no_answer"
    deliveries.returned(FAR, Returned(False, 3, 1, 0, "198.51.100.1"))
    assert deliveries.nothing_heard("ams").code == "unreachable"
    deliveries.watch("ams", FAR, told)  # another exchange
    assert deliveries.trouble("ams") is None
    deliveries.forget("ams")
    deliveries.unsent(FAR, errno.EPERM)
    assert not deliveries._outcomes


def test_two_links_to_one_address() -> None:
    deliveries = Deliveries()
    deliveries.watch("one", FAR, Told())
    deliveries.watch("other", FAR, Told())
    deliveries.unsent(FAR, errno.ENETUNREACH)
    deliveries.forget("one")
    assert deliveries.trouble("one") is None
    assert deliveries.trouble("other") is not None


@pytest.mark.parametrize(
    ("why", "guard", "words"),
    [
        (errno.EPERM, "", "firewall of this host forbids it (EPERM)"),
        (errno.ENETUNREACH, "", "no route there (ENETUNREACH)"),
        (errno.EHOSTUNREACH, "", "(EHOSTUNREACH)"),
        (
            errno.EHOSTUNREACH,
            "192.0.2.0/24 of ams",
            "guard route 192.0.2.0/24 of ams is in the way",
        ),
        (errno.EPERM, "192.0.2.0/24 of ams", "firewall"),  # it is not the guard that forbids
        (errno.EMSGSIZE, "", "too long"),
        (errno.EACCES, "", "(EACCES)"),
        (errno.ENETDOWN, "", "Network is down (ENETDOWN)"),
        (12345, "", "12345"),
        (NO_SOCKET, "", "IPv4"),
    ],
)
def test_why_nothing_was_sent(why: int, guard: str, words: str) -> None:
    reason, hint = not_sent(FAR, why, guard)
    assert words in reason
    assert hint


@pytest.mark.parametrize(
    ("ipv6", "kind", "code", "info", "words"),
    [
        (False, 3, 3, 0, "port 51821 of 192.0.2.10 is closed"),
        (True, 1, 4, 0, "is closed"),
        (False, 3, 13, 0, "is forbidden (ICMP from 198.51.100.1)"),
        (True, 1, 1, 0, "is forbidden"),
        (False, 3, 4, 1280, "takes 1280 bytes at the most"),
        (True, 2, 0, 1280, "takes 1280 bytes at the most"),
        (False, 3, 0, 0, "cannot be reached, says 198.51.100.1 (ICMP type 3, code 0)"),
        (True, 1, 3, 0, "cannot be reached"),
        (False, 11, 0, 0, "too many hops"),
        (True, 3, 0, 0, "too many hops"),
    ],
)
def test_what_icmp_says(ipv6: bool, kind: int, code: int, info: int, words: str) -> None:
    reason, hint = sent_back(FAR, Returned(ipv6, kind, code, info, "198.51.100.1"))
    assert words in reason
    assert hint


async def test_a_link_tells_it_as_it_happens(tmp_path: Path) -> None:
    """Nobody listens where the peer should be: the link says so before its exchange is over."""
    fra, ams = make_sites(tmp_path)
    async with fra.running(ams, fra.configure(ams, {"mode": "off"})):
        with trio.fail_after(30):
            while "is closed" not in fra.link.report.reason:
                await fra.engine.wait_changed()
        assert fra.link.report.state is LinkState.EXCHANGING
        assert fra.link.report.problem is not None
        assert fra.link.report.problem.code == "unreachable"
        assert fra.link.report.problem.hint
        async with ams.running(fra, ams.configure(fra, {"mode": "off"})):
            await fra.wait_for("key_installed")
        assert fra.link.report.problem is None
