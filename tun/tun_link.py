"""Making a TUN link, which lasts as long as somebody holds its descriptor."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import subprocess

from tun.errors import BackendUnavailable, TunError, tun_error

__all__ = ["expected_flags", "open_tun_link"]

_TUN_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFREQ = struct.Struct("16sH22x")
_MISSING_TUN = (
    f"{_TUN_DEVICE} does not exist: modprobe tun; a container has to be given it "
    f"(--device {_TUN_DEVICE})"
)
_MISSING_TUN_DRIVER = f"{_TUN_DEVICE} has no driver in this kernel: modprobe tun"
_MISSING_TUN_RIGHT = (
    f"{_TUN_DEVICE} is there and may not be opened: a container has to be given it "
    f"(--device {_TUN_DEVICE}), a service needs DeviceAllow="
)

WITH_INFORMATION = _IFF_TUN
"""Each packet behind four bytes of packet information: wireguard-go before 0.0.20231211."""
WITH_OFFLOADS = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
"""Each packet behind a header of virtio, for segmentation offloads: 0.0.20231211 and newer."""

_PROBE = "vpnd-probe%d"
_PROBE_SECONDS = 10.0
_SIOCGIFMTU = 0x8921
_SIOCETHTOOL = 0x8946
_ETHTOOL_GTSO = 0x1E
_FIRST_MTU = 1500
"""Bytes, of a TUN link that nobody has touched."""


def open_tun_link(name: str, program: str) -> int:
    """The descriptor of a new TUN link, as this wireguard-go expects it. Blocking.

    Raises BackendUnavailable or TunError.
    """
    return _open(name, expected_flags(program))[0]


def expected_flags(program: str) -> int:
    """How a wireguard-go makes its TUN itself, and so expects one that it is given. Blocking.

    With other flags handshakes pass and every packet is lost. No version tells: the 0.0.20231211 of
    Debian 13 prints the same as Ubuntu 24.04's 0.0.20230223, and expects something else. So it is
    tried out, on a link of its own that nobody sees up: told of no socket to listen on, the program
    takes up its link and ends. It has set the link's MTU then, and one that reads the header of
    virtio has switched segmentation offloads on.

    Raises BackendUnavailable or TunError.
    """
    descriptor, name = _open(_PROBE, WITH_OFFLOADS)
    try:
        said = _run_up_to_its_link(program, name, descriptor)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as control:
            if _segments(control, name):
                return WITH_OFFLOADS
            if _mtu(control, name) != _FIRST_MTU:
                return WITH_INFORMATION
    except OSError as error:
        raise tun_error(error, f"trying out {program}") from error
    finally:
        os.close(descriptor)
    raise TunError(f"{program} does not take up a TUN link: {said or 'it said nothing'}")


def _run_up_to_its_link(program: str, name: str, descriptor: int) -> str:
    """What it said. Raises TunError, OSError."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "WG_TUN_FD": str(descriptor),
        "WG_UAPI_FD": "none",
        "WG_PROCESS_FOREGROUND": "1",
        "LOG_LEVEL": "error",
    }
    try:
        done = subprocess.run(
            [program, "-f", name],
            env=environment,
            pass_fds=(descriptor,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TunError(
            f"{program} was tried out on a TUN link and has not ended in {_PROBE_SECONDS:.0f} s"
        ) from None
    return done.stdout[-500:].decode("utf-8", "replace").strip()


def _segments(control: socket.socket, name: str) -> bool:
    """Whether the link takes packets that are still to be cut. Raises OSError."""
    answer = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_GTSO, 0), 8)
    request = struct.pack("@16sP16x", name.encode("ascii"), ctypes.addressof(answer))
    fcntl.ioctl(control, _SIOCETHTOOL, request)
    return bool(struct.unpack("=II", answer.raw)[1])


def _mtu(control: socket.socket, name: str) -> int:
    """Bytes. Raises OSError."""
    answer = fcntl.ioctl(control, _SIOCGIFMTU, struct.pack("=16si20x", name.encode("ascii"), 0))
    mtu: int = struct.unpack_from("=16si", answer)[1]
    return mtu


def _open(name: str, flags: int) -> tuple[int, str]:
    """The descriptor of a new TUN link, and its name: the kernel puts a number in for `%d`."""
    request = _IFREQ.pack(name.encode("ascii"), flags)
    descriptor = _open_device()
    try:
        made = fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except OSError as error:
        os.close(descriptor)
        raise tun_error(error, f"creating {name}") from error
    return descriptor, made[:16].rstrip(b"\0").decode("ascii")


def _open_device() -> int:
    try:
        return os.open(_TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise BackendUnavailable(_MISSING_TUN) from None
        if error.errno in (errno.ENODEV, errno.ENXIO):
            raise BackendUnavailable(_MISSING_TUN_DRIVER) from None
        if error.errno == errno.EPERM:  # of a device's control group; EACCES is the file's mode
            raise BackendUnavailable(_MISSING_TUN_RIGHT) from None
        raise tun_error(error, f"opening {_TUN_DEVICE}") from error
