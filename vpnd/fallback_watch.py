"""What is mixed into a link's keys, and the fallback of a link in `prefer`: kept over restarts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from vpnd import external_policy as policy
from vpnd.clock import boottime, rfc3339, wall_of
from vpnd.config_model import ExternalKeys
from vpnd.external_record import ExternalRecord, ExternalRecords
from vpnd.fallback import Fallback, NotExtensible
from vpnd.file_trust import FileFault
from vpnd.journal import Journal
from vpnd.mixed_key import MixedKey

MAX_SLEEP: Final = 30.0
"""Seconds: the boot clock runs on in suspend, the one that sleeps are measured by does not."""
KEPT_KEYS: Final = 3
"""Installed, the one before, and the one in force, which may be much older."""


class FallbackWatch:
    """Knows the sources of the link's keys, and how long it may go on without."""

    def __init__(
        self,
        peer: str,
        external: ExternalKeys,
        records: ExternalRecords,
        journal: Journal,
        changed: Callable[[], None],
    ) -> None:
        self._peer = peer
        self._external = external
        self._records = records
        self._journal = journal
        self._changed = changed
        """Called when the mode that exchanges go by may be another one."""
        record = records.load(peer)
        self.keys: Mapping[str, tuple[MixedKey, ...]] = record.keys
        """By key id, the newest last: what is mixed into it."""
        self.fallback: Fallback | None = None
        self._good_until = -math.inf
        self._told_over = False
        self._missing_reason = ""
        self._sooner = trio.Event()
        self.record_fault = ""
        if record.fallback is not None and external.mode == "prefer":
            self.fallback = record.fallback.with_limit(external.fallback_limit)
            self._told_over = self.fallback.over(boottime())

    # ---- reading

    def over_with(self, external: ExternalKeys) -> bool:
        """Whether a fallback is over its limit, with that configuration."""
        if self.fallback is None or external.mode != "prefer":
            return False
        return self.fallback.with_limit(external.fallback_limit).over(boottime())

    @property
    def over(self) -> bool:
        return self.over_with(self._external)

    @property
    def good_key_lives(self) -> bool:
        """Whether a key with all that is needed is in use, and not near the end of its life."""
        return boottime() < self._good_until

    @property
    def newest(self) -> tuple[str, ...]:
        """The sources of the key that was set last."""
        newest = self.keys[[*self.keys][-1]] if self.keys else ()
        return tuple(mixed.source for mixed in newest)

    def newest_has(self, needed: policy.Needed) -> bool:
        """Whether the key that was set last has what is needed."""
        return needed.met(self.newest, self.newest)

    @property
    def standing(self) -> str:
        """What is not as configured, in words; empty if nothing is."""
        if self._external.mode == "off":
            return ""
        if self.fallback is not None:
            if self.over:
                return f"the fallback is over its limit, and no key comes without: {self._why}"
            return f"fallback, without the external keys that are needed: {self._why}"
        if not self.keys:
            return ""
        newest = self.keys[[*self.keys][-1]]
        lacking = policy.missing(self._external, [mixed.source for mixed in newest])
        if not lacking:
            return ""
        why = f": {self._missing_reason}" if self._missing_reason else ""
        return f"no key of {', '.join(lacking)} is mixed{why}"

    @property
    def _why(self) -> str:
        return "" if self.fallback is None else self.fallback.reason

    def sources_of(self, key_id: str) -> dict[str, Any]:
        """For a record of a key: the sources that are mixed into it, and the IDs of their keys."""
        mixed = self.keys.get(key_id, ())
        if not mixed:
            return {}
        ids = [each for one in mixed for each in one.key_ids]
        return {
            "sources": ", ".join(one.source for one in mixed),
            "external_key_ids": ", ".join(ids),
        }

    # ---- what happens

    def key_set(
        self,
        key_id: str,
        mixed: tuple[MixedKey, ...],
        reason: str,
        *,
        lifetime: int,
        in_force: str = "",
    ) -> None:
        """A key was set on the interface with these mixed, and lives for `lifetime` seconds;
        `reason` says why others are not mixed. The key `in_force` is in use on: what is mixed into
        it stays known, however many came after it."""
        kept = dict(self.keys)
        kept.pop(key_id, None)
        kept[key_id] = mixed
        while len(kept) > KEPT_KEYS:
            del kept[next(each for each in kept if each != in_force)]
        self.keys = kept
        self._missing_reason = reason
        names = [each.source for each in mixed]
        if policy.is_fallback(self._external, names):
            self._good_until = -math.inf
            self._without(reason)
        else:
            self._good_until = boottime() + lifetime / 2
            if self.fallback is not None:
                self._end("a key with external keys is established")
        if self._external.mode != "off" or mixed:
            self._remember()

    def still_missing(self, reason: str) -> None:
        """An exchange that was to bring the missing keys back gave none: why that is so now."""
        self._missing_reason = reason
        if self.fallback is not None and self.fallback.reason != reason:
            self._without(reason)
            self._remember()

    def adopted(self, key_id: str) -> None:
        """A key of an earlier run is in use. Where nobody knows what is mixed into it (the link had
        no external keys then, or the record is lost) it counts as one without."""
        if key_id not in self.keys:
            self.keys = {**self.keys, key_id: ()}
        self._judge_newest("none is known to be mixed into the key that was found after a restart")
        if self._external.mode != "off":
            self._remember()  # another restart must not start the time anew

    def _judge_newest(self, reason: str) -> None:
        """A key that was in use before may be one that the policy of now admits for a time only."""
        if not self.keys or self.fallback is not None:
            return
        names = [mixed.source for mixed in self.keys[[*self.keys][-1]]]
        if policy.is_fallback(self._external, names):
            self._without(reason)

    def _without(self, reason: str) -> None:
        if self.fallback is not None:
            self.fallback = self.fallback.because(reason)
            return
        self.fallback = Fallback(boottime(), reason, self._external.fallback_limit)
        self._told_over = False
        self._journal.record(
            "fallback_started",
            peer=self._peer,
            level="warning",
            reason=reason,
            until=rfc3339(wall_of(self.fallback.deadline)),
        )
        self._sooner.set()

    def _end(self, reason: str) -> None:
        if self.fallback is None:
            return
        seconds = round(boottime() - self.fallback.started_at, 1)
        self.fallback = None
        self._told_over = False
        self._journal.record("fallback_ended", peer=self._peer, reason=reason, seconds=seconds)

    def take(self, external: ExternalKeys) -> None:
        """Go by this configuration from now on."""
        self._external = external
        if external.mode != "prefer":
            self._end(f'the mode is "{external.mode}" now')
        elif self.fallback is not None:
            self.fallback = self.fallback.with_limit(external.fallback_limit)
            self._told_over = self._told_over and self.fallback.over(boottime())
            self._sooner.set()
        else:
            self._judge_newest("the key in use is from before the policy was changed")
        self._remember()

    def extend(self, seconds: int, reason: str, *, uid: int) -> None:
        """Raises NotExtensible."""
        if self.fallback is None:
            raise NotExtensible("there is no fallback: the link has what is needed")
        self.fallback = self.fallback.extend(seconds, reason, uid=uid, now=boottime())
        self._told_over = False
        self._journal.record(
            "fallback_extended",
            peer=self._peer,
            level="warning",
            uid=uid,
            seconds=seconds,
            reason=reason,
            until=rfc3339(wall_of(self.fallback.deadline)),
        )
        self._remember()
        self._sooner.set()

    # ---- time

    async def run(self) -> None:
        """Tell when the limit is reached, until cancelled."""
        while True:
            self._sooner = trio.Event()
            self._look()
            left = math.inf
            if self.fallback is not None and not self._told_over:
                left = max(0.0, self.fallback.deadline - boottime())
            with trio.move_on_after(min(left, MAX_SLEEP) if left < math.inf else math.inf):
                await self._sooner.wait()

    def _look(self) -> None:
        if self.fallback is None or self._told_over or not self.fallback.over(boottime()):
            return
        self._told_over = True
        self._journal.record(
            "fallback_limit_reached",
            peer=self._peer,
            level="error",
            reason=self.fallback.reason,
            seconds=round(boottime() - self.fallback.started_at, 1),
        )
        self._changed()

    # ---- the record

    def _remember(self) -> None:
        try:
            self._records.store(self._peer, ExternalRecord(self.fallback, self.keys))
        except FileFault as fault:
            self._not_written(fault)
        else:
            self.record_fault = ""

    def forget(self) -> None:
        """The link is no longer configured."""
        try:
            self._records.forget(self._peer)
        except FileFault as fault:
            self._not_written(fault)

    def forget_keys(self) -> None:
        """The link has no key any more; a fallback goes on."""
        self.keys = {}
        self._good_until = -math.inf

    def _not_written(self, fault: FileFault) -> None:
        if self.record_fault != str(fault):
            self.record_fault = str(fault)
            self._journal.record(
                "record_not_written", peer=self._peer, level="warning", reason=str(fault)
            )
