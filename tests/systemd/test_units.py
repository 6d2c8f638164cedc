"""The units, judged by systemd's own tool; netns-tests/test_systemd.py shows that they work."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import ConfigParser

import pytest

from tests.architecture.imports import ROOT
from tun.namespace import HELPER_SOCKET
from vpnd.control import STOP_SECONDS as CONTROL_SECONDS
from vpnd.node import CLOSE_SECONDS, SETTLE_SECONDS

UNITS = ROOT / "systemd"
WITH_NETWORK = 1.5
"""What is left with CAP_NET_ADMIN, the host's network and a user of its own."""
WITH_TUN_DEVICE = 1.7
WITHOUT_NETWORK = 1.0
"""CAP_SYS_ADMIN, but neither a network nor a device."""
TO_SPARE = 10.0
"""Seconds for the rest of a stop, on a busy host."""
CAPABILITIES = {"vpnd-nsfd.service": "CAP_SYS_ADMIN"}
"""Of those that have another one than CAP_NET_ADMIN."""


@pytest.mark.parametrize(
    ("unit", "most"),
    [
        ("vpnd.service", WITH_NETWORK),
        ("vpnd-guard.service", WITH_NETWORK),
        ("vpnd-wireguard-go@.service", WITH_TUN_DEVICE),
        ("vpnd-nsfd.service", WITHOUT_NETWORK),
    ],
)
def test_exposure(unit: str, most: float) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze (Debian: apt-get install systemd)")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNITS / unit],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"exposure level for .*: (\d+\.\d+)", judged.stdout)
    assert found, judged.stdout + judged.stderr
    print(f"{unit}: exposure {found[1]}")
    assert float(found[1]) <= most, judged.stdout


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("*.service")))
def test_one_capability_and_one_user(unit: str) -> None:
    service = parsed(unit)["Service"]
    assert service["User"] == service["Group"] == "vpnd"
    capability = CAPABILITIES.get(unit, "CAP_NET_ADMIN")
    assert service["AmbientCapabilities"] == service["CapabilityBoundingSet"] == capability
    assert service["NoNewPrivileges"] == "yes"


def test_a_restart_takes_nothing_along() -> None:
    service = parsed("vpnd.service")["Service"]
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert "VPND_WIREGUARD_GO_SOCKET=/run/vpnd-wireguard-go.sock" in service["Environment"]
    socket = parsed("vpnd-wireguard-go.socket")["Socket"]
    assert socket["ListenSequentialPacket"] == "/run/vpnd-wireguard-go.sock"
    assert socket["SocketMode"] == "0600"
    assert socket["Accept"] == "yes"


def test_the_way_into_namespaces_is_for_the_daemon_alone_and_there_before_the_guards() -> None:
    socket = parsed("vpnd-nsfd.socket")
    assert socket["Socket"]["ListenSequentialPacket"] == str(HELPER_SOCKET)
    assert socket["Socket"]["SocketUser"] == "vpnd"
    assert socket["Socket"]["SocketMode"] == "0600"
    # vpnd-guard.service is part of sysinit.target: by default, sockets wait for that
    assert socket["Unit"]["DefaultDependencies"] == "no"
    for unit in ("vpnd.service", "vpnd-guard.service"):
        for when in ("Wants", "After"):
            assert "vpnd-nsfd.socket" in parsed(unit)["Unit"][when].split()


def test_the_service_manager_waits_for_as_long_as_a_stop_may_take() -> None:
    """Exchanges are completed, then requests, then links closed: one after the other."""
    longest = SETTLE_SECONDS + CONTROL_SECONDS + CLOSE_SECONDS
    allowed = float(parsed("vpnd.service")["Service"]["TimeoutStopSec"])
    assert allowed >= longest + TO_SPARE


def test_a_vpnd_toml_that_is_gone_keeps_neither_guards_nor_daemon_away() -> None:
    """Any one of several conditions is enough, where each begins with | (systemd.unit(5))."""
    for unit in ("vpnd.service", "vpnd-guard.service"):
        text = (UNITS / unit).read_text()
        conditions = re.findall(r"^Condition\w+=(.*)$", text, re.MULTILINE)
        assert conditions == ["|/etc/vpnd/vpnd.toml", "|/var/lib/vpnd/last-good.json"]
    # A mount that fails would keep a unit away that requires it
    required = parsed("vpnd-guard.service")["Unit"]["RequiresMountsFor"].split()
    assert "/etc/vpnd" not in required


def test_who_sets_guards_may_see_that_there_is_ipv6() -> None:
    """A host without IPv6 is known by its sockets (tun.guard): a unit that forbids them would have
    every IPv6 guard that fails go untold."""
    for unit in ("vpnd.service", "vpnd-guard.service"):
        assert "AF_INET6" in parsed(unit)["Service"]["RestrictAddressFamilies"].split()


def parsed(unit: str) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read(UNITS / unit)
    return parser
