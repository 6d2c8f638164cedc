"""What the process does for its secrets: no core dump, no reading by others, no swap."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def protect_memory() -> Iterator[str]:
    """Protect this process's memory; a sentence for each protection that could not be had."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        yield f"the process can be dumped: {os.strerror(ctypes.get_errno())}"
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    if not unlimited and os.geteuid() != 0:
        # A limit that is reached later would fail allocations instead
        yield "memory may be swapped out: set LimitMEMLOCK=infinity, or encrypt the swap"
    elif libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        reason = os.strerror(ctypes.get_errno())
        yield f"memory may be swapped out ({reason}): set LimitMEMLOCK=infinity"
