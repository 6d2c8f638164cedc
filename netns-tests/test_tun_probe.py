"""Which wireguard-go expects which TUN link: told by what it does, never by what it prints.

The programs here print whatever they like. What is started is the one that is installed, a copy of
it behind a script, and programs that do with their link what wireguard-go of other releases does.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tun.errors import TunError
from tun.rtnl import open_rtnl
from tun.tun_link import WITH_INFORMATION, WITH_OFFLOADS, expected_flags, open_tun_link

pytestmark = [pytest.mark.netns]

LIKE_A_NEWER_ONE = f"""#!{sys.executable}
import fcntl, os, socket, struct, sys
if "--version" in sys.argv:
    print("wireguard-go v0.0.20230223")  # as Debian 13's 0.0.20231211 does
    sys.exit()
tun = int(os.environ["WG_TUN_FD"])
flags = struct.unpack_from("=16sH", fcntl.ioctl(tun, 0x800454D2, bytes(40)))[1]  # TUNGETIFF
if flags & 0x4000:  # IFF_VNET_HDR
    fcntl.ioctl(tun, 0x400454D0, 0x7)  # TUNSETOFFLOAD: checksums, TCP over IPv4 and IPv6
name = sys.argv[-1].encode()
fcntl.ioctl(socket.socket(), 0x8922, struct.pack("=16si20x", name, 1420))  # SIOCSIFMTU
int(os.environ["WG_UAPI_FD"])  # no number: it ends here
"""
INSTALLED_BEHIND_A_SCRIPT = """#!/bin/sh
if [ "$1" = --version ]; then echo wireguard-go v9.9.20991231; exit; fi
exec {program} "$@"
"""
LIKE_NONE = """#!/bin/sh
echo "wireguard-go v0.0.20220316"
echo "Failed to create TUN device: no such luck"
exit 1
"""


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "wireguard-go"
    with open_rtnl() as rtnl:
        assert not [link.name for link in rtnl.links() if link.name.startswith("vpnd-probe")]


def program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_a_program_that_switches_offloads_on_gets_a_link_with_their_header(written: Path) -> None:
    assert expected_flags(program(written, LIKE_A_NEWER_ONE)) == WITH_OFFLOADS


def test_a_program_is_judged_by_what_it_starts(written: Path) -> None:
    installed = shutil.which("wireguard-go")
    assert installed is not None
    behind = program(written, INSTALLED_BEHIND_A_SCRIPT.format(program=installed))
    assert expected_flags(behind) == expected_flags(installed)


def test_debian_12s_gets_packet_information(written: Path) -> None:
    installed = shutil.which("wireguard-go")
    assert installed is not None
    if b"virtioNetHdr" in Path(installed).read_bytes():
        pytest.skip("the wireguard-go in PATH is a newer one")
    assert expected_flags(installed) == WITH_INFORMATION


def test_what_does_not_take_up_a_link_is_told_with_its_own_words(written: Path) -> None:
    with pytest.raises(TunError, match=r"(?s)does not take up a TUN link: .*no such luck"):
        open_tun_link("vpnd-none", program(written, LIKE_NONE))
    with open_rtnl() as rtnl:
        assert rtnl.link("vpnd-none") is None
