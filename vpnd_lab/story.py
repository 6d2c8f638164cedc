"""What a demonstration tells while it runs, and how it ends: with 0 where all of it was proved."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from vpnd_lab.errors import LabError


@dataclass(slots=True)
class Story:
    """Tells what happens, with the seconds since the start."""

    started: float = field(default_factory=time.monotonic)

    def tell(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)

    def explain(self, text: str) -> None:
        print(f"          {text}", flush=True)

    @contextmanager
    def timed(self) -> Iterator[list[float]]:
        """A list that holds the seconds that the block took, once it is over."""
        taken: list[float] = []
        begun = time.monotonic()
        yield taken
        taken.append(time.monotonic() - begun)


def perform(demo: Callable[[], Awaitable[None]]) -> None:
    """Run a demonstration; what does not hold in it is told, and the exit code is 1 then."""
    try:
        trio.run(demo)
    except* LabError as group:
        for error in _leaves(group):
            print(f"demo: failed: {error}", file=sys.stderr)
            for note in getattr(error, "__notes__", ()):
                print(note, file=sys.stderr)
        sys.exit(1)
    except* KeyboardInterrupt:
        print("demo: interrupted; everything was taken away again", file=sys.stderr)
        sys.exit(130)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
