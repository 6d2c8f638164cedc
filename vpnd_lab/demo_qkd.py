"""`make demo-qkd`: keys of QKD key managers on some links, one of them cut off under traffic.

        fra-kme ── fra ══ internet ══ ams ── ams-kme       backbone, require
                    ║                 par ── par-kme       metro, prefer
                    ╚═══ internet ═══ branch               off

Everything is real, but for the quantum link: the key managers are processes of the lab that speak
ETSI GS QKD 014 over mutual TLS. Every datagram has a number that is counted at the other end.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import trio

from vpnd_lab.journal import log_end, matching, records, wait_record
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.meter import Mark, Meter, Report
from vpnd_lab.proof import (
    KeyPair,
    NotProved,
    in_force,
    installed,
    key_id,
    prove,
    same_preshared_key,
    wait_in_force,
    wait_new_key,
)
from vpnd_lab.spec import LabSpec
from vpnd_lab.story import Story, perform

HUB: Final = "fra"
BACKBONE, METRO, BRANCH = "ams", "par", "branch"
POLICY: Final = {BACKBONE: "require", METRO: "prefer", BRANCH: "off"}
LAB_FILE: Final = """
[sites.fra]
kme = true
[sites.ams]
kme = true
[sites.par]
kme = true
[sites.branch]
[[links]]
sites = ["fra", "ams"]
external_keys = "require"
[[links]]
sites = ["fra", "par"]
external_keys = { mode = "prefer", fallback_limit = 3600 }
[[links]]
sites = ["fra", "branch"]
external_keys = "off"
"""
RENEWED_SECONDS: Final = 200.0
"""A key is renewed at the latest 145 s after the last exchange."""
HANDSHAKE_SECONDS: Final = 180.0
"""WireGuard renews its session after 120 s; more than this means that it did not."""
LIFETIME_SECONDS: Final = 700.0
"""A key lives for 600 s."""
WATCHED_SECONDS: Final = 15.0
"""For which traffic is watched with the key manager cut off, after all has come of it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a phase of a link."""

    phase: str
    far: str
    traffic: Report
    before: KeyPair
    after: KeyPair
    external: str
    """IDs of the external keys in the key installed last, the same at both ends."""


class Demo:
    """The lab, the traffic of its links, and the table that grows."""

    def __init__(self, lab: Lab, story: Story, meters: Mapping[str, Meter]) -> None:
        self.lab = lab
        self.story = story
        self._meters = meters
        self.rows: list[Row] = []
        self.closed = False
        """Whether the backbone's key was left to its end."""

    # ---- keys

    async def keys(self) -> dict[str, KeyPair]:
        return {far: await installed(self.lab, HUB, far) for far in POLICY}

    async def external(self, far: str) -> str:
        """IDs of the external keys in the link's newest key. Raises NotProved where the ends
        differ."""
        shown = []
        for site, peer in ((HUB, far), (far, HUB)):
            keys = (await self.lab.site(site).link_status(peer))["external_keys"]["installed"]
            shown.append([one for key in keys for one in key["key_ids"]])
        if shown[0] != shown[1]:
            raise NotProved(f"{HUB} and {far} show other external keys: {shown}")
        return ", ".join(shown[0])

    async def check_mixed(self, far: str, *, before: str = "") -> str:
        """That the newest key has an external key in it, another one than before; its IDs."""
        found = await self.external(far)
        if not found or found == before:
            raise NotProved(f"{HUB}-{far}: no new external key is mixed in: {found or 'none'}")
        return found

    # ---- phases

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        """Rows of the table for what the block does: traffic and keys of each link."""
        before = await self.keys()
        starts = {far: await each.mark(name) for far, each in self._meters.items()}
        yield
        ends = {far: await each.mark(f"after {name}") for far, each in self._meters.items()}
        after = await self.keys()
        for far, meter in self._meters.items():
            traffic = await self._settled(meter, starts[far], ends[far])
            row = Row(name, far, traffic, before[far], after[far], await self.external(far))
            self.rows.append(row)

    async def _settled(self, meter: Meter, start: Mark, end: Mark) -> Report:
        """What is under way at the end of a phase still counts for it."""
        with trio.move_on_after(5):
            while True:
                report = await meter.between(start, end)
                if not report.lost:
                    return report
                await trio.sleep(0.2)
        return await meter.between(start, end)

    async def together(self, work: Callable[[str], Awaitable[None]], *fars: str) -> None:
        """Do something for several links side by side."""
        async with trio.open_nursery() as nursery:
            for far in fars or POLICY:
                nursery.start_soon(work, far)

    async def renewal(self) -> None:
        """Every link gets a new key; two of them with an external one in it."""
        self.story.tell("Every link is renewed under traffic: vpnctl peer rekey")
        last = await self.keys()
        ids = {far: await self.external(far) for far in POLICY}

        async def renew(far: str) -> None:
            await self.lab.site(HUB).vpnctl("peer", "rekey", far)
            await wait_new_key(self.lab, HUB, far, before=last[far])

        await self.together(renew)
        for far in (BACKBONE, METRO):
            found = await self.check_mixed(far, before=ids[far])
            self.story.tell(f"{HUB}-{far}: QKD key {found} is mixed in, by both ends' key managers")
        if await self.external(BRANCH):
            raise NotProved(f"{HUB}-{BRANCH} is to have no external keys")
        self.story.tell(f"{HUB}-{BRANCH}: renewed without, as configured")

    async def cut_off(self) -> None:
        """One key manager is gone: what comes of it is what each link's policy says."""
        lab, story = self.lab, self.story
        last = await self.keys()
        since = {name: log_end(site) for name, site in lab.sites.items()}
        await lab.kme(HUB).cut_off(HUB)
        story.tell("The cable between fra and its key manager is cut. All links are to be renewed.")
        await self.together(partial(_rekey, lab))
        hub = lab.site(HUB)

        refused = await wait_record(hub, since[HUB], "exchange_failed", peer=BACKBONE)
        story.tell(f"{HUB}-{BACKBONE} (require): fallback refused: {refused['reason']}")
        await wait_new_key(lab, HUB, METRO, before=last[METRO])
        for site, peer in ((HUB, METRO), (METRO, HUB)):
            begun = await wait_record(lab.site(site), since[site], "fallback_started", peer=peer)
            story.tell(f"{site} (prefer): fallback until {begun['until']}: {begun['reason']}")
        await wait_new_key(lab, HUB, BRANCH, before=last[BRANCH])
        story.tell(f"{HUB}-{BRANCH} (off): renewed as if nothing had happened")

        await trio.sleep(WATCHED_SECONDS)
        if (await self.keys())[BACKBONE] != last[BACKBONE]:
            raise NotProved(f"{HUB}-{BACKBONE} has a new key without a key manager")
        if await self.external(METRO):
            raise NotProved(f"{HUB}-{METRO} shows an external key without a key manager")
        for site in (HUB, BACKBONE):
            if matching(records(lab.site(site), since[site]), "fallback_started", peer=BACKBONE):
                raise NotProved(f"{site}: a fallback on a link in require")
        story.tell(f"{HUB}-{BACKBONE}: the key {last[BACKBONE]} stays in use at both ends")

    async def lifetime_over(self) -> None:
        """The old key is used to the end of its lifetime, and then no longer."""
        story = self.story
        story.tell(
            "Now the backbone's key comes to the end of its lifetime: 10 min after its start."
        )
        for site, peer in ((HUB, BACKBONE), (BACKBONE, HUB)):
            closed = await self.lab.site(site).wait_state(
                peer, "closed", "down", seconds=LIFETIME_SECONDS
            )
            story.tell(f"{site}: {closed['state']}: {closed['reason']}")
        self.closed = True

    async def back(self) -> None:
        """The key manager is there again; nobody tells the daemons."""
        lab, story = self.lab, self.story
        since = {name: log_end(site) for name, site in lab.sites.items()}
        old = {far: await in_force(lab, HUB, far) for far in POLICY}
        last = await self.keys()
        await lab.kme(HUB).reconnect(HUB)
        story.tell("The cable is back. Nobody tells the daemons.")

        async def renewed(far: str) -> None:
            if far == METRO:
                for site, peer in ((HUB, METRO), (METRO, HUB)):
                    over = await wait_record(
                        lab.site(site),
                        since[site],
                        "fallback_ended",
                        peer=peer,
                        seconds=RENEWED_SECONDS,
                    )
                    story.tell(f"{site}: the fallback is over, after {over['seconds']:.0f} s")
            if far != BRANCH:
                await wait_new_key(lab, HUB, far, before=last[far], seconds=RENEWED_SECONDS)
                found = await self.check_mixed(far)
                story.tell(f"{HUB}-{far}: a new key, with QKD key {found}")
            await wait_in_force(lab, HUB, far, before=old[far], seconds=HANDSHAKE_SECONDS)
            story.tell(f"{HUB}-{far}: in force, after WireGuard's next handshake")

        await self.together(renewed)

    # ---- the end

    async def conclude(self) -> None:
        """The table, and the proof. Raises NotProved."""
        totals = {far: await meter.stop() for far, meter in self._meters.items()}
        self._print_table(totals)
        for far, mode in POLICY.items():
            same = await same_preshared_key(self.lab, HUB, far)
            self.story.tell(f"{HUB}-{far}: preshared keys {'equal' if same else 'DIFFERENT'}")
            if mode != "off":
                await self.check_mixed(far)
            if far == BACKBONE and self.closed:
                continue  # what was lost after the lifetime is to be lost
            await prove(self.lab, HUB, far, totals[far])
        for row in self.rows:
            may_be_closed = row.far == BACKBONE and row.phase in (CLOSED, BACK) and self.closed
            if row.traffic.lost and not may_be_closed:
                raise NotProved(f"{row.phase}: {row.traffic.lost} lost on {HUB}-{row.far}")

    def _print_table(self, totals: Mapping[str, Report]) -> None:
        print(
            f"\n{'':22}{'link':13}{'policy':9}{'sent':>7}{'lost':>6}  "
            f"{'key id installed':22}QKD key ID, the same at both ends"
        )
        for row in self.rows:
            print(
                f"{row.phase:22}{HUB}-{row.far:9}{POLICY[row.far]:9}{row.traffic.sent:7}"
                f"{row.traffic.lost:6}  {f'{row.before} → {row.after}':22}{row.external or 'none'}"
            )
        for far, total in totals.items():
            print(f"{'all':22}{HUB}-{far:9}{POLICY[far]:9}{total.sent:7}{total.lost:6}")
        print(flush=True)


STEADY, RENEWAL, CUT, CLOSED, BACK = (
    "nothing",
    "renewal",
    "key manager cut off",
    "… lifetime over",
    "key manager back",
)


async def _rekey(lab: Lab, far: str) -> None:
    await lab.site(HUB).vpnctl("peer", "rekey", far)


async def _first_keys(lab: Lab, story: Story) -> None:
    """All links come up, and show at both ends what is mixed into their keys."""
    for far, mode in POLICY.items():
        for site, peer in ((HUB, far), (far, HUB)):
            status: Any = await lab.site(site).wait_state(peer, "active", seconds=120)
            mixed = ", ".join(
                f"{key['type']} key {' '.join(key['key_ids'])} of {key['key_manager']}"
                for key in status["external_keys"]["in_force"]
            )
            if (mode == "off") == bool(mixed):
                raise NotProved(f"{site}: external keys {mode}, and mixed in: {mixed or 'none'}")
            story.tell(
                f"{site}: link to {peer} active, key id {key_id(status)}, external keys "
                f"{mode}: {mixed or 'none'}"
            )


async def demo(*, to_the_end: bool = False) -> None:
    """The whole demonstration. Raises LabError where something does not hold."""
    story = Story()
    story.tell("Data centres fra, ams and par, each with a QKD key manager; and a branch without.")
    async with open_lab(LabSpec.parse(LAB_FILE, name="demo-qkd"), start="links") as lab:
        await _first_keys(lab, story)
        async with AsyncExitStack() as stack:
            meters = {
                far: await stack.enter_async_context(
                    lab.traffic(f"{HUB}-host", f"{far}-host", rate=50)
                )
                for far in POLICY
            }
            for meter in meters.values():
                await meter.wait_received(50)
            story.tell("Numbered datagrams run both ways on every link, to the end of the demo.")
            demo = Demo(lab, story, meters)
            async with demo.phase(STEADY):
                await trio.sleep(5)
            async with demo.phase(RENEWAL):
                await demo.renewal()
            async with demo.phase(CUT):
                await demo.cut_off()
            if to_the_end:
                async with demo.phase(CLOSED):
                    await demo.lifetime_over()
            async with demo.phase(BACK):
                await demo.back()
            await demo.conclude()
    story.tell("Everything was taken away again.")


def main() -> None:
    """Entry point of `python -m vpnd_lab.demo_qkd`."""
    parser = argparse.ArgumentParser(prog="demo-qkd", description=main.__doc__)
    parser.add_argument(
        "--to-the-end",
        action="store_true",
        help="leave the key manager cut off until the backbone's key is at its end: 10 min more",
    )
    perform(partial(demo, to_the_end=parser.parse_args().to_the_end))


if __name__ == "__main__":
    main()
