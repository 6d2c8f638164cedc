"""What the control socket may ask of the daemon, who asks, and how it is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol

from vpnd.api import (
    ErrorBody,
    ErrorCode,
    ErrorDetail,
    ErrorInfo,
    FallbackExtension,
    KeySourceInfo,
    KeySourceTest,
    LinkStatus,
    NodeStatus,
    PeerInfo,
    PeerRemoved,
    RekeyStarted,
    ReloadResult,
)
from vpnd.config_model import PeerRequest
from vpnd.event_feed import Subscription

HTTP_STATUS: Final = MappingProxyType(
    {
        ErrorCode.BAD_REQUEST: 400,
        ErrorCode.NOT_ALLOWED: 403,
        ErrorCode.NO_SUCH_ROUTE: 404,
        ErrorCode.NO_SUCH_PEER: 404,
        ErrorCode.NO_SUCH_SOURCE: 404,
        ErrorCode.METHOD_NOT_ALLOWED: 405,
        ErrorCode.PEER_EXISTS: 409,
        ErrorCode.CONFLICT: 409,
        ErrorCode.TOO_LARGE: 413,
        ErrorCode.INVALID: 422,
        ErrorCode.INTERNAL: 500,
        ErrorCode.BACKEND_FAILED: 500,
        ErrorCode.UNAVAILABLE: 503,
    }
)


@dataclass(frozen=True, slots=True)
class Caller:
    """The process at the other end of a control connection, as the kernel knows it."""

    pid: int
    uid: int
    gid: int


class ControlError(Exception):
    """A request that is refused, with what the client is told. Never put a secret in here."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        hint: str = "",
        details: Iterable[ErrorDetail] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = tuple(details)

    @property
    def http_status(self) -> int:
        """The HTTP status that goes with the code."""
        return HTTP_STATUS[self.code]

    def body(self) -> ErrorBody:
        """The answer's JSON."""
        return ErrorBody(
            error=ErrorInfo(
                code=self.code.value,
                message=self.message,
                hint=self.hint,
                details=list(self.details),
            )
        )


def no_such_peer(name: str) -> ControlError:
    """For a name that is not that of a peer."""
    return ControlError(
        ErrorCode.NO_SUCH_PEER, f"there is no peer {name}", "`vpnctl peer list` names them all"
    )


def is_held(name: str, reason: str) -> ControlError:
    """For a peer that does not run, since something is wrong with its file."""
    return ControlError(
        ErrorCode.CONFLICT,
        f"the peer {name} does not run: {reason}",
        f"correct its file, and `vpnctl reload`; or `vpnctl peer remove {name}`",
    )


def no_such_source(name: str) -> ControlError:
    """For a name that is not that of a key source."""
    return ControlError(
        ErrorCode.NO_SUCH_SOURCE,
        f"there is no key source {name}",
        "`vpnctl keysource list` names them all",
    )


def not_guarded(peer: str, fault: str) -> ControlError:
    """For a link whose guard routes cannot be set: it is not begun, nor changed."""
    return ControlError(
        ErrorCode.BACKEND_FAILED,
        f"nothing was changed, since {peer} cannot be guarded: {fault}",
        "put right what stands in the way of the guard routes, and try again",
    )


def not_taken(error: ValueError) -> ControlError:
    """For what the key exchange itself objects to; the configuration's checks come before."""
    return ControlError(
        ErrorCode.CONFLICT,
        f"nothing was changed, since the key exchange does not take it: {error}",
        "correct the identities that the text names",
    )


class NodeControl(Protocol):
    """The daemon, as far as its control socket goes.

    Every method may raise ControlError, ConfigErrors (told as `invalid`, with every problem) and
    FileFault; anything else counts as a bug and is told as `internal`.
    """

    async def status(self) -> NodeStatus:
        """The whole node."""

    async def link(self, name: str) -> LinkStatus:
        """One link; `no_such_peer`."""

    async def peers(self) -> list[PeerInfo]:
        """The peers as configured."""

    async def add_peer(self, request: PeerRequest, caller: Caller) -> LinkStatus:
        """Write the peer's file and start its link; `peer_exists`, and ConfigErrors."""

    async def change_peer(self, name: str, change: Mapping[str, Any], caller: Caller) -> LinkStatus:
        """Change keys of the peer's file, and its link; `no_such_peer`, and ConfigErrors."""

    async def reload(
        self, *, dry_run: bool, caller: Caller | None, remove_all: bool = False
    ) -> ReloadResult:
        """Take the configuration as it is on disk; ConfigErrors, and `conflict` where that needs
        a restart. `remove_all` says that all peers are meant to be gone."""

    async def remove_peer(self, name: str, caller: Caller) -> PeerRemoved:
        """End the link and remove the peer's file; `no_such_peer`."""

    async def rekey(self, name: str, caller: Caller) -> RekeyStarted:
        """Start an exchange now; `no_such_peer`."""

    async def extend_fallback(
        self, name: str, request: FallbackExtension, caller: Caller
    ) -> LinkStatus:
        """Let a fallback go on for longer, once; `no_such_peer`, and `conflict`."""

    async def key_sources(self) -> list[KeySourceInfo]:
        """The key sources as they are known now."""

    async def key_source(self, name: str) -> KeySourceInfo:
        """One key source; `no_such_source`."""

    async def test_key_source(
        self, name: str, *, peer: str | None, consume_one: bool, deep: bool, caller: Caller
    ) -> KeySourceTest:
        """Try a source; `no_such_source`, `no_such_peer`, and `conflict`."""

    def subscribe_events(self) -> Subscription:
        """A subscription of its own to the daemon's EventFeed."""

    def kept_events(
        self, *, since: float | None, last: int | None, peer: str | None
    ) -> list[bytes]:
        """Lines of the past, from the daemon's EventFeed."""
