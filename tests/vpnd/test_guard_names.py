"""Which guard route an address is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vpnd.config_files import LON1, Site
from vpnd.guard_names import GuardNames


@pytest.mark.parametrize(
    ("host", "guard"),
    [
        ("10.20.3.4", "10.20.0.0/16 of ams1"),
        ("10.20.7.4", "10.20.7.0/24 of lon1"),  # the one that is in the way
        ("fd00:255::2", "fd00:255::2/128 of ams1"),
        ("192.0.2.1", "192.0.2.0/24 of lon1"),  # protected, not allowed
        ("10.21.0.1", ""),
        ("fe80::1%3", ""),
        ("2001:db8::1", ""),
    ],
)
def test_the_guard_over_an_address(tmp_path: Path, host: str, guard: str) -> None:
    site = Site(tmp_path)
    site.peers["lon1"] = {
        "identity": LON1,
        "endpoint": "198.51.100.7:51821",
        "tunnel": "backbone",
        "allowed_ips": ["10.20.7.0/24"],
        "protect": ["10.20.7.0/24", "192.0.2.0/24"],
    }
    guards = GuardNames()
    config = site.load()
    assert guards.over(host, config) == guard
    assert "lon1" not in guards.over(host, config.without_peer("lon1"))
