"""Several key sources asked side by side, and nobody waited for beyond a deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from vpnd.clock import boottime
from vpnd.journal import Journal
from vpnd.keysource.base import SourceError, SourceFault

NameT = TypeVar("NameT", bound=Hashable)
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Answers(Generic[NameT, AnswerT]):
    """What came in time, and what went wrong with the others."""

    given: Mapping[NameT, AnswerT]
    failed: Mapping[NameT, SourceError]


async def ask_all(
    questions: Mapping[NameT, tuple[str, Callable[[], Awaitable[AnswerT]]]],
    deadline: float,
    journal: Journal,
) -> Answers[NameT, AnswerT]:
    """Ask each source by its own question; what has not answered by `deadline` (on the boot
    clock) has failed.

    `questions` has for each the source's name and what to await.
    """
    given: dict[NameT, AnswerT] = {}
    failed: dict[NameT, SourceError] = {}

    async def ask(name: NameT, source: str, question: Callable[[], Awaitable[AnswerT]]) -> None:
        try:
            given[name] = await question()
        except SourceError as error:
            failed[name] = error
        except Exception as error:
            # A bug in one source: the others, and the link, go on
            journal.record("internal_error", level="error", reason=source, exc_info=error)
            failed[name] = SourceError(
                source, SourceFault.BAD_ANSWER, "an internal error; see the log"
            )

    seconds = max(0.0, deadline - boottime())
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for name, (source, question) in questions.items():
                nursery.start_soon(ask, name, source, question)
    for name, (source, _) in questions.items():
        if name not in given and name not in failed:
            failed[name] = SourceError(
                source, SourceFault.TIMEOUT, f"no answer within {seconds:.0f} s"
            )
    return Answers(given, failed)
