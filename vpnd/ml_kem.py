"""Which implementation of ML-KEM the daemon uses: `[crypto] ml_kem`.

liboqs is loaded through liboqs-python. Left to itself, that wrapper answers a missing library by
fetching its source and compiling it, without a question: here the library is looked for first,
and the wrapper is forbidden to install one.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from kex.liboqs_mlkem import LiboqsMlKem
from kex.mlkem import MlKemProvider, OpenSslMlKem

MlKemName = Literal["openssl", "liboqs"]

_WRAPPER: Final = "oqs"
_FORBIDS_INSTALLING: Final = {"PYOQS_VERSION": "none"}
_DOCUMENT: Final = "docs/liboqs.md"


class MlKemUnavailable(Exception):
    """The implementation that was asked for is not installed; ``hint`` says what to install."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def ml_kem_provider(name: MlKemName) -> MlKemProvider:
    """The provider of this name. Raises MlKemUnavailable."""
    return OpenSslMlKem() if name == "openssl" else _liboqs()


def liboqs_version() -> str:
    """The version of the library in use. Raises MlKemUnavailable."""
    version: str = _wrapper().oqs_version()
    return version


@cache
def _liboqs() -> LiboqsMlKem:
    try:
        return LiboqsMlKem(_wrapper().KeyEncapsulation)
    except _wrapper().MechanismNotSupportedError as error:
        raise MlKemUnavailable(
            f"liboqs {liboqs_version()} was built without {error.alg_name}",
            "build it with KEM_ml_kem_768 and KEM_ml_kem_1024, or all algorithms",
        ) from None


@cache
def _wrapper() -> Any:
    """The module `oqs`. Raises MlKemUnavailable; never installs anything."""
    if importlib.util.find_spec(_WRAPPER) is None:
        raise MlKemUnavailable(
            "the Python package liboqs-python is not installed", "pip install 'vpnd[liboqs]'"
        )
    if not _library_is_there():
        raise MlKemUnavailable(
            "the library liboqs is not installed",
            "build it from its source and install it as a system library, or name its folder in "
            f"OQS_INSTALL_PATH ({_DOCUMENT})",
        )
    with _restrained():
        try:
            return importlib.import_module(_WRAPPER)
        except AttributeError as error:
            raise MlKemUnavailable(
                f"this liboqs is too old for liboqs-python: {error}",
                f"install the version of liboqs that the package names ({_DOCUMENT})",
            ) from None
        # SystemExit and RuntimeError are what the wrapper raises for a library it cannot load
        except (ImportError, OSError, RuntimeError, ValueError, SystemExit) as error:
            raise MlKemUnavailable(
                f"liboqs cannot be loaded: {error}",
                f"is it built for this machine, as a shared library? ({_DOCUMENT})",
            ) from None


def _library_is_there() -> bool:
    """Whether the wrapper would find a liboqs; in the places and the order in which it looks."""
    if find_library("oqs") or find_library("liboqs"):
        return True
    named = os.environ.get("OQS_INSTALL_PATH")
    try:
        folder = Path(named) if named is not None else Path.home() / "_oqs"
    except RuntimeError:  # no home: a daemon's environment may be empty
        return False
    return any((folder / lib / "liboqs.so").is_file() for lib in ("lib", "lib64"))


@contextmanager
def _restrained() -> Iterator[None]:
    """The wrapper's import without what it does besides: installing, printing, warning."""
    before = {name: os.environ.get(name) for name in _FORBIDS_INSTALLING}
    os.environ.update(_FORBIDS_INSTALLING)
    # It greets on stdout, which is for data
    logging.getLogger("oqs.oqs").disabled = True
    try:
        with warnings.catch_warnings():
            # Of a library older or newer than the wrapper; KEMs are the same in both
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
