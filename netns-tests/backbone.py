"""Three sites whose links take keys from key managers, and what one fault does to both policies.

    fra-kme ── fra ══ internet ══ ams ── ams-kme      require
                │                 par ── par-kme      prefer
                └─ fra-host       ams-host, par-host

fra begins every exchange, so fra-kme is the initiator's key manager, and ams-kme and par-kme are
the responders'. A fault is told to key managers, `peer rekey` forces an exchange on both links,
and what came of it is read from the journals of the daemons and from the links' states.

A lab takes a while to start, and rows of a table are many: so a lab lives in a thread of its own
for a whole file of tests (`Backbone.run` does something in it), and each row is a test.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import trio
from linking import TUNNEL, at_rest

from vpnd_lab.control import ask
from vpnd_lab.journal import Record, log_end, records, wait_record
from vpnd_lab.kme.handle import KeyManagerHandle
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.meter import Mark, Meter
from vpnd_lab.patience import patient
from vpnd_lab.proof import KeyPair, installed, same_preshared_key
from vpnd_lab.site import Site
from vpnd_lab.spec import LabSpec

HUB, STRICT, LENIENT = "fra", "ams", "par"
"""The initiator; the far end of the link in `require`; that of the link in `prefer`."""
FAR: Final = (STRICT, LENIENT)
T = TypeVar("T")

LAB_FILE: Final = f"""
[sites.fra]
kme = true
[sites.ams]
kme = true
[sites.par]
kme = true
{TUNNEL}
[[links]]
sites = ["fra", "ams"]
external_keys = {{ mode = "require", min_interval = 0 }}
[[links]]
sites = ["fra", "par"]
external_keys = {{ mode = "prefer", min_interval = 0 }}
"""
CALM_SECONDS: Final = 10.0
NOT_AHEAD: Final = "prefetch = false\n"
"""At the end of [key_sources.kme]: the call that is to fail is then the exchange's own."""


async def start_with_keys(
    lab: Lab, *, source: str = NOT_AHEAD, rates: dict[str, str] | None = None
) -> None:
    """Daemons and links; `source` stands in each site's last table of key sources besides.

    `rates`: lines at the head of each site's peers' files.
    """
    for site in lab.sites.values():
        await site.init()
        if site.plan.sources and source:
            with site.config_path.open("a", encoding="utf-8") as file:
                file.write(source)
    for link in lab.plan.links:
        for at, peer in (link.sites, link.sites[::-1]):
            file_of_peer = lab.write_peer(at, peer)
            head = (rates or {}).get(at, "")
            file_of_peer.write_text(head + file_of_peer.read_text(encoding="utf-8"))
    async with trio.open_nursery() as nursery:
        for site in lab.sites.values():
            nursery.start_soon(_start_daemon, site)


async def _start_daemon(site: Site) -> None:
    await site.start_daemon()


async def rekey(lab: Lab, one: str, other: str) -> None:
    """What `vpnctl peer rekey` asks for, without the time that Python takes to start."""
    socket = lab.site(one).control_socket
    path = f"/v1/peers/{other}/rekey"
    await trio.to_thread.run_sync(partial(ask, socket, "POST", path), abandon_on_cancel=True)


@dataclass(slots=True)
class Backbone:
    """The lab, running in its thread, and the traffic of both links."""

    lab: Lab
    meters: dict[str, Meter]
    _cut: set[str] = field(default_factory=set)
    token: trio.lowlevel.TrioToken = field(default_factory=trio.lowlevel.current_trio_token)

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something in the lab's thread. To be called from another one."""
        return trio.from_thread.run(work, trio_token=self.token)

    def kme(self, site: str) -> KeyManagerHandle:
        return self.lab.kme(site).handle

    # ---- moments

    async def keys(self) -> dict[str, KeyPair]:
        """The keys installed last, by far end."""
        return {far: await installed(self.lab, HUB, far) for far in FAR}

    def logs(self) -> dict[str, int]:
        return {name: log_end(site) for name, site in self.lab.sites.items()}

    def told(self, site: str, since: dict[str, int]) -> list[Record]:
        return records(self.lab.site(site), since[site])

    async def rekey(self, far: str) -> None:
        await rekey(self.lab, HUB, far)

    # ---- waiting

    async def wait_event(
        self, site: str, since: dict[str, int], event: str, *, seconds: float = 45, **fields: Any
    ) -> Record:
        """The first such record since; raises WaitTimeout with what there was instead."""
        at = self.lab.site(site)
        return await wait_record(at, since[site], event, seconds=seconds, **fields)

    async def wait_fresh(self, far: str, before: KeyPair, *, seconds: float = 60) -> KeyPair:
        """Force exchanges until both ends have installed a key, the same, that is another than
        before, with an external key in it."""
        with trio.move_on_after(patient(seconds)):
            while True:
                await self.rekey(far)
                with trio.move_on_after(patient(3)):
                    while True:
                        now = await installed(self.lab, HUB, far)
                        if now.one == now.other and now.one not in ("", before.one, before.other):
                            if await self.mixed(far):
                                return now
                            break
                        await trio.sleep(0.1)
                await trio.sleep(0.2)
        raise AssertionError(
            f"no new key with an external one between {HUB} and {far} within {seconds:g} s: "
            + json.dumps(await self.lab.site(HUB).link_status(far), indent=1)
        )

    async def mixed(self, far: str) -> list[str]:
        """IDs of the external keys in the key installed last, the same at both ends; else none."""
        ids = []
        for site, peer in ((HUB, far), (far, HUB)):
            status = await self.lab.site(site).link_status(peer)
            ids.append(
                [one for key in status["external_keys"]["installed"] for one in key["key_ids"]]
            )
        return ids[0] if ids[0] == ids[1] else []

    # ---- traffic

    async def nothing_lost(self, marks: dict[str, Mark]) -> dict[str, tuple[int, int]]:
        """What was sent and lost since, by far end; asserts that nothing was."""
        found = {}
        for far, meter in self.meters.items():
            end = await meter.mark("now")
            await meter.wait_received(10)
            report = await meter.between(marks[far], end)
            if report.lost:  # what is under way counts as lost
                await meter.wait_received(50)
                report = await meter.between(marks[far], end)
            found[far] = (report.sent, report.lost)
            assert (report.lost, report.repeated) == (0, 0), f"{HUB}-{far}: {report}"
        return found

    async def at_rest(self) -> None:
        """Wait until no exchange is under way, or begins by itself soon, on either link: one that
        has its keys already would give a key whatever is broken meanwhile."""
        for far in FAR:
            await at_rest(self.lab.site(HUB), far, ahead=CALM_SECONDS, seconds=90)

    async def same_key(self, far: str) -> None:
        """Both interfaces hold one and the same preshared key."""
        with trio.move_on_after(patient(10)):
            while True:
                if await same_preshared_key(self.lab, HUB, far):
                    return
                await trio.sleep(0.2)  # one end may be a moment ahead
        raise AssertionError(f"{HUB} and {far} hold different preshared keys")

    # ---- cables

    async def cut_off(self, site: str) -> None:
        """The cable between a site and its key manager, until all is mended."""
        await self.lab.kme(site).cut_off(site)
        self._cut.add(site)

    # ---- afterwards

    async def mend(self) -> None:
        """Every key manager as it should be, and both links renewed with an external key."""
        for site in self._cut:
            await self.lab.kme(site).reconnect(site)
        self._cut.clear()
        for kme in self.lab.kmes.values():
            if kme.handle.process is None or not kme.handle.process.alive():
                await kme.handle.start()
            await kme.handle.reset()
        for gateway in self.lab.sites.values():
            gateway.renew_certificate()
        before = await self.keys()
        async with trio.open_nursery() as nursery:
            for far in FAR:
                nursery.start_soon(partial(self.wait_fresh, far, before[far], seconds=90))


@contextlib.asynccontextmanager
async def open_backbone(text: str = LAB_FILE, *, rate: float = 20) -> AsyncIterator[Backbone]:
    """The lab, its links renewed with external keys, and traffic on both."""
    async with open_lab(LabSpec.parse(text, name="qkd")) as lab:
        await start_with_keys(lab)
        for far in FAR:
            await lab.site(HUB).wait_state(far, "active", "installed", "degraded", seconds=90)
        async with (
            lab.traffic(f"{HUB}-host", f"{STRICT}-host", rate=rate) as strict,
            lab.traffic(f"{HUB}-host", f"{LENIENT}-host", rate=rate) as lenient,
        ):
            backbone = Backbone(lab, {STRICT: strict, LENIENT: lenient})
            for far, meter in backbone.meters.items():
                await meter.wait_received(10, seconds=90)
                await lab.site(HUB).wait_state(far, "active", seconds=90)
            await backbone.mend()
            yield backbone


@contextlib.contextmanager
def in_a_thread() -> Iterator[Backbone]:
    """The same for tests that are no coroutines: the lab runs in a thread of its own."""
    ready, over = threading.Event(), trio.Event()
    made: list[Backbone] = []
    failed: list[BaseException] = []

    async def live() -> None:
        async with open_backbone() as backbone:
            made.append(backbone)
            ready.set()
            await over.wait()

    def thread() -> None:
        try:
            trio.run(live)
        except BaseException as error:  # told in the thread that waits
            failed.append(error)
        finally:
            ready.set()

    running = threading.Thread(target=thread, name="backbone")
    running.start()
    ready.wait()
    try:
        if made:
            yield made[0]
    finally:
        if made:
            with contextlib.suppress(trio.RunFinishedError):
                made[0].token.run_sync_soon(over.set)
        running.join()
    if failed:
        raise failed[0]
