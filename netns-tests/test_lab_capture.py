"""The capture itself: it finds what is there, and says when it could not look.

fra-host ── fra ── internet ── ams ── ams-host
"""

from __future__ import annotations

import signal

import pytest

from vpnd_lab import LabError, LabSpec, open_lab
from vpnd_lab.capture import Capture
from vpnd_lab.process import ProcessId

pytestmark = pytest.mark.netns

SPEC = LabSpec.parse("[sites.fra]\n[sites.ams]\n")


async def test_what_goes_by_is_counted_where_it_goes_by() -> None:
    async with open_lab(SPEC) as lab, lab.capture("internet") as underlay:
        async with lab.capture("fra-host") as lan:
            await lab.node("fra").run(["ping", "-c3", "-i0.2", str(lab.site("ams").address())])
            async with lab.traffic("fra-host", "fra", rate=50) as meter:
                await meter.wait_received(20)
                traffic = await meter.stop()
            inside = await lan.seen()
        between = await underlay.seen()
        # The router sees each packet come and go
        assert between.words == {"ICMP type 8": 6, "ICMP type 0": 6}
        assert (between.clear, between.exchange, between.wireguard) == (0, 0, 0)
        assert (await underlay.seen("fra")).other == 6
        assert between.neighbour > 0
        assert inside.clear >= traffic.received
        # Behind the other site, and nobody between knows a way to it
        await lab.node("fra-host").run(
            ["ping", "-c1", "-W1", str(lab.node("ams-host").address())], check=False
        )
        seen = await underlay.wait(lambda seen: seen.clear > 0, what="packet in the clear")
        assert seen.clear_words == {"ICMP type 8": 1}


async def test_an_interface_that_is_not_there() -> None:
    async with open_lab(SPEC) as lab:
        with pytest.raises(LabError, match="cannot capture on nowhere"):
            async with lab.capture("internet", "nowhere"):
                pass


async def test_missed_packets_are_an_error() -> None:
    async with open_lab(SPEC) as lab, lab.capture("fra", "lo") as capture:
        process = process_of(capture)
        process.send_signal(signal.SIGSTOP)
        # More than the socket's buffer holds
        flood = (
            "import socket\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "for _ in range(4000):\n"
            "    s.sendto(bytes(20000), ('127.0.0.1', 9))\n"
        )
        await lab.node("fra").run(["python3", "-c", flood])
        process.send_signal(signal.SIGCONT)
        with pytest.raises(LabError, match="has missed packets"):
            await capture.seen()


def process_of(capture: Capture) -> ProcessId:
    return capture._sniffer.process
