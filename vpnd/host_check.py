"""What this host lacks for the tunnels of a configuration, found out without making anything.

For `vpnctl check`, which loads nothing of the daemon's. That one finds out when it makes a tunnel.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
from collections.abc import Iterator
from typing import Final

from vpnd.config import Config
from vpnd.config_errors import ConfigProblem

TUN_DEVICE: Final = "/dev/net/tun"
_PROGRAM: Final = "wireguard-go"
_NETLINK_GENERIC: Final = 16
# linux/netlink.h, linux/genetlink.h: CTRL_CMD_GETFAMILY of the controller, by name
_FAMILY: Final = b"wireguard\0"
_REQUEST: Final = (
    struct.pack("=IHHII", 16 + 4 + 4 + len(_FAMILY) + 2, 0x10, 1, 1, 0)
    + struct.pack("=BBH", 3, 1, 0)
    + struct.pack("=HH", 4 + len(_FAMILY), 2)
    + _FAMILY
    + bytes(2)
)
_ERROR: Final = struct.Struct("=IHHIIi")
_NLMSG_ERROR: Final = 2


def missing_backends(config: Config) -> Iterator[ConfigProblem]:
    """A note for each tunnel whose backend this host surely lacks. Blocking.

    What this user may not find out is taken to be there.
    """
    for tunnel in config.tunnels.values():
        lacks = [] if tunnel.backend == "userspace" else _no_kernel()
        if tunnel.backend == "userspace" or (tunnel.backend == "auto" and lacks):
            userspace = _no_userspace()
            lacks = [*userspace, *lacks] if userspace else []
        if lacks:
            reasons, hints = zip(*lacks, strict=True)
            key = f"tunnels.{tunnel.name}.backend"
            yield ConfigProblem(config.path, key, " and ".join(reasons), "; or ".join(hints))


def _no_kernel() -> list[tuple[str, str]]:
    """The kernel loads the module when it is asked for the family."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as asked:
            asked.settimeout(5)
            asked.send(_REQUEST)
            answer = asked.recv(4096)
    except OSError:
        return []
    _, kind, _, _, _, error = _ERROR.unpack_from(answer)
    if kind == _NLMSG_ERROR and error == -errno.ENOENT:
        return [("this kernel has no WireGuard", "install a kernel with the module wireguard")]
    return []


def _no_userspace() -> list[tuple[str, str]]:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    if shutil.which(_PROGRAM, path=path) is None:
        return [(f"{_PROGRAM} is not installed", f"apt-get install {_PROGRAM}")]
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        # EACCES is the file's mode, and may be right for the daemon
        if error.errno != errno.EACCES:
            hint = f"modprobe tun; a container has to be given it: --device {TUN_DEVICE}"
            missing = isinstance(error, FileNotFoundError)
            why = "does not exist" if missing else f"cannot be opened: {error.strerror}"
            return [(f"{TUN_DEVICE} {why}", hint)]
    return []
