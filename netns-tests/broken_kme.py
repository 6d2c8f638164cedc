"""What has to come of a key manager that does wrong: at which end, told how, and with which key.

Each check breaks something, forces an exchange on the link in `require` and on that in `prefer`,
and reads what came of it at both ends of both; then all is mended, and both links have to get a
new external key by themselves. The traffic of both links is counted throughout.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import trio
from backbone import FAR, HUB, LENIENT, STRICT, Backbone
from report import Case

from vpnd_lab.journal import Record, matching
from vpnd_lab.kme.handle import KeyManagerHandle
from vpnd_lab.patience import patient
from vpnd_lab.proof import KeyPair

Tell = Callable[[Backbone, str], Awaitable[None]]
"""Break what belongs to a site: its key manager, its certificate."""


def fault(kind: str, **arguments: Any) -> Tell:
    """Tell the site's key manager to do wrong in the calls that hand out keys."""

    async def tell(backbone: Backbone, site: str) -> None:
        call = "enc_keys" if site == HUB else "dec_keys"
        await backbone.kme(site).fault(kind, call, **arguments)

    return tell


def told(work: Callable[[KeyManagerHandle], Awaitable[None]]) -> Tell:
    """Anything else that its key manager is told."""

    async def tell(backbone: Backbone, site: str) -> None:
        await work(backbone.kme(site))

    return tell


class _Watched:
    """One check: keys, logs and traffic before, and what holds of them after."""

    def __init__(self, backbone: Backbone, case: Case) -> None:
        self.backbone = backbone
        self._case = case

    async def __aenter__(self) -> _Watched:
        await self.backbone.at_rest()
        self.keys = await self.backbone.keys()
        self.logs = self.backbone.logs()
        self._marks = {far: await each.mark("row") for far, each in self.backbone.meters.items()}
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            with trio.move_on_after(90):
                await self.backbone.mend()  # the next row begins with a lab in order
            return
        counted = await self.backbone.nothing_lost(self._marks)
        for far, (sent, lost) in counted.items():
            self._case.result(f"{HUB}-{far}", sent=sent, lost=lost, repeated=0)

    def at(self, site: str) -> list[Record]:
        return self.backbone.told(site, self.logs)

    async def event(self, site: str, event: str, **fields: Any) -> Record:
        return await self.backbone.wait_event(site, self.logs, event, **fields)

    async def said(self, site: str, event: str, text: str, **fields: Any) -> None:
        """Wait for such a record with this text in its reason."""
        reasons: list[str] = []
        with trio.move_on_after(patient(60)):
            while True:
                reasons = [one["reason"] for one in matching(self.at(site), event, **fields)]
                if any(text in reason for reason in reasons):
                    return
                await trio.sleep(0.1)
        raise AssertionError(f"{site}: no {event} that says {text!r}: {reasons}")

    async def again(self, site: str, event: str, **fields: Any) -> None:
        """Wait for a second such record: so that what an end does *after* the first is seen."""
        with trio.fail_after(patient(60)):
            while True:
                if len(matching(self.at(site), event, **fields)) > 1:
                    return
                await trio.sleep(0.1)

    async def rekey(self) -> None:
        for far in FAR:
            await self.backbone.rekey(far)

    # ---- what has to hold

    async def strict_keeps_its_key(self) -> None:
        """Nothing was installed, nobody fell back, and it is no secret that a renewal failed."""
        await self.unchanged(STRICT)
        status = await self.backbone.lab.site(HUB).link_status(STRICT)
        assert status["state"] == "degraded"
        assert status["reason"].startswith("last exchange: ")
        assert status["external_keys"]["mixed"] == ["kme"]

    async def unchanged(self, far: str) -> None:
        assert (await self.backbone.keys())[far] == self.keys[far]
        for site, peer in ((HUB, far), (far, HUB)):
            assert not matching(self.at(site), "key_installed", peer=peer)
            assert not matching(self.at(site), "fallback_started", peer=peer)
        await self.backbone.same_key(far)

    async def lenient_falls_back(self, why: str) -> KeyPair:
        """Both ends tell the beginning of a fallback, and show it; the key is the same at both."""
        await self.event(HUB, "fallback_started", peer=LENIENT, reason=why)
        await self.event(LENIENT, "fallback_started", peer=HUB)
        for site, peer in ((HUB, LENIENT), (LENIENT, HUB)):
            installed = await self.event(site, "key_installed", peer=peer)
            assert "sources" not in installed
            status = await self.backbone.lab.site(site).wait_state(peer, "degraded")
            assert status["external_keys"]["fallback"] is not None
            assert status["external_keys"]["installed"] == []
        await self.backbone.same_key(LENIENT)
        return (await self.backbone.keys())[LENIENT]

    async def mended(self) -> None:
        """Both links get an external key again, and the fallback ends at both ends."""
        logs = self.backbone.logs()
        await self.backbone.mend()
        for site, peer in ((HUB, LENIENT), (LENIENT, HUB)):
            await self.backbone.wait_event(site, logs, "fallback_ended", peer=peer)
        for far in FAR:
            await self.backbone.lab.site(HUB).wait_state(far, "active", "installed")
            await self.backbone.same_key(far)


async def initiator_fails(
    backbone: Backbone, case: Case, tell: Tell, code: str, *, names: str = "fra-kme"
) -> None:
    """The initiator has no key: it tells so, and the peer of `require` hears nothing of it."""
    async with _Watched(backbone, case) as watched:
        await tell(backbone, HUB)
        await watched.rekey()
        failed = await watched.event(HUB, "source_failed", code=code)
        assert names in failed["reason"]
        ended = await watched.event(HUB, "exchange_failed", peer=STRICT, code="external_keys")
        assert names in ended["reason"]
        await watched.event(HUB, "external_keys_missing", peer=LENIENT, role="initiator", code=code)
        await watched.lenient_falls_back("kme")
        await watched.event(LENIENT, "fallback_started", peer=HUB, reason="the peer had no key")
        await watched.strict_keeps_its_key()
        assert not matching(watched.at(STRICT), "exchange_refused")
        await watched.mended()
        # What is under way when all is mended may fail otherwise, and be the last that did
        failures = {each["code"] for each in matching(watched.at(HUB), "source_failed")}
        back = matching(watched.at(HUB), "source_back")
        assert back
        assert all(each["code"] in failures for each in back)


async def responder_fails(
    backbone: Backbone, case: Case, tell: Tell, code: str, *, tell_initiator: bool = False
) -> None:
    """The responder has no key: it tells so, refuses, and the initiator hears whose it was.

    `tell_initiator`: what is told to the initiator's key manager shows at the responder.
    """
    async with _Watched(backbone, case) as watched:
        for site in (HUB,) if tell_initiator else FAR:
            await tell(backbone, site)
        await watched.rekey()
        for far in FAR:
            await watched.event(far, "source_failed", code=code)
            missing = await watched.event(far, "external_keys_missing", role="responder", code=code)
            assert "kme" in missing["reason"]
            await watched.event(far, "exchange_refused", code="refused_key_manager")
            # On a slow machine the first one may have been refused before there was an answer
            heard = f"{far}-kme at the responder: {code}"
            await watched.said(HUB, "exchange_failed", heard, peer=far, code="refused")
        await watched.lenient_falls_back(code)
        await watched.strict_keeps_its_key()
        await watched.mended()


async def both_fail(backbone: Backbone, case: Case, tell: Tell, code: str) -> None:
    """Both ends' key managers: the initiator's is asked first, and the other not at all."""

    async def tell_all(backbone: Backbone, _: str) -> None:
        for site in (HUB, *FAR):
            await tell(backbone, site)

    await initiator_fails(backbone, case, tell_all, code)


async def nothing_fails(
    backbone: Backbone, case: Case, tell: Tell, *ends: str, seconds: float = 75
) -> None:
    """Both links are renewed with an external key all the same, and nobody complains."""
    async with _Watched(backbone, case) as watched:
        for site in ends:
            await tell(backbone, site)
        await watched.rekey()
        for far in FAR:
            for site, peer in ((HUB, far), (far, HUB)):
                installed = await watched.event(site, "key_installed", peer=peer, seconds=seconds)
                assert installed["sources"] == "kme"
            await backbone.same_key(far)
        for site in (HUB, *FAR):
            for bad in ("source_failed", "exchange_failed", "fallback_started", "key_mismatch"):
                assert not matching(watched.at(site), bad)
        await backbone.mend()


async def keys_differ(backbone: Backbone, case: Case, tell: Tell, *ends: str) -> None:
    """Found before anything is installed, at both ends, with both key managers; no fallback."""
    async with _Watched(backbone, case) as watched:
        for site in ends:
            await tell(backbone, site)
        await watched.rekey()
        for far in FAR:
            both = f"fra-kme at the initiator and {far}-kme at the responder"
            await watched.event(far, "key_mismatch", peer=HUB, reason=both, level="error")
            await watched.event(far, "exchange_refused", code="refused_key_mismatch")
            await watched.event(HUB, "key_mismatch", peer=far, reason=both, level="error")
            await watched.again(HUB, "key_mismatch", peer=far)
            await watched.unchanged(far)
            status = await backbone.lab.site(HUB).link_status(far)
            assert status["state"] == "degraded"
            assert both in status["reason"]
        await backbone.mend()


CHECKS: Final[Mapping[str, Callable[..., Awaitable[None]]]] = {
    "initiator": initiator_fails,
    "responder": responder_fails,
}
"""By the end whose key manager is told."""


def row(
    backbone: Backbone, check: Callable[..., Awaitable[None]], *args: Any, **kwargs: Any
) -> None:
    """Run a check in the lab's thread."""
    backbone.run(partial(check, backbone, *args, **kwargs))
