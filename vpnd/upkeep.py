"""What somebody else did to interfaces, routes and guards is noticed, told, and put right.

    something changed ──▶ guards ──▶ interfaces (VRF, MTU, addresses, state, port) ──▶ routes
    (or 30 s are over)
    a guard route was deleted ──▶ put back at once, however often
    a fence was changed       ──▶ put back at once

Only what is ours is touched. Peers on an interface, and its key, show in its dumps: vpnd.tunnels.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final

import trio

from tun import Changes, ChangeWatch, FenceWatch
from vpnd.tunnels import RETRY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vpnd.guards import Guards
    from vpnd.journal import Journal
    from vpnd.tunnels import ManagedTunnel

CHECK_SECONDS: Final = 30.0
"""A change that the kernel tells nobody of (IPv4 routes of an interface that goes down) is found
this late at the most."""
CALM_SECONDS: Final = 1.0
"""Between two checks, whatever is changed meanwhile: somebody else may change it back each time."""
CALM_SHARE: Final = 20
"""And this many times what a check takes, with many peers, up to CALM_AT_MOST: while they come up,
each new route is a change."""
CALM_AT_MOST: Final = 5.0


class Upkeep:
    """Looks after what the daemon has set up, while it runs."""

    def __init__(
        self,
        guards: Guards,
        tunnels: Mapping[str, ManagedTunnel],
        unchanging: Callable[[], AbstractAsyncContextManager[object]],
        look_at_forwarding: Callable[[], Awaitable[None]],
        journal: Journal,
    ) -> None:
        """Within `unchanging` no peer comes, goes or changes."""
        self._look_at_forwarding = look_at_forwarding
        self._guards = guards
        self._tunnels = tunnels
        self._unchanging = unchanging
        self._journal = journal
        self._changed = trio.Event()

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            try:
                with ChangeWatch() as watch:
                    await self._watch(watch)
            except* OSError as errors:
                reason = "; ".join(str(error) for error in errors.exceptions)
                self._journal.record("changes_unseen", level="error", reason=reason)
            await self._surviving(self._check)
            await trio.sleep(RETRY_SECONDS)

    async def _watch(self, watch: ChangeWatch) -> None:
        """Act on changes. Raises a group of OSError where none is told any more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._check_calmly)
            nursery.start_soon(self._keep_fences)
            while True:
                changes = await watch.wait_changed()
                self._changed.set()
                if changes.deleted_guards:
                    await self._put_back(changes)

    async def _put_back(self, changes: Changes) -> None:
        async def put_back() -> None:
            await self._guards.put_back(changes.deleted_guards)

        await self._surviving(put_back)

    async def _keep_fences(self) -> None:
        try:
            watch = FenceWatch()
        except OSError:
            return  # without nftables there is no fence
        with watch:
            while True:
                await watch.wait_changed()
                await self._surviving(self._guards.check_fences)

    async def _check_calmly(self) -> None:
        while True:
            with trio.move_on_after(RETRY_SECONDS if self._guards.is_faulty else CHECK_SECONDS):
                await self._changed.wait()
            self._changed = trio.Event()
            began = trio.current_time()
            await self._surviving(self._check)
            calm = CALM_SHARE * (trio.current_time() - began)
            await trio.sleep(min(max(CALM_SECONDS, calm), CALM_AT_MOST))

    async def _check(self) -> None:
        async with self._unchanging():
            await self._guards.check()
        for tunnel in tuple(self._tunnels.values()):
            await tunnel.restore()
        await self._look_at_forwarding()

    async def _surviving(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except Exception as error:
            # A bug: the links go on
            self._journal.record("internal_error", level="error", reason="upkeep", exc_info=error)
