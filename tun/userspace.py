"""Starting wireguard-go: its TUN link, its socket, and a process that outlives the daemon."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator

import trio

from tun.errors import BackendUnavailable, InterfaceMissing, NotOurs, TunError, tun_error
from tun.model import TunnelSpec
from tun.rtnl import Link, with_rtnl
from tun.uapi_socket import UserspaceDevice, bind_socket, socket_path

__all__ = ["attach", "create_device", "require_program"]

_TUN_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFREQ = struct.Struct("16sH22x")

_PROGRAM = "wireguard-go"
_HEADERS_CHANGED = 20231211
_LOG_SIZE = 16384
_MISSING_PROGRAM = f"{_PROGRAM} is not installed (Debian: apt-get install wireguard-go)"
_MISSING_TUN = f"{_TUN_DEVICE} does not exist: modprobe tun, or give it to this container"


async def create_device(spec: TunnelSpec) -> tuple[Link, UserspaceDevice]:
    """Start wireguard-go on a new TUN link, marked as ours, down and without a key.

    Raises BackendUnavailable where the program or the TUN device is missing. Link and socket are
    made here and handed over, so that a link without its mark cannot outlive a killed daemon.
    """
    name = spec.interface
    program = require_program()
    flags = await trio.to_thread.run_sync(_tun_flags, program)
    with _tun_link(name, flags) as tun, _bounded_log() as log:
        link = await with_rtnl(lambda rtnl: rtnl.link(name))
        if link is None:
            raise InterfaceMissing(f"{name} vanished while it was made")
        await with_rtnl(lambda rtnl: rtnl.mark_link(link.index, spec.alias))
        listener = await trio.to_thread.run_sync(_listen, name)
        with listener:
            await trio.to_thread.run_sync(_start, program, name, tun, listener, log)
        # From here on the process alone holds link and socket.
        try:
            device = await attach(name)
        except InterfaceMissing:
            socket_path(name).unlink(missing_ok=True)
            said = os.pread(log, _LOG_SIZE, 0).rstrip(b"\0").decode("utf-8", "replace").strip()
            raise TunError(f"{_PROGRAM} ended at once: {said or 'it said nothing'}") from None
    return link, device


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
    program = shutil.which(_PROGRAM)
    if program is None:
        raise BackendUnavailable(_MISSING_PROGRAM)
    return program


def _tun_flags(program: str) -> int:
    """How wireguard-go makes its TUN itself, and so expects one that it is given.

    With other flags handshakes pass and every packet is lost. It changed with version
    0.0.20231211; Debian 12 has 0.0.20220316. One that tells no version is taken for a new one.
    """
    told = subprocess.run(
        [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    version = re.match(rb"wireguard-go v\d+\.\d+\.(\d{8})\b", told.stdout)
    if version is not None and int(version[1]) < _HEADERS_CHANGED:
        return _IFF_TUN
    return _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR


@contextlib.contextmanager
def _tun_link(name: str, flags: int) -> Iterator[int]:
    """A new TUN link, which lasts as long as somebody holds its descriptor."""
    try:
        descriptor = os.open(_TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise BackendUnavailable(_MISSING_TUN) from None
        raise tun_error(error, f"opening {_TUN_DEVICE}") from error
    try:
        request = _IFREQ.pack(name.encode("ascii"), flags)
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, request)
        except OSError as error:
            raise tun_error(error, f"creating {name}") from error
        yield descriptor
    finally:
        os.close(descriptor)


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


def _start(program: str, interface: str, tun: int, listener: socket.socket, log: int) -> None:
    """Start the process in a session of its own, as nobody's child.

    setsid(1) forks and is gone: so the process is never ours to wait for, whether this daemon
    started it or found it, and it leaves no zombie here.
    """
    started = subprocess.run(
        ["setsid", "--fork", program, "-f", interface],
        # Nothing of the daemon's own environment (its notify socket, say) goes along.
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "WG_TUN_FD": str(tun),
            "WG_UAPI_FD": str(listener.fileno()),
            "WG_PROCESS_FOREGROUND": "1",
            "LOG_LEVEL": "error",
            # A crash tells why, and shows no memory.
            "GOTRACEBACK": "none",
        },
        pass_fds=(tun, listener.fileno()),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        check=False,
    )
    if started.returncode != 0:
        raise TunError(f"starting {program}: setsid ended with {started.returncode}")


@contextlib.contextmanager
def _bounded_log() -> Iterator[int]:
    """Memory for the first words of the process, never a disk: it logs each packet that it could
    not send, so a file would grow without end. What does not fit is refused, and lost.
    """
    descriptor = os.memfd_create(f"{_PROGRAM}-log", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, _LOG_SIZE)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        yield descriptor
    finally:
        os.close(descriptor)
