"""The connection to wireguard-go, against the other end of a socket pair."""

from __future__ import annotations

import socket

import pytest
import trio

from tun.device import DeviceChange, PeerChange
from tun.errors import InterfaceMissing, MalformedAnswer
from tun.model import PresharedKey
from tun.uapi_socket import UserspaceDevice

ANSWER = b"listen_port=51820\nerrno=0\n\n"


@pytest.fixture
def ends() -> tuple[UserspaceDevice, trio.SocketStream]:
    ours, theirs = socket.socketpair()
    device = UserspaceDevice(trio.socket.from_stdlib_socket(ours), name="wg0")
    return device, trio.SocketStream(trio.socket.from_stdlib_socket(theirs))


async def test_an_answer_in_pieces_is_put_together(
    ends: tuple[UserspaceDevice, trio.SocketStream],
) -> None:
    device, wireguard = ends
    long = b"".join(b"public_key=%064x\nallowed_ip=10.0.0.0/8\n" % n for n in range(2000)) + ANSWER

    async def answer() -> None:
        assert await wireguard.receive_some() == b"get=1\n\n"
        for start in range(0, len(long), 50_000):
            await wireguard.send_all(long[start : start + 50_000])

    async with trio.open_nursery() as nursery, wireguard:
        nursery.start_soon(answer)
        assert len((await device.read()).peers) == 2000
        await device.aclose()


async def test_what_a_thousand_want_at_a_time_is_done_together(
    ends: tuple[UserspaceDevice, trio.SocketStream],
) -> None:
    device, wireguard = ends
    keys = [n.to_bytes(32, "big") for n in range(1, 1001)]
    asked: list[bytes] = []

    async def wireguard_go() -> None:
        received = b""
        while (some := await wireguard.receive_some()) != b"":
            received += some
            while (end := received.find(b"\n\n")) >= 0:
                request, received = received[:end], received[end + 2 :]
                asked.append(request)
                peers = b"".join(b"public_key=%064x\n" % n for n in range(1, 1001))
                listed = peers if request.startswith(b"get") else b""
                await wireguard.send_all(listed + b"errno=0\n\n")

    async def renew(key: bytes) -> None:
        psk = PresharedKey(key)
        await device.apply(DeviceChange(peers=(PeerChange(public_key=key, psk=psk),)))
        assert list((await device.read(only=key)).peers) == [key]

    async with wireguard, trio.open_nursery() as nursery:
        nursery.start_soon(wireguard_go)
        async with trio.open_nursery() as renewals:
            for key in keys:
                renewals.start_soon(renew, key)
        await device.aclose()
    kinds = [request.split(b"\n")[0] for request in asked]
    # The first one of each does not wait for those that come after it
    assert kinds.count(b"set=1") == 2
    assert kinds.count(b"get=1") <= 3
    assert sum(request.count(b"public_key=") for request in asked) == len(keys)


@pytest.mark.parametrize("said", [b"", ANSWER[:-1]])
async def test_the_end_of_the_process_is_told(
    ends: tuple[UserspaceDevice, trio.SocketStream], said: bytes
) -> None:
    device, wireguard = ends
    await wireguard.send_all(said)
    await wireguard.aclose()
    for _ in range(2):
        with pytest.raises(InterfaceMissing):
            await device.read()
    await device.aclose()
    with pytest.raises(InterfaceMissing):
        await device.apply(DeviceChange())


async def test_nonsense_is_refused_and_the_next_answer_read(
    ends: tuple[UserspaceDevice, trio.SocketStream],
) -> None:
    device, wireguard = ends
    async with wireguard:
        await wireguard.send_all(b"nonsense\nerrno=0\n\n")
        with pytest.raises(MalformedAnswer):
            await device.read()
        await wireguard.send_all(ANSWER)
        assert (await device.read()).listen_port == 51820
    await device.aclose()


async def test_a_cancelled_call_is_finished_first(
    ends: tuple[UserspaceDevice, trio.SocketStream],
) -> None:
    """The answer of a cancelled call is not taken for that of the next one."""
    device, wireguard = ends
    scope = trio.CancelScope()

    async def wireguard_go() -> None:
        assert await wireguard.receive_some() == b"get=1\n\n"
        scope.cancel()
        await wireguard.send_all(b"listen_port=1\nerrno=0\n\n")
        assert await wireguard.receive_some() == b"get=1\n\n"
        await wireguard.send_all(ANSWER)

    async with wireguard, trio.open_nursery() as nursery:
        nursery.start_soon(wireguard_go)
        with scope:
            await device.read()
        assert scope.cancel_called
        assert (await device.read()).listen_port == 51820
    await device.aclose()


async def test_silence_is_an_error(
    ends: tuple[UserspaceDevice, trio.SocketStream], autojump_clock: object
) -> None:
    device, wireguard = ends
    async with wireguard:
        with pytest.raises(Exception, match="does not answer"):
            await device.read()
        with pytest.raises(InterfaceMissing):
            await device.read()
    await device.aclose()
