"""Starting wireguard-go: its TUN link, its socket, and a process that outlives the daemon.

In a session of its own where that is enough; where a service manager ends all that a restarted
daemon left in its control group, in a unit of its own (`tun.wireguard_go`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator

import trio

from tun.errors import BackendUnavailable, InterfaceMissing, NotOurs, TunError, tun_error
from tun.model import DEFAULT_MTU, TunnelSpec
from tun.netlink import HERE, Netlink
from tun.rtnl import Link, Rtnl
from tun.starters import PROGRAM, UNIT_SOCKET_VARIABLE, InSession, InUnit, Starter
from tun.uapi_socket import UserspaceDevice, bind_socket, socket_path

__all__ = ["attach", "create_device", "require_program"]

_LOG_SIZE = 16384
_MISSING_PROGRAM = f"{PROGRAM} is not installed (Debian: apt-get install wireguard-go)"


async def create_device(spec: TunnelSpec, netlink: Netlink) -> tuple[Link, UserspaceDevice]:
    """Start wireguard-go on a new TUN link, marked as ours, down and without a key.

    It starts here, and the link is moved where it is to be: the process looks for it in its own
    namespace, once, and has its UDP socket there. What it is told of the link here is all that it
    hears: so the MTU is set before, and nobody brings the link up.

    Raises BackendUnavailable where the program or the TUN device is missing. Link and socket are
    made here and handed over, so that a link without its mark cannot outlive a killed daemon.
    """
    name = spec.interface
    program = require_program()
    with await trio.to_thread.run_sync(_starter, name, program) as starter, _bounded_log() as log:
        link = await HERE.run(lambda rtnl: _mark(rtnl, spec))
        listener = await trio.to_thread.run_sync(_listen, name)
        with listener:
            await trio.to_thread.run_sync(starter.start, listener, log)
        # From here on the process alone holds link and socket.
        try:
            device = await attach(name)
        except InterfaceMissing:
            socket_path(name).unlink(missing_ok=True)
            said = os.pread(log, _LOG_SIZE, 0).rstrip(b"\0").decode("utf-8", "replace").strip()
            raise TunError(f"{PROGRAM} ended at once: {said or 'it said nothing'}") from None
    try:
        return await _move(link, netlink), device
    except BaseException:
        await device.aclose()
        with trio.CancelScope(shield=True):
            await HERE.run(lambda rtnl: _delete(rtnl, link))
        raise


def _mark(rtnl: Rtnl, spec: TunnelSpec) -> Link:
    link = rtnl.link(spec.interface)
    if link is None:
        raise InterfaceMissing(f"{spec.interface} vanished while it was made")
    rtnl.mark_link(link.index, spec.alias)
    rtnl.set_mtu(link.index, DEFAULT_MTU if spec.mtu is None else spec.mtu)
    return link


async def _move(link: Link, netlink: Netlink) -> Link:
    """The link as it is in its namespace, where its index may be another one."""
    with netlink.descriptor() as there:
        if there is None:
            return link
        namespace = there
        await HERE.run(lambda rtnl: rtnl.move_link(link.index, namespace))
    moved = await netlink.run(lambda rtnl: rtnl.link(link.name))
    if moved is None:
        raise InterfaceMissing(f"{link.name} vanished while it was moved")
    return moved


def _delete(rtnl: Rtnl, link: Link) -> None:
    with contextlib.suppress(OSError):  # it has been moved, or is gone
        rtnl.delete_link(link.index)


async def attach(name: str) -> UserspaceDevice:
    """Connect to the wireguard-go of an interface, and make sure that it answers."""
    device = await UserspaceDevice.open(name=name)
    try:
        await device.read()
    except BaseException:
        await device.aclose()
        raise
    return device


def require_program() -> str:
    """The path of wireguard-go; raises BackendUnavailable."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise BackendUnavailable(_MISSING_PROGRAM)
    return program


def _starter(name: str, program: str) -> Starter:
    """Who makes the TUN link, which then stands. Blocking."""
    unit = os.environ.get(UNIT_SOCKET_VARIABLE)
    return InUnit(name, unit) if unit else InSession(name, program)


def _listen(interface: str) -> socket.socket:
    try:
        return bind_socket(interface)
    except FileExistsError:
        raise NotOurs(
            f"{socket_path(interface)} belongs to another interface {interface} (of another "
            "network namespace?): choose another interface name, or give this daemon a "
            f"{socket_path(interface).parent} of its own (a mount namespace)"
        ) from None
    except OSError as error:
        raise tun_error(error, f"creating {socket_path(interface)}") from error


@contextlib.contextmanager
def _bounded_log() -> Iterator[int]:
    """Memory for the first words of the process, never a disk: it logs each packet that it could
    not send, so a file would grow without end. What does not fit is refused, and lost.
    """
    descriptor = os.memfd_create(f"{PROGRAM}-log", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, _LOG_SIZE)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        yield descriptor
    finally:
        os.close(descriptor)
