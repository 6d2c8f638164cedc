"""Making a TUN link, which lasts as long as somebody holds its descriptor."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import subprocess

from tun.errors import BackendUnavailable, tun_error

__all__ = ["open_tun_link"]

_TUN_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFREQ = struct.Struct("16sH22x")

_HEADERS_CHANGED = 20231211
_MISSING_TUN = (
    f"{_TUN_DEVICE} does not exist: modprobe tun; a container has to be given it "
    f"(--device {_TUN_DEVICE})"
)
_MISSING_TUN_DRIVER = f"{_TUN_DEVICE} has no driver in this kernel: modprobe tun"
_MISSING_TUN_RIGHT = (
    f"{_TUN_DEVICE} is there and may not be opened: a container has to be given it "
    f"(--device {_TUN_DEVICE}), a service needs DeviceAllow="
)


def open_tun_link(name: str, program: str) -> int:
    """The descriptor of a new TUN link, as this wireguard-go expects it. Blocking.

    Raises BackendUnavailable or TunError.
    """
    request = _IFREQ.pack(name.encode("ascii"), _flags(program))
    descriptor = _open_device()
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except OSError as error:
        os.close(descriptor)
        raise tun_error(error, f"creating {name}") from error
    return descriptor


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


def _flags(program: str) -> int:
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
