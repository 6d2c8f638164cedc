"""Where a peer's key exchange is: one address after the other of those that its name has."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address, ip_address
from itertools import zip_longest
from typing import Final

import trio

from kex.address import Address
from vpnd.config_fields import Endpoint

RESOLVE_SECONDS = 10.0

_EVERYBODY: Final = IPv4Address("255.255.255.255")
_TOLD: Final = 3
_LOOK_UPS: Final = trio.CapacityLimiter(20)
"""Threads of their own, which a name service that does not answer holds for half a minute each:
netlink and files have others, and wait for none of these."""


class PeerAddresses:
    """The addresses of one endpoint; a numeric one has just itself."""

    def __init__(self, endpoint: Endpoint | None) -> None:
        self._endpoint = endpoint
        self._candidates: list[Address] = []
        self._tried: list[Address] = []
        self.current: Address | None = None
        if endpoint is not None and endpoint.address is not None:
            self.current = Address(endpoint.host, endpoint.port)

    async def advance(self) -> str:
        """Make the next address current; a name is looked up anew. What went wrong, or ''.

        IPv6 and IPv4 take turns. A name that cannot be looked up leaves the address as it was.
        """
        endpoint = self._endpoint
        if endpoint is None or endpoint.address is not None:
            return ""
        try:
            with trio.fail_after(RESOLVE_SECONDS):
                found = await trio.to_thread.run_sync(
                    partial(
                        socket.getaddrinfo, endpoint.host, endpoint.port, type=socket.SOCK_DGRAM
                    ),
                    abandon_on_cancel=True,
                    limiter=_LOOK_UPS,
                )
        except (OSError, UnicodeError) as error:
            return f"{endpoint.host}: cannot be looked up: {_reason(error)}"
        except trio.TooSlowError:
            return f"{endpoint.host}: no answer from the name service"
        addresses = _taking_turns(found)
        self._candidates = [each for each in addresses if is_of_one_host(each.host)]
        if not self._candidates:
            told = ", ".join(each.host for each in addresses[:_TOLD])
            if told:
                return f"{endpoint.host}: has no address of one host, but {told}"
            return f"{endpoint.host}: has no address"
        self._tried = [address for address in self._tried if address in self._candidates]
        if len(self._tried) == len(self._candidates):
            self._tried = []
        self.current = next(a for a in self._candidates if a not in self._tried)
        self._tried.append(self.current)
        return ""


def is_of_one_host(address: str) -> bool:
    """What an endpoint in a file may be as a number, a name may lead to."""
    found = ip_address(address)
    many = found.is_multicast or found.is_unspecified or found == _EVERYBODY
    return not (many or found.is_link_local)


def _taking_turns(
    found: Sequence[tuple[int, int, int, str, tuple[object, ...]]],
) -> list[Address]:
    of_family: dict[int, list[Address]] = {socket.AF_INET6: [], socket.AF_INET: []}
    for family, _, _, _, address in found:
        host, port = address[0], address[1]
        if family in of_family and isinstance(host, str) and isinstance(port, int):
            of_family[family].append(Address(host, port))
    pairs = zip_longest(of_family[socket.AF_INET6], of_family[socket.AF_INET])
    return list(dict.fromkeys(a for pair in pairs for a in pair if a is not None))


def _reason(error: OSError | UnicodeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
