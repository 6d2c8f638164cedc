"""How much of the processors a program gets where others want them, too."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def share_as_nice(session: int, nice: int) -> None:
    """Let a session have the share of the processors that this niceness stands for.

    session: pid of the process that leads it. Linux gives each session the same share, however nice
    its processes are, unless the session's group is told (sched(7), "The autogroup feature"). Where
    a kernel has no such groups, or lets nobody change them, niceness by itself has to do.
    """
    with suppress(OSError):
        Path(f"/proc/{session}/autogroup").write_text(f"{nice}\n", encoding="ascii")
