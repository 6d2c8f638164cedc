"""vpnd killed again and again at either end, for a long time, under traffic: nothing is lost, and
nothing is left over.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from linking import counted, linked
from pair import ENDS, processes, settled
from report import Case

from vpnd_lab.lab import Lab
from vpnd_lab.proof import HANDSHAKE_SECONDS, KeyPair, in_force, prove, wait_in_force, wait_new_key
from vpnd_lab.site import Site

pytestmark = [pytest.mark.netns, pytest.mark.kernel, pytest.mark.long]

SECONDS = 600.0
KILL_EVERY_SECONDS = 5.0
NAMESPACES = ("net", "mnt", "uts", "pid", "user")
SPARE_KIB = 8 * 1024
"""What a process may have grown by: a leak at every kill would be a hundred times as much."""


@dataclass(frozen=True)
class Possessions:
    """What a site has at one moment, of what can leak."""

    processes: tuple[str, ...]
    descriptors: dict[str, int]
    """Open files, by the program's name."""
    memory: dict[str, int]
    """Resident KiB, by the program's name."""
    interfaces: tuple[str, ...]
    peers: int
    routes: int
    files: tuple[str, ...]

    @classmethod
    async def of(cls, site: Site) -> Possessions:
        found = processes(site)
        return cls(
            processes=tuple(sorted(found.values())),
            descriptors={name: len(os.listdir(f"/proc/{pid}/fd")) for pid, name in found.items()},
            memory={name: resident(pid) for pid, name in found.items()},
            interfaces=tuple(await lines(site, "ip", "-o", "link")),
            peers=len(await lines(site, "wg", "show", "wg0", "peers")),
            routes=len(await lines(site, "ip", "route", "show", "table", "all", "proto", "157"))
            + len(await lines(site, "ip", "-6", "route", "show", "table", "all", "proto", "157")),
            files=tuple(sorted(str(each) for each in site.folder.rglob("*") if not each.is_dir())),
        )


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmRSS")))


async def lines(site: Site, *command: str) -> list[str]:
    """A command's output; of an interface its index and name alone."""
    shown = (await site.run(command)).stdout.splitlines()
    return [":".join(line.split(":")[:2]) if ":" in line else line for line in shown]


def namespaces(lab: Lab) -> set[tuple[str, int]]:
    """The namespaces that processes of the lab are in, by kind and inode.

    Told by their environment; forks of the lab's fork server, which have another, by their network.
    """
    seen: list[tuple[bool, dict[str, int]]] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            named = f"VPND_LAB={lab.name}\0".encode() in (folder / "environ").read_bytes()
            found = {kind: (folder / "ns" / kind).stat().st_ino for kind in NAMESPACES}
        except OSError:
            continue  # it has ended
        seen.append((named, found))
    networks = {found["net"] for named, found in seen if named}
    return {each for _, found in seen if found["net"] in networks for each in found.items()}


async def test_vpnd_killed_every_five_seconds(case: Case) -> None:
    async with linked() as lab:
        sites = [lab.site(name) for name, _ in ENDS]
        # Killed once before it is measured: a daemon that has adopted is what there is at the end
        for site in sites:
            await site.kill_daemon()
            await site.start_daemon()
        async with counted(lab, rate=100) as meter:
            await settled(lab)
            before, spaces = [await Possessions.of(site) for site in sites], namespaces(lab)
            seed = random.randrange(2**32)
            print(f"seed {seed}")
            kills = await kill_at_random(sites, random.Random(seed))
            key = await settled(lab)
            old = await in_force(lab, "fra", "ams")
            if old != key:
                await wait_in_force(lab, "fra", "ams", before=old, seconds=HANDSHAKE_SECONDS)
            # And a further one, made with nothing going on
            last, old = key, await in_force(lab, "fra", "ams")
            await wait_new_key(lab, "fra", "ams", before=last, seconds=HANDSHAKE_SECONDS)
            await wait_in_force(lab, "fra", "ams", before=old, seconds=HANDSHAKE_SECONDS)
            await meter.wait_received(50)
            traffic = await meter.stop()
            after = [await Possessions.of(site) for site in sites]
            case.traffic(traffic, f"{kills} kills in {SECONDS:.0f} s")
            tell(lab, before, after, await in_force(lab, "fra", "ams"))
            print(f"namespaces: {len(spaces)} -> {len(namespaces(lab))}")
            assert namespaces(lab) == spaces
            await prove(lab, "fra", "ams", traffic)
            for was, now in zip(before, after, strict=True):
                compare(was, now)
            assert all("internal_error" not in site.daemon_log.read_text() for site in sites)


async def kill_at_random(sites: list[Site], chance: random.Random) -> int:
    """Kill one of the daemons every five seconds and start it again; how many were killed."""
    kills, end = 0, trio.current_time() + SECONDS
    while (began := trio.current_time()) < end:
        site = chance.choice(sites)
        await trio.sleep(chance.uniform(0, KILL_EVERY_SECONDS / 2))
        await site.kill_daemon()
        await site.start_daemon()
        kills += 1
        await trio.sleep_until(began + KILL_EVERY_SECONDS)
    return kills


def tell(lab: Lab, before: list[Possessions], after: list[Possessions], key: KeyPair) -> None:
    print(f"key in force at both ends: {key}")
    for (name, _), was, now in zip(ENDS, before, after, strict=True):
        for program in now.descriptors:
            print(
                f"{name}: {program}: {was.descriptors.get(program)} -> {now.descriptors[program]} "
                f"descriptors, {was.memory.get(program)} -> {now.memory[program]} KiB"
            )
        print(
            f"{name}: processes {was.processes} -> {now.processes}; interfaces "
            f"{len(was.interfaces)} -> {len(now.interfaces)}; peers {was.peers} -> {now.peers}; "
            f"routes {was.routes} -> {now.routes}; files {len(was.files)} -> {len(now.files)}"
        )


def compare(was: Possessions, now: Possessions) -> None:
    assert now.processes == was.processes
    assert now.interfaces == was.interfaces
    assert (now.peers, now.routes, now.files) == (was.peers, was.routes, was.files)
    for program, descriptors in was.descriptors.items():
        # A connection that is just being answered may be open
        assert abs(now.descriptors[program] - descriptors) <= 3, program
        assert now.memory[program] <= was.memory[program] + SPARE_KIB, program
