"""Signals from the first moment of a program on, before there is an event loop to take them.

Imported before anything else, so it needs nothing that takes time to load. A SIGHUP is kept until
the daemon runs, and answered then; SIGTERM and SIGINT end the program at once, since nothing is
set up yet that would have to be taken down; other signals that would end a program by default,
and that somebody may send a daemon out of habit, are without effect.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Final

HARMLESS: Final = tuple(
    getattr(signal, name)
    for name in ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR")
    if hasattr(signal, name)
)

_received: list[int] = []


def hold() -> None:
    """Take them from now on. For the main thread."""
    # Handlers and not SIG_IGN, which a program that is started would inherit
    signal.signal(signal.SIGHUP, _keep)
    for number in HARMLESS:
        signal.signal(number, _ignore)
    # Without KeyboardInterrupt's traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ignore() -> None:
    """At the program's end: Python takes its own handlers away before it is gone."""
    for number in (signal.SIGHUP, *HARMLESS):
        signal.signal(number, signal.SIG_IGN)


def hangup_received() -> bool:
    """Whether there was a SIGHUP since this was asked last."""
    found = bool(_received)
    _received.clear()
    return found


def _keep(number: int, frame: FrameType | None) -> None:
    _received.append(number)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
