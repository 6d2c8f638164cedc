"""Dumps of a tunnel's interface: how close together they come, and whom they are shown to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import trio

from tun import PeerStatus
from vpnd.clock import boottime
from vpnd.tunnel_users import TunnelUser, TunnelUsers

WHEN_IDLE: Final = 5.0
"""A new session is seen this late at the most, and renewals are due by its age."""
WHEN_AWAITED: Final = 1.0
AT_FIRST: Final = 0.05
"""After a key was set on a peer that had no session: WireGuard's handshake comes at once."""
SLOWER_EACH_TIME: Final = 1.5
"""The dumps after that, until they are as rare as those of any key that is awaited."""
MANY_PEERS: Final = 50
DUMPS_SHARE: Final = 100
"""With many peers, a pause follows a dump that is this many times as long as it took, up to
WHEN_IDLE: dumps cost 1 % of a core."""
FRESH_SECONDS: Final = 1.0
"""A dump of this age is good enough for who asks for a status."""


class TunnelDumps:
    """The dumps of one interface: each is shown to all links that use the tunnel."""

    def __init__(
        self, users: TunnelUsers, read: Callable[[], Awaitable[Mapping[bytes, PeerStatus]]]
    ) -> None:
        """`read` makes a dump. Raises TunError."""
        self._users = users
        self._read = read
        self._reading = trio.Lock()
        self._read_at = 0.0
        self._took = 0.0
        """Seconds, with the showing of it."""
        self._pause = WHEN_AWAITED
        self._wanted = trio.Event()

    async def wait_due(self) -> None:
        """Until the next dump is due: soon where a link waits for a handshake."""
        pause = self._pause_afterwards()
        await trio.sleep(pause)
        with trio.move_on_after(max(0.0, self._interval() - pause)):
            await self._wanted.wait()
        self._wanted = trio.Event()

    def want(self, *, at_first: bool = False) -> None:
        """Something is waited for from now on: do not sleep out a long interval.

        With `at_first` it comes in no time, if it comes: dumps are close together for a while.
        """
        if at_first:
            self._pause = AT_FIRST
        self._wanted.set()

    def _pause_afterwards(self) -> float:
        if len(self._users) <= MANY_PEERS:
            return 0.0
        return min(self._took * DUMPS_SHARE, WHEN_IDLE)

    def _interval(self) -> float:
        if not any(user.awaits_handshake() for user in self._users):
            self._pause = WHEN_AWAITED
            return WHEN_IDLE
        pause = self._pause
        self._pause = min(pause * SLOWER_EACH_TIME, WHEN_AWAITED)
        return pause

    async def refresh_for_status(self) -> None:
        """Have a dump that is fresh enough for who asks. Raises TunError.

        Where a key waits for its handshake, one of a second ago may name a key that is in force no
        longer, beside the far end's status that names the newer one.
        """
        awaited = any(user.awaits_handshake() for user in self._users)
        few = len(self._users) <= MANY_PEERS
        await self.refresh(at_most=0.0 if awaited and few else FRESH_SECONDS)

    async def refresh(self, *, at_most: float = FRESH_SECONDS) -> None:
        """Have a dump that is not older than `at_most` seconds. Raises TunError."""
        async with self._reading:
            # Before the dump: what is changed while it runs may or may not be in it
            now = boottime()
            if now - self._read_at < at_most:
                return
            peers = await self._read()
            self._read_at = now

            def show(user: TunnelUser) -> None:
                key = user.peer_key()
                if key is not None:
                    user.observe(peers.get(key), now)

            await self._users.tell(show)
            self._took = boottime() - now
