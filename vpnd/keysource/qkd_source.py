"""A key manager after ETSI GS QKD 014 V1.1.1, as a key source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import trio

from kex.external import MAX_KEY_IDS, ExternalKey, ExternalKeyReference
from kex.secret import Secret
from vpnd.clock import boottime
from vpnd.config_key_sources import QkdSourceConfig
from vpnd.keysource.addresses import Address
from vpnd.keysource.base import (
    Correspondent,
    ProbeStep,
    SourceError,
    SourceFault,
    SourceListener,
    SourceType,
)
from vpnd.keysource.etsi014 import (
    ANY_KEY_ID,
    KEY_ID,
    DeliveredKey,
    Status,
    get_key_request,
    get_key_with_ids_request,
    methods_request,
    read_any_answer_untrusted,
    read_keys_untrusted,
    read_methods_untrusted,
    read_no_key_untrusted,
    read_status_untrusted,
    status_request,
)
from vpnd.keysource.https_call import Answer
from vpnd.keysource.key_manager import AskFailed, BadAnswer
from vpnd.keysource.probing import Question
from vpnd.keysource.remote_source import Had, RemoteSource
from vpnd.keysource.used_keys import UsedKeys

TRIED_SIZES: Final = (128, 256, 512)
"""Bits, of keys that a deep test asks for."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a key is put together."""

    parts: int
    bits: int
    """Of each part."""


class QkdSource(RemoteSource):
    """See RemoteSource; here is what ETSI GS QKD 014 makes of it."""

    _type = SourceType.QKD
    _key_id = KEY_ID
    _key_id_is = "a UUID"

    def __init__(
        self,
        name: str,
        config: QkdSourceConfig,
        listener: SourceListener,
        *,
        used: UsedKeys | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        super().__init__(
            name,
            config,
            listener,
            used=used or UsedKeys(),
            what="KME",
            low_water=config.low_water,
            clock=clock,
        )
        self._qkd = config
        if "other-key-ids" in config.quirks:
            self._key_id, self._key_id_is = ANY_KEY_ID, "letters, digits and -._~+"
        self._post = config.verbs == "post"
        self._statuses: dict[str, Status] = {}

    # ---- keys

    async def _fetch(self, far: Correspondent, room: trio.CapacityLimiter) -> ExternalKey:
        if far.peer_id not in self._statuses and "no-status" not in self._qkd.quirks:
            await self._look(far, room)
        shape = self._shape(far)
        keys: list[DeliveredKey] = []
        said_name = ""
        while len(keys) < shape.parts:
            number = min(shape.parts - len(keys), self._at_once(far))
            try:
                more, said_name = await self._fetch_some(far, number, shape.bits, room)
                self._fresh(far, [one.key_id for one in more], [one.key for one in more])
            except SourceError:
                if keys:  # a key of which a part is missing is none
                    self._health.counters["maybe_lost"] += len(keys)
                    self._stock.used(far.peer_id, len(keys))
                raise
            keys += more
        self._health.succeeded(far=far.peer_id, link=far.link)
        return ExternalKey(
            ExternalKeyReference(
                source_type=self._type.value,
                source=said_name or self._name,
                sae=self._qkd.sae,
                key_ids=tuple(one.key_id for one in keys),
                bits=shape.parts * shape.bits,
            ),
            _joined(keys),
        )

    async def _fetch_some(
        self, far: Correspondent, number: int, bits: int, room: trio.CapacityLimiter
    ) -> tuple[list[DeliveredKey], str]:
        """New keys in one call, and what the KME calls itself."""
        try:
            return await self._manager.ask(
                get_key_request(
                    far.peer_id,
                    number=number,
                    size=self._size(bits),
                    post=self._post,
                    base=self._qkd.api_path,
                ),
                lambda answer, address: (
                    read_keys_untrusted(answer, number=number, length=bits // 8, form=self._key_id),
                    address.identity,
                ),
                room=room,
            )
        except AskFailed as failed:
            if failed.consumed:
                self._health.counters["maybe_lost"] += number
            raise

    def _at_once(self, far: Correspondent) -> int:
        """How many keys it gives in one call, as far as it has said so."""
        status = self._statuses.get(far.peer_id)
        return MAX_KEY_IDS if status is None else status.max_per_request or MAX_KEY_IDS

    async def _ask_for(
        self, far: Correspondent, reference: ExternalKeyReference, had: Had
    ) -> Secret:
        ids = reference.key_ids
        length = reference.bits // 8 // len(ids)
        if len(ids) > 1 and self._post:
            await self._learn_limit(far)
        # One ID a call where it is a GET (clause 5.4)
        size = self._at_once(far) if self._post else 1
        left = [key_id for key_id in ids if key_id not in had.parts]
        for at in range(0, len(left), size):
            group = tuple(left[at : at + size])
            for one in await self._ask_for_some(far, group, length, had):
                had.parts[one.key_id] = one
        found = [had.parts[key_id] for key_id in ids]
        self._health.succeeded(far=far.peer_id, link=far.link)
        for one in found:
            self.used.add_key(one.key)
        return _joined(found)

    async def _learn_limit(self, far: Correspondent) -> None:
        """Have a status, if there is none yet: how many keys it gives in one call stands there."""
        if far.peer_id in self._statuses or "no-status" in self._qkd.quirks:
            return
        try:
            await self._look(far, self._retrieving)
        except SourceError:
            return  # what it gives is seen when it is asked

    async def _ask_for_some(
        self, far: Correspondent, ids: tuple[str, ...], length: int, had: Had
    ) -> list[DeliveredKey]:
        def remember() -> None:
            # Before anything is sent: whatever becomes of the call, it is not made twice
            for key_id in ids:
                self.used.add_id(far.peer_id, key_id)

        try:
            return await self._manager.ask(
                get_key_with_ids_request(
                    far.peer_id, ids, post=self._post, base=self._qkd.api_path
                ),
                self._read_by_id(
                    far,
                    had,
                    lambda answer, _: read_keys_untrusted(
                        answer, number=len(ids), length=length, wanted=ids, form=self._key_id
                    ),
                ),
                room=self._retrieving,
                about_to_ask=remember,
            )
        except AskFailed as failed:
            if failed.consumed:
                self._health.counters["maybe_lost"] += len(ids)
            else:
                for key_id in ids:
                    self.used.forget_id(far.peer_id, key_id)
            raise

    def _shape(self, far: Correspondent) -> _Shape:
        """One key, or several that make one where it gives none so long. Raises SourceError."""
        bits = self._qkd.key_size
        status = self._statuses.get(far.peer_id)
        unit = 8 if "size-in-bytes" in self._qkd.quirks else 1
        longest = bits if status is None or not status.max_key_size else status.max_key_size * unit
        shortest = 0 if status is None or not status.min_key_size else status.min_key_size * unit
        for parts in range(1, MAX_KEY_IDS + 1):
            each = bits // parts
            if bits % (8 * parts) == 0 and shortest <= each <= longest:
                return _Shape(parts, each)
        raise SourceError(
            self._name,
            SourceFault.REFUSED,
            f"{self._manager.addresses.current.url}, status: expected keys of {bits} bits; it has "
            f"keys of {shortest} to {longest} bits",
            f"set key_size to what it gives, at most {MAX_KEY_IDS} of which make one key",
        )

    def _size(self, bits: int) -> int | None:
        if "no-size" in self._qkd.quirks:
            return None
        return bits // 8 if "size-in-bytes" in self._qkd.quirks else bits

    # ---- status

    async def _look(self, far: Correspondent, room: trio.CapacityLimiter) -> None:
        self._looked_at[far.peer_id] = trio.current_time()
        if "no-status" in self._qkd.quirks:
            return
        try:
            status = await self._manager.ask(
                status_request(far.peer_id, base=self._qkd.api_path),
                lambda answer, address: self._read_status(answer, address, far),
                room=room,
            )
        except trio.Cancelled:
            # Nobody has looked: an exchange that gave way to the peer's, say
            self._looked_at.pop(far.peer_id, None)
            self._stir()
            raise
        self._health.succeeded()
        self._answered(far)
        self._statuses[far.peer_id] = status
        if status.stored is None:
            return
        change = self._stock.said(
            far.peer_id, status.stored, status.capacity or 0, status.key_size or 0
        )
        self._tell_stock(far, change)

    def _read_status(self, answer: Answer, address: Address, far: Correspondent) -> Status:
        status = read_status_untrusted(answer)
        if self._qkd.kme_id and status.source_kme not in self._qkd.kme_id:
            raise BadAnswer(
                SourceFault.CERTIFICATE,
                f"expected KME {' or '.join(self._qkd.kme_id)}; it calls itself "
                f'"{status.source_kme}"',
                "is this the right address, and kme_id its source_KME_ID?",
            )
        if "other-sae-names" not in self._qkd.quirks:
            for came, ours, whose in (
                (status.master_sae, self._qkd.sae, "this end"),
                (status.slave_sae, far.peer_id, "the far end"),
            ):
                if came and came != ours:
                    raise BadAnswer(
                        SourceFault.UNAUTHORIZED,
                        f'expected {whose} to be SAE "{ours}"; to it, it is "{came}"',
                        "exchanged names, or the certificate of another SAE? or quirks = "
                        '["other-sae-names"], where it has names of its own',
                        undelivered=True,
                    )
        address.identity = status.source_kme
        return status

    def _questions(self, far: Correspondent | None) -> list[Question]:
        if far is None:
            # Something is asked all the same: some servers mind a connection without a question
            return [
                Question(
                    "status",
                    status_request(self._qkd.sae, base=self._qkd.api_path),
                    lambda answer, _: (
                        f"{read_any_answer_untrusted(answer)}; its keys are not "
                        "asked for, since no link uses this source"
                    ),
                )
            ]
        made_up = str(uuid4())
        verbs = [
            Question(
                "dec_keys",
                get_key_with_ids_request(
                    far.peer_id, [made_up], post=self._post, base=self._qkd.api_path
                ),
                lambda answer, _: read_no_key_untrusted(answer, made_up),
            ),
            Question(
                "enc_keys",
                methods_request(far.peer_id, base=self._qkd.api_path),
                lambda answer, _: read_methods_untrusted(answer, post=self._post),
            ),
        ]
        if "no-status" in self._qkd.quirks:
            none = Question(
                "status", None, lambda _, __: "", 'not asked, by quirks = ["no-status"]'
            )
            return [*verbs, none]
        return [
            Question(
                "status",
                status_request(far.peer_id, base=self._qkd.api_path),
                self._tell_status(far),
            ),
            *verbs,
        ]

    async def _try_more(self, far: Correspondent, parts: int) -> list[ProbeStep]:
        bits = self._qkd.key_size // parts
        several = await self._try(far, number=2, bits=bits, post=self._post)
        steps = [
            ProbeStep(
                "several keys",
                not several or parts == 1,
                f"two in one call: {several or 'came, and were thrown away'}",
                "" if parts == 1 else "set key_size to what one key has, at both ends",
            )
        ]
        verb = "GET" if self._post else "POST"
        other = await self._try(far, number=1, bits=bits, post=not self._post)
        steps.append(
            ProbeStep("other verb", True, f"by {verb}, which is not configured: {other or 'came'}")
        )
        status = self._statuses.get(far.peer_id)
        unit = 8 if "size-in-bytes" in self._qkd.quirks else 1
        low = ((status and status.min_key_size) or 0) * unit
        high = ((status and status.max_key_size) or 0) * unit or max(TRIED_SIZES)
        sizes = []
        for size in TRIED_SIZES:
            if size != bits and low <= size <= high and "no-size" not in self._qkd.quirks:
                said = await self._try(far, number=1, bits=size, post=self._post)
                sizes.append(f"{size} bits: {said or 'came'}")
        if sizes:
            steps.append(ProbeStep("other sizes", True, "; ".join(sizes)))
        return steps

    async def _try(self, far: Correspondent, *, number: int, bits: int, post: bool) -> str:
        """Take keys and throw them away; "", or why none came."""
        if not self._bucket.take(number):
            return "not tried, for max_keys_per_minute is reached"
        request = get_key_request(
            far.peer_id,
            number=number,
            size=self._size(bits),
            post=post,
            base=self._qkd.api_path,
        )
        try:
            # Without a consequence for the address: what is refused here may be what it has not
            address = self._manager.addresses.current
            keys = await self._manager.examine(
                address,
                request,
                lambda answer, _: read_keys_untrusted(
                    answer, number=number, length=bits // 8, form=self._key_id
                ),
                self._manager.progress(address),
            )
            self._fresh(far, [one.key_id for one in keys or ()], [one.key for one in keys or ()])
        except SourceError as error:
            return error.reason
        self._stock.used(far.peer_id, number)
        return ""

    def _tell_status(self, far: Correspondent) -> Callable[[Answer, Address], str]:
        def read(answer: Answer, address: Address) -> str:
            status = self._statuses[far.peer_id] = self._read_status(answer, address, far)
            return (
                f"KME {status.source_kme or '(no ID)'} to {status.target_kme or '(no ID)'}: "
                f"{_number(status.stored)} of {_number(status.capacity)} keys, "
                f"{_sizes(status)}"
            )

        return read


def _joined(keys: list[DeliveredKey]) -> Secret:
    return Secret(b"".join(one.key.expose() for one in keys))


def _sizes(status: Status) -> str:
    """The lengths that it says it gives. A 0 says nothing."""
    low, high, usual = status.min_key_size, status.max_key_size, status.key_size
    told = [f"{_number(low or None)} to {_number(high or None)} bits"] if low or high else []
    told += [f"{usual} bits without a size"] if usual else []
    return ", ".join(told) or "no lengths told"


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
