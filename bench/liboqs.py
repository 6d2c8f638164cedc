"""The ML-KEM providers to be measured: both, where liboqs is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kex.mlkem import MlKemProvider
from vpnd.ml_kem import MlKemName, MlKemUnavailable, liboqs_version, ml_kem_provider

BUILT: Final = Path(__file__).resolve().parent.parent / ".setup" / "liboqs"


def provider(name: MlKemName) -> MlKemProvider:
    """The provider; raises MlKemUnavailable. The library that `make liboqs` built is found."""
    if BUILT.is_dir():
        os.environ.setdefault("OQS_INSTALL_PATH", str(BUILT))
    return ml_kem_provider(name)


def available() -> tuple[list[MlKemName], str]:
    """The names of those that are there, and liboqs's version or why it is missing."""
    try:
        provider("liboqs")
    except MlKemUnavailable as missing:
        return ["openssl"], f"{missing.reason} (make liboqs)"
    return ["openssl", "liboqs"], liboqs_version()
