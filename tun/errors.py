"""What can go wrong with a WireGuard interface, each with a message that says what to do.

A bug is not in this list: it propagates as what it is.
"""

from __future__ import annotations

import errno

__all__ = [
    "BackendUnavailable",
    "InterfaceMissing",
    "KeyChanged",
    "MalformedAnswer",
    "NotOurs",
    "PeerMissing",
    "ReadBackMismatch",
    "TunError",
    "tun_error",
]


class TunError(Exception):
    """Base of all errors of this package. The text never contains key material."""


class BackendUnavailable(TunError):
    """The backend asked for cannot be had on this host; the message names what to install."""


class NotOurs(TunError):
    """An interface, an address or a route stands in the way that vpnd did not make.

    Nothing was changed.
    """


class InterfaceMissing(TunError):
    """The interface, or the wireguard-go process behind it, is gone.

    Make it anew with ``open_tunnel``: it gets a new private key.
    """


class KeyChanged(InterfaceMissing):
    """The interface has another private key than it was given: it is not the one any more that
    the peers know. ``Tunnel.give_new_key`` makes it a new one."""


class PeerMissing(TunError):
    """The interface has no such peer (deleted by hand?). Nothing was created."""


class ReadBackMismatch(TunError):
    """The backend reported success, and reading back shows something else."""


class MalformedAnswer(TunError):
    """The backend's answer cannot be understood; nothing of it was used."""


def tun_error(error: OSError, doing: str) -> TunError:
    """The error to raise for one of the system's: what was being done, what came of it, a hint."""
    if error.errno == errno.ENODEV:
        return InterfaceMissing(f"{doing}: the interface is gone")
    if error.errno == errno.EADDRINUSE:
        return TunError(
            f"{doing}: the UDP port is in use (see `ss -ulnp`): choose another listen_port"
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return TunError(f"{doing}: {error.strerror} (vpnd needs CAP_NET_ADMIN)")
    return TunError(f"{doing}: {error.strerror or error}")
