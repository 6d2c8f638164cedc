"""The library liboqs for tests: the one that `make liboqs` built, or the system's.

Where there is none, a test that asks for it is skipped, with the reason; it never passes.
"""

from __future__ import annotations

import os

import pytest

from kex.mlkem import MlKemProvider
from tests.architecture.imports import ROOT
from vpnd.ml_kem import MlKemUnavailable, ml_kem_provider

BUILT = ROOT / ".setup" / "liboqs"


def environment() -> dict[str, str]:
    """What a program needs in its environment to find the library that was built."""
    return {"OQS_INSTALL_PATH": str(BUILT)} if BUILT.is_dir() else {}


def liboqs() -> MlKemProvider:
    """The provider; skips the test if it cannot be had."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            if name not in os.environ:
                patch.setenv(name, value)
        try:
            return ml_kem_provider("liboqs")
        except MlKemUnavailable as missing:
            pytest.skip(f"not run, for it needs liboqs: {missing.reason}; run: make liboqs")
