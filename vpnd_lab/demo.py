"""`make demo`: two sites with a router between them, a tunnel, a renewal, a killed daemon.

Everything is real: the daemons are processes, the sites are network namespaces, WireGuard carries
the traffic, and every datagram has a number that is counted at the other end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import trio

from vpnd_lab.errors import LabError
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.meter import Meter, Report
from vpnd_lab.proof import (
    KeyPair,
    in_force,
    installed,
    prove,
    same_preshared_key,
    wait_in_force,
    wait_new_key,
)
from vpnd_lab.spec import LabSpec
from vpnd_lab.story import Story, perform

ONE, OTHER = "fra", "ams"
LAB_FILE = """
[sites.fra]
[sites.ams]
"""
HANDSHAKE_SECONDS = 150.0
"""WireGuard renews its session after 120 s; more than this means that it did not."""
CALM_AGE = 21.0
"""Age of the session, in seconds, from which on a new key is the one of its next handshake."""
DOWN_SECONDS = 2.0
"""How long the killed daemon stays away."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table at the end."""

    what: str
    traffic: Report
    recovered: str
    before: KeyPair
    after: KeyPair


async def first_tunnel(lab: Lab, story: Story) -> None:
    """Identities, daemons, one line each way, and a ping through the tunnel."""
    await lab.start("daemons")
    story.tell("Each site has an identity (`vpnctl init`) and a running vpnd.")
    for at, peer in ((ONE, OTHER), (OTHER, ONE)):
        words = lab.peer_add_arguments(at, peer)
        identity = words[words.index("--identity") + 1]
        story.tell(f"{at} is told of {peer}: vpnctl peer add {peer} --identity {identity[:12]}… …")
        await lab.add_peer(at, peer)
    host, target = lab.node(f"{ONE}-host"), lab.node(f"{OTHER}-host").address(4)
    with story.timed() as taken:
        await host.run(
            ["sh", "-c", f"until ping -c1 -W1 {target} >/dev/null; do :; done"], seconds=30
        )
    story.tell(
        f"The first ping from host to host came back {taken[0]:.2f} s after the second command."
    )
    for site, peer in ((ONE, OTHER), (OTHER, ONE)):
        status = await lab.site(site).wait_state(peer, "active")
        story.tell(
            f"{site}: link to {peer} is {status['state']}, key id "
            f"{status['key_installed']['key_id']}, suite {status['suite']} "
            f"(ML-KEM-768 with X25519)"
        )


async def show_paths(lab: Lab, story: Story) -> None:
    """IPv4, IPv6, and how much goes through."""
    host, target = lab.node(f"{ONE}-host"), lab.node(f"{OTHER}-host")
    for family in (4, 6):
        await host.run(["ping", "-c3", "-i0.2", "-W2", str(target.address(family))])
        story.tell(f"IPv{family} passes through the tunnel: 3 pings, 3 answers.")
    serve = ["iperf3", "--server", "--one-off", "--forceflush"]
    async with target.background(serve) as server:
        if server.stdout is None:
            raise LabError("iperf3 has no output")
        said = b""
        while b"listening" not in said:
            said += await server.stdout.receive_some()
        done = await host.run(["iperf3", "--json", "--time=3", "-c", str(target.address(4))])
    rate = json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]
    tunnel = (await lab.site(ONE).status())["tunnels"][0]
    story.tell(f"iperf3: {rate / 1e6:.0f} Mbit/s through {tunnel['backend']} WireGuard.")


async def wait_for_handshake(lab: Lab, story: Story, meter: Meter, before: KeyPair) -> KeyPair:
    """Wait, and say meanwhile what is waited for; the key that is in force then."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_report_progress, lab, story, meter)
        key = await wait_in_force(lab, ONE, OTHER, before=before, seconds=HANDSHAKE_SECONDS)
        nursery.cancel_scope.cancel()
    await meter.wait_received(100)
    story.tell(f"The key {key} is in force at both ends, and traffic goes on.")
    return key


async def _session_age(lab: Lab) -> float:
    status = await lab.site(OTHER).link_status(ONE)
    return float(status["wireguard"]["last_handshake_seconds"] or 0)


async def _report_progress(lab: Lab, story: Story, meter: Meter) -> None:
    while True:
        await trio.sleep(20)
        age = await _session_age(lab)
        so_far = await meter.between(None, None)
        story.tell(
            f"… the WireGuard session is {age:.0f} s old and is renewed at 120 s; {so_far.sent} "
            f"datagrams sent, {so_far.lost} not arrived (those under way included)"
        )


async def steady(lab: Lab, story: Story, meter: Meter) -> Row:
    """Traffic with nothing going on, until the session is old enough.

    A key made in a session's first seconds would be renewed once more before WireGuard's next
    handshake, and this demonstration is to follow one key.
    """
    start = await meter.mark("steady")
    key = await in_force(lab, ONE, OTHER)
    left = CALM_AGE - await _session_age(lab)
    if left > 0:
        story.tell(f"First {left:.0f} s with nothing going on, to compare with.")
        await trio.sleep(left)
    return Row("nothing", await meter.between(start, await meter.mark("calm")), "", key, key)


async def renewal(lab: Lab, story: Story, meter: Meter) -> Row:
    """A new key under traffic, in force after WireGuard's next handshake."""
    before = await in_force(lab, ONE, OTHER)
    last = await installed(lab, ONE, OTHER)
    start = await meter.mark("renewal")
    story.tell("Now the key is renewed under traffic: vpnctl peer rekey")
    with story.timed() as taken:
        await lab.site(ONE).vpnctl("peer", "rekey", OTHER)
        key = await wait_new_key(lab, ONE, OTHER, before=last)
    story.tell(f"Both ends have installed the key {key} (before: {last}).")
    story.explain("A running session is left alone: WireGuard uses it from its next handshake on.")
    key = await wait_for_handshake(lab, story, meter, before)
    traffic = await meter.between(start, await meter.mark("renewed"))
    return Row("renewal", traffic, f"{taken[0]:.2f} s", before, key)


async def killed_daemon(lab: Lab, story: Story, meter: Meter) -> Row:
    """SIGKILL under traffic: the data plane goes on, the daemon takes it over and renews."""
    before = await in_force(lab, ONE, OTHER)
    last = await installed(lab, ONE, OTHER)
    start = await meter.mark("kill")
    await lab.site(ONE).kill_daemon()
    story.tell(f"vpnd of {ONE} was killed with SIGKILL; it stays away for {DOWN_SECONDS:.0f} s.")
    await trio.sleep(DOWN_SECONDS)
    with story.timed() as taken:
        await lab.site(ONE).start_daemon()
        key = await wait_new_key(lab, ONE, OTHER, before=last)
    story.tell(
        f"It is back, has taken the tunnel over as it was, and made a new key {key} "
        f"within {taken[0]:.2f} s of its start."
    )
    key = await wait_for_handshake(lab, story, meter, before)
    traffic = await meter.between(start, await meter.mark("recovered"))
    return Row("SIGKILL of vpnd", traffic, f"{taken[0]:.2f} s", before, key)


async def conclude(lab: Lab, story: Story, rows: list[Row], meter: Meter) -> None:
    """The table, and the proof. Raises NotProved."""
    everything = await meter.stop()
    same = await same_preshared_key(lab, ONE, OTHER)
    story.tell(f"The preshared keys of both interfaces are {'equal' if same else 'DIFFERENT'}.")
    for site, peer in ((ONE, OTHER), (OTHER, ONE)):
        key = (await lab.site(site).link_status(peer))["key_in_force"]
        story.tell(f"{site}: key {key['key_id']} in force since {key['in_force_since']}")
    print()
    print(
        f"{'':18}{'sent':>8}{'lost':>6}{'repeated':>10}{'new key in':>12}"
        "  key id in force before → after"
    )
    for row in rows:
        print(
            f"{row.what:18}{row.traffic.sent:8}{row.traffic.lost:6}{row.traffic.repeated:10}"
            f"{row.recovered:>12}  {row.before} → {row.after}, the same at both ends"
        )
    print(f"{'all':18}{everything.sent:8}{everything.lost:6}{everything.repeated:10}")
    print()
    await prove(lab, ONE, OTHER, everything)


async def demo() -> None:
    """The whole demonstration. Raises LabError where something does not hold."""
    story = Story()
    story.tell("Two sites, fra and ams, each with a gateway and a host; a router between them.")
    async with open_lab(LabSpec.parse(LAB_FILE, name="demo")) as lab:
        await first_tunnel(lab, story)
        await show_paths(lab, story)
        async with lab.traffic(f"{ONE}-host", f"{OTHER}-host", rate=100) as meter:
            await meter.wait_received(50)
            story.tell("Numbered datagrams run both ways, 100 a second, to the end of the demo.")
            rows = [
                await steady(lab, story, meter),
                await renewal(lab, story, meter),
                await steady(lab, story, meter),
                await killed_daemon(lab, story, meter),
            ]
            await conclude(lab, story, rows, meter)
    story.tell("Everything was taken away again.")


def main() -> None:
    """Entry point of `python -m vpnd_lab.demo`."""
    perform(demo)


if __name__ == "__main__":
    main()
