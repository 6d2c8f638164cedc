"""`[crypto] ml_kem`: what is asked for is there, or the configuration says what to install."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT
from tests.liboqs import environment, liboqs
from tests.vpnd.config_files import Site, problem_at

TELL = """
from vpnd.ml_kem import MlKemUnavailable, ml_kem_provider
try:
    print(ml_kem_provider("liboqs").name)
except MlKemUnavailable as error:
    print(f"{error.reason} | {error.hint}")
"""
needs_wrapper = pytest.mark.skipif(
    importlib.util.find_spec("oqs") is None,
    reason="not run, for it needs liboqs-python; run: make liboqs",
)
no_system_library = pytest.mark.skipif(
    find_library("oqs") is not None, reason="not run, for this machine has a liboqs of its own"
)


def tell(folder: Path, **changes: str) -> str:
    """What a fresh interpreter says when asked for liboqs. No network command must be started."""
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("git", "cmake"):
        (tools / tool).write_text(f"#!/bin/sh\ntouch '{folder}/started'\nexit 1\n")
        (tools / tool).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if k not in ("OQS_INSTALL_PATH", "PYOQS_VERSION")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TELL],
        env={**kept, "PATH": path, "HOME": str(folder), **changes},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert not (folder / "started").exists(), "the wrapper has tried to install liboqs"
    return done.stdout.rstrip("\n")


@needs_wrapper
@no_system_library
def test_a_missing_library_is_told_and_not_fetched(tmp_path: Path) -> None:
    told = tell(tmp_path)
    assert told.startswith("the library liboqs is not installed | build it")
    assert "OQS_INSTALL_PATH" in told


@needs_wrapper
@no_system_library
@pytest.mark.parametrize("version", ["none", "0.16.0", "latest"])
def test_a_broken_library_is_told_and_not_replaced(tmp_path: Path, version: str) -> None:
    (tmp_path / "_oqs" / "lib").mkdir(parents=True)
    (tmp_path / "_oqs" / "lib" / "liboqs.so").write_bytes(b"no library")
    told = tell(tmp_path, PYOQS_VERSION=version)
    assert told.startswith("liboqs cannot be loaded: ")


def test_the_wrapper_prints_nothing_and_warns_of_nothing(tmp_path: Path) -> None:
    liboqs()
    assert tell(tmp_path, **environment()) == "liboqs"


def test_the_environment_is_left_as_it_was() -> None:
    before = dict(os.environ)
    liboqs()
    assert dict(os.environ) == before


def test_openssl_is_the_default(site: Site) -> None:
    assert site.load().crypto.ml_kem == "openssl"


def test_liboqs_is_accepted_where_it_is(site: Site) -> None:
    liboqs()
    site.main["crypto"] = {"ml_kem": "liboqs"}
    assert site.load().crypto.ml_kem == "liboqs"


def test_a_configuration_that_cannot_have_liboqs_says_what_to_install(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in an installation without the extra
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    from vpnd import ml_kem

    ml_kem._liboqs.cache_clear()
    ml_kem._wrapper.cache_clear()
    site.main["crypto"] = {"ml_kem": "liboqs"}
    problem = problem_at(site.problems(), "crypto.ml_kem")
    assert problem.reason == (
        '"liboqs" cannot be had: the Python package liboqs-python is not installed'
    )
    assert problem.hint == "pip install 'vpnd[liboqs]'"
    assert problem.line is not None


@pytest.mark.parametrize("value", ["", "OpenSSL", "boring", 1, True, ["liboqs"]])
def test_other_values(site: Site, value: object) -> None:
    site.main["crypto"] = {"ml_kem": value}
    problem = problem_at(site.problems(), "crypto.ml_kem")
    words = problem.reason + problem.hint
    assert "openssl" in words if isinstance(value, str) else "must be a string" in words


def test_other_keys(site: Site) -> None:
    site.main["crypto"] = {"kem": "liboqs"}
    assert "ml_kem" in problem_at(site.problems(), "crypto.kem").hint
