"""How many examples a property test tries: all of them, but in `make test-fast`."""

from __future__ import annotations

import os

FAST = bool(os.environ.get("VPND_TEST_FAST"))
"""Whether this is the run for the daily work, which has to be done within a minute."""


def examples(full: int) -> int:
    """`full`, or a fifth of it where time is short."""
    return max(10, full // 5) if FAST else full
