"""How long to wait for things before saying that they do not come."""

from __future__ import annotations

import os

ENVIRONMENT = "VPND_LAB_PATIENCE"
"""A factor on every time-out of a lab, for machines that are much slower than usual."""


def patient(seconds: float) -> float:
    """The time-out to use here. What is measured is not changed by it. Raises ValueError."""
    return seconds * float(os.environ.get(ENVIRONMENT, "1"))
