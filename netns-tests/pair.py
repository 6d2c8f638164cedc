"""Two linked sites under counted traffic: what the tests of faults have in common.

fra-host ── fra ══ internet ══ ams ── ams-host
             └──── wg0 ────────┘
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from linking import counted
from report import Case

from vpnd_lab.lab import Lab
from vpnd_lab.meter import Meter
from vpnd_lab.patience import patient
from vpnd_lab.proof import (
    HANDSHAKE_SECONDS,
    KeyPair,
    in_force,
    key_id,
    prove,
    wait_in_force,
    wait_new_key,
)
from vpnd_lab.site import Site

SETTLED_SECONDS = 90.0
ENDS = (("fra", "ams"), ("ams", "fra"))


async def settled(lab: Lab) -> KeyPair:
    """The key, once no exchange is under way or owed at either end; the same at both."""
    with trio.fail_after(patient(SETTLED_SECONDS)):
        while True:
            statuses = [await lab.site(site).link_status(peer) for site, peer in ENDS]
            due = [status["next_renewal_seconds"] for status in statuses]
            keys = KeyPair(*(key_id(status, "key_installed") for status in statuses))
            if all(each is not None and each > 30 for each in due) and keys.one == keys.other:
                return keys
            await trio.sleep(0.2)


@asynccontextmanager
async def nothing_lost(lab: Lab, case: Case) -> AsyncIterator[Meter]:
    """Traffic over what the block does, and on until WireGuard has made a handshake with a key
    that came after it; then all that is to hold of the link is proved."""
    async with counted(lab) as meter:
        before, old = await settled(lab), await in_force(lab, "fra", "ams")
        yield meter
        await wait_new_key(lab, "fra", "ams", before=before, seconds=HANDSHAKE_SECONDS)
        await wait_in_force(lab, "fra", "ams", before=old, seconds=HANDSHAKE_SECONDS)
        await meter.wait_received(50)
        traffic = await meter.stop()
        case.traffic(traffic)
        await prove(lab, "fra", "ams", traffic)


async def passes_again(meter: Meter, seconds: float) -> float:
    """Wait until traffic arrives in both directions; how long that took. Raises WaitTimeout."""
    began = trio.current_time()
    await meter.wait_received(1, seconds=seconds)
    return trio.current_time() - began


async def logged(site: Site, words: str, seconds: float = 30) -> None:
    """Wait until the site's daemon has written these words."""
    with trio.fail_after(patient(seconds)):
        while True:
            if words in site.daemon_log.read_text(encoding="utf-8"):
                return
            await trio.sleep(0.05)


def processes(site: Site) -> dict[int, str]:
    """The names of the processes in a site, by pid; but for the one that holds it open."""
    found = {}
    daemon = site.daemon
    assert daemon is not None
    own = Path(f"/proc/{daemon.pid}/ns/net").stat().st_ino
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "ns/net").stat().st_ino == own:
                found[int(folder.name)] = (folder / "comm").read_text().strip()
        except OSError:
            continue  # it has ended
    return {pid: name for pid, name in found.items() if name != "sleep"}
