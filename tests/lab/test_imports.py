"""What is loaded when nobody asked for a lab."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["vpnd_lab.pytest_plugin", "vpnd_lab.traffic", "vpnd_lab.sniffer", "vpnd_lab.commands"],
)
def test_nothing_heavy_is_loaded(module: str) -> None:
    # pytest loads its other plugins itself: only what `lab` brings counts.
    heavy = {"trio", "pydantic", "httpx", "cryptography", "pyroute2", "typer", "kex", "tun", "vpnd"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_name_of_the_package_is_there() -> None:
    import vpnd_lab

    assert {name for name in vpnd_lab.__all__ if getattr(vpnd_lab, name).__name__ != name} == set()
    with pytest.raises(AttributeError):
        _ = vpnd_lab.nothing
