"""The kernel's WireGuard: creating a link, and the generic netlink way to its device."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable
from typing import TypeVar

import trio

from tun.device import DeviceChange, DeviceState
from tun.errors import BackendUnavailable, InterfaceMissing, TunError, tun_error
from tun.genetlink import DumpInterrupted, GenericNetlink
from tun.model import BackendName, TunnelSpec
from tun.netlink import HERE, Netlink
from tun.rtnl import Link, Rtnl
from tun.wgmessage import CMD_GET_DEVICE, CMD_SET_DEVICE, DeviceReader, build_get, build_set

__all__ = ["HALF_MADE_GROUP", "KernelDevice", "create_device", "require_kernel"]

HALF_MADE_GROUP = 0x76706E64  # "vpnd"
"""Group of an interface from its creation to its alias, which the kernel takes only afterwards:
one left in between by a killed process is known as ours by it."""

_MISSING = (
    "this kernel has no WireGuard: install a kernel with the module `wireguard` "
    '(Debian: apt-get install linux-image-amd64), or set backend = "userspace"'
)
# A device that changes between two parts of a dump is read again, this often.
_DUMP_ATTEMPTS = 10

_T = TypeVar("_T")


class KernelDevice:
    """A kernel WireGuard interface, addressed by its index: one of the same name made by
    somebody else later is never taken for it.
    """

    backend: BackendName = "kernel"

    def __init__(self, netlink: GenericNetlink, *, name: str, index: int) -> None:
        self._netlink = netlink
        self._name = name
        self._index = index
        # One call at a time on the socket, from whichever worker thread.
        self._limiter = trio.CapacityLimiter(1)

    @classmethod
    async def open(cls, namespace: Netlink, *, name: str, index: int) -> KernelDevice:
        """Open the netlink socket to an interface that exists in a namespace."""
        try:
            opened = await namespace.generic_socket()
            netlink = await trio.to_thread.run_sync(GenericNetlink, opened, "wireguard")
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise BackendUnavailable(_MISSING) from None
            raise tun_error(error, f"opening a netlink socket for {name}") from error
        return cls(netlink, name=name, index=index)

    async def apply(self, change: DeviceChange) -> None:
        def send() -> None:
            messages = build_set(self._index, change)
            try:
                for message in messages:
                    self._netlink.request(CMD_SET_DEVICE, message)
            finally:
                for message in messages:
                    message[:] = bytes(len(message))

        await self._run(send, f"configuring {self._name}")

    async def read(self, *, only: bytes | None = None, keys: bool = False) -> DeviceState:
        def dump() -> DeviceState:
            for _ in range(_DUMP_ATTEMPTS):
                reader = DeviceReader(only=only, keys=keys)
                try:
                    self._netlink.dump(CMD_GET_DEVICE, build_get(self._index), reader.feed)
                except DumpInterrupted:
                    continue
                return reader.state()
            raise TunError(f"reading {self._name}: it changes faster than it can be read")

        return await self._run(dump, f"reading {self._name}")

    async def wait_gone(self, *, patience: float = 0.0) -> None:
        """Nothing is left of a kernel interface once its link is deleted."""

    async def aclose(self) -> None:
        self._netlink.close()

    async def _run(self, work: Callable[[], _T], doing: str) -> _T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        except TimeoutError as error:
            raise TunError(f"{doing}: the kernel does not answer") from error
        except OSError as error:
            if error.errno == errno.EBADF:
                raise InterfaceMissing(f"{doing}: this tunnel was closed") from None
            raise tun_error(error, doing) from error


async def create_device(spec: TunnelSpec, netlink: Netlink) -> tuple[Link, KernelDevice]:
    """Create the interface in a namespace, marked as ours, down and without a key.

    From here, wherever it is to be: its UDP socket is in the namespace that it is created from.
    Raises BackendUnavailable where the kernel has no WireGuard: creating is the only sure test.
    """

    def mark(rtnl: Rtnl) -> Link:
        link = rtnl.link(spec.interface)
        if link is None:
            raise InterfaceMissing(f"{spec.interface} vanished while it was made")
        rtnl.mark_link(link.index, spec.alias)
        return link

    with netlink.descriptor() as there:
        await HERE.run(lambda rtnl: _create(rtnl, spec.interface, there))
    link = await netlink.run(mark)
    try:
        return link, await KernelDevice.open(netlink, name=link.name, index=link.index)
    except BaseException:
        with trio.CancelScope(shield=True):
            await netlink.run(lambda rtnl: rtnl.delete_link(link.index))
        raise


async def require_kernel() -> None:
    """Raise BackendUnavailable unless the kernel can make a WireGuard interface, by making one."""

    def probe(rtnl: Rtnl) -> None:
        name = f"vpnd{secrets.token_hex(5)}"
        _create(rtnl, name)
        link = rtnl.link(name)
        if link is not None:
            rtnl.delete_link(link.index)

    await HERE.run(probe)


def _create(rtnl: Rtnl, name: str, namespace: int | None = None) -> None:
    try:
        rtnl.create_wireguard(name, group=HALF_MADE_GROUP, namespace=namespace)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise BackendUnavailable(_MISSING) from None
        raise tun_error(error, f"creating {name}") from error
