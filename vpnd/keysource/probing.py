"""`vpnctl keysource test`: one connection to each address, and how far it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vpnd.keysource.addresses import Address
from vpnd.keysource.base import ProbeStep, SourceFault
from vpnd.keysource.call_failed import Progress
from vpnd.keysource.files import day
from vpnd.keysource.https_call import Answer, Request
from vpnd.keysource.key_manager import AskFailed, KeyManager


@dataclass(frozen=True, slots=True)
class Question:
    """What a test asks, and what it makes of the answer."""

    step: str
    request: Request | None
    """None: nothing is asked."""
    read: Callable[[Answer, Address], str]
    """What to tell of the answer. Raises BadAnswer."""
    not_asked: str = ""
    """Why nothing is."""


async def probe_address(
    manager: KeyManager, address: Address, question: Question
) -> list[ProbeStep]:
    """The steps of one connection, the last of which may have failed."""
    watch = manager.progress(address)
    try:
        said = await manager.examine(address, question.request, question.read, watch)
    except AskFailed as failed:
        reached = _reached(manager, address, watch)
        return [
            *reached,
            ProbeStep(_where(failed, watch, question), False, failed.reason, failed.hint),
        ]
    detail = question.not_asked if said is None else said
    return [*_reached(manager, address, watch), ProbeStep(question.step, True, detail)]


async def ask_question(manager: KeyManager, address: Address, question: Question) -> ProbeStep:
    """A question more to an address that has answered."""
    if question.request is None:
        return ProbeStep(question.step, True, question.not_asked)
    try:
        said = await manager.examine(
            address, question.request, question.read, manager.progress(address)
        )
    except AskFailed as failed:
        return ProbeStep(question.step, False, failed.reason, failed.hint)
    return ProbeStep(question.step, True, said or "")


def _reached(manager: KeyManager, address: Address, watch: Progress) -> list[ProbeStep]:
    steps = []
    if watch.connected:
        steps.append(ProbeStep("connect", True, address.url))
    if watch.version:
        steps.append(ProbeStep("tls", True, watch.version))
    shown = manager.shown.get(address.url)
    if watch.secured and shown is not None:
        steps.append(
            ProbeStep(
                "certificate",
                True,
                f"{shown.subject}, until {day(shown.not_after)}, sha256:{shown.sha256}",
            )
        )
    return steps


def _where(failed: AskFailed, watch: Progress, question: Question) -> str:
    """Which step it is that failed."""
    if failed.fault is SourceFault.FILE:
        return "files"
    if watch.secured and watch.asked:
        return question.step
    if failed.fault is SourceFault.CERTIFICATE:
        return "certificate"
    return "tls" if watch.connected else "connect"
