"""A key provider after draft-cisco-skip, as a key source."""

from __future__ import annotations

from collections.abc import Callable

import trio

from kex.external import ExternalKey, ExternalKeyReference
from kex.secret import Secret
from vpnd.clock import boottime
from vpnd.config_key_sources import SkipSourceConfig
from vpnd.keysource.addresses import Address
from vpnd.keysource.base import (
    Correspondent,
    SourceError,
    SourceFault,
    SourceListener,
    SourceType,
)
from vpnd.keysource.https_call import Answer
from vpnd.keysource.json_answer import quoted_untrusted
from vpnd.keysource.key_manager import AskFailed, BadAnswer
from vpnd.keysource.probing import Question
from vpnd.keysource.remote_source import Had, RemoteSource
from vpnd.keysource.skip import (
    KEY_ID,
    Capabilities,
    capabilities_request,
    key_by_id_request,
    key_request,
    matches_glob,
    read_capabilities_untrusted,
    read_key_untrusted,
)
from vpnd.keysource.used_keys import UsedKeys


class SkipSource(RemoteSource):
    """See RemoteSource; here is what the draft makes of it."""

    _type = SourceType.SKIP
    _key_id = KEY_ID
    _key_id_is = "hexadecimal digits"

    def __init__(
        self,
        name: str,
        config: SkipSourceConfig,
        listener: SourceListener,
        *,
        used: UsedKeys | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        super().__init__(
            name, config, listener, used=used or UsedKeys(), what="key provider", clock=clock
        )
        self._skip = config
        self._known: Capabilities | None = None

    async def _fetch(self, far: Correspondent, room: trio.CapacityLimiter) -> ExternalKey:
        known = await self._capabilities(far, room)
        bits = self._skip.key_size
        try:
            one = await self._manager.ask(
                key_request(far.peer_id, bits=bits),
                lambda answer, _: read_key_untrusted(answer, length=bits // 8),
                room=room,
            )
        except AskFailed as failed:
            if failed.consumed:
                self._health.counters["maybe_lost"] += 1
            raise
        self._fresh(far, [one.key_id], [one.key])
        self._health.succeeded(far=far.peer_id, link=far.link)
        own = known.local_system_id
        return ExternalKey(
            ExternalKeyReference(self._type.value, own, own, (one.key_id,), bits), one.key
        )

    async def _ask_for(
        self, far: Correspondent, reference: ExternalKeyReference, had: Had
    ) -> Secret:
        if len(reference.key_ids) != 1:
            raise SourceError(
                self._name,
                SourceFault.WRONG_KEY_ID,
                f"the far end names {len(reference.key_ids)} key IDs; SKIP has one for each key",
            )
        await self._capabilities(far, self._retrieving)
        (key_id,) = reference.key_ids
        try:
            one = await self._manager.ask(
                key_by_id_request(far.peer_id, key_id),
                self._read_by_id(
                    far,
                    had,
                    lambda answer, _: read_key_untrusted(
                        answer, length=reference.bits // 8, wanted=key_id
                    ),
                ),
                room=self._retrieving,
                about_to_ask=lambda: self.used.add_id(far.peer_id, key_id),
            )
        except AskFailed as failed:
            if failed.consumed:
                self._health.counters["maybe_lost"] += 1
            else:
                self.used.forget_id(far.peer_id, key_id)
            raise
        self._health.succeeded(far=far.peer_id, link=far.link)
        self.used.add_key(one.key)
        return one.key

    async def _capabilities(self, far: Correspondent, room: trio.CapacityLimiter) -> Capabilities:
        """What is known, asked for if nothing is; checked for this far end. Raises SourceError."""
        if self._known is None:
            await self._look(far, room)
        try:
            return self._serving(self._known, far)
        except BadAnswer as bad:
            url = self._manager.addresses.current.url
            raise SourceError(
                self._name, bad.fault, f"{url}, capabilities: {bad.reason}", bad.hint
            ) from None

    def _serving(self, known: Capabilities | None, far: Correspondent) -> Capabilities:
        """What is known, if keys with this far end can be had. Raises BadAnswer."""
        if known is None or not known.gives_keys:
            raise BadAnswer(
                SourceFault.UNAUTHORIZED,
                "it gives no keys",
                "is it a key provider of entropy only?",
                undelivered=True,
            )
        if not any(matches_glob(glob, far.peer_id) for glob in known.remote_system_ids):
            served = ", ".join(quoted_untrusted(one) for one in known.remote_system_ids[:8])
            raise BadAnswer(
                SourceFault.UNAUTHORIZED,
                f'it has no keys with "{far.peer_id}"; it serves {served or "nobody"}',
                "is peer_sae the far end's localSystemID?",
                undelivered=True,
            )
        return known

    async def _look(self, far: Correspondent, room: trio.CapacityLimiter) -> None:
        self._looked_at[far.peer_id] = trio.current_time()
        self._known = await self._manager.ask(
            capabilities_request(), self._read_capabilities, room=room
        )
        self._answered(far)
        self._health.succeeded()

    def _read_capabilities(self, answer: Answer, address: Address) -> Capabilities:
        found = read_capabilities_untrusted(answer)
        if not matches_glob(self._skip.local_system_id, found.local_system_id):
            raise BadAnswer(
                SourceFault.CERTIFICATE,
                f'expected a localSystemID like "{self._skip.local_system_id}"; it is '
                f'"{found.local_system_id}"',
                "is this the right address, and local_system_id what the provider has?",
            )
        address.identity = found.local_system_id
        return found

    def _questions(self, far: Correspondent | None) -> list[Question]:
        def read(answer: Answer, address: Address) -> str:
            known = self._known = self._read_capabilities(answer, address)
            if far is not None:
                self._serving(known, far)
            serves = ", ".join(quoted_untrusted(one) for one in known.remote_system_ids[:8])
            return f"{known.local_system_id}; keys with {serves or 'nobody'}"

        return [Question("status", capabilities_request(), read)]
