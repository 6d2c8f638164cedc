"""Gateways over virtual hours, in any weather: they always come to one key at both ends.

At every step of every schedule tests/kex/world.py and gateway.py check that two PSKs never differ
while nothing is in flight or due, that no key is handed out which the other end was not proved to
hold, and that a link closes when the lifetime of its key is over, not sooner and not later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kex import order, timing, wire
from kex.address import Address
from kex.events import StartReason
from kex.external import ExternalMode
from kex.suites import RandomSource, Suite
from kex.suites import suite as make_suite
from kex.wire import MessageType
from tests.examples import FAST
from tests.kex.gateway import LinkPlan, Site, SuiteMaker, connect
from tests.kex.stand_in import StandInSuite
from tests.kex.test_exploration import BY_THE_PAIR
from tests.kex.wireguard import HANDSHAKE_RETRY, REKEY_AFTER, SESSION_ENDS
from tests.kex.world import Broken, Weather, World

OFF, PREFER, REQUIRE = ExternalMode.OFF, ExternalMode.PREFER, ExternalMode.REQUIRE
MODES = ((OFF, OFF), (OFF, OFF), (PREFER, PREFER), (REQUIRE, REQUIRE), (OFF, PREFER))
HOUR = 3600.0
ROUND_TRIP = 1.0
"""More than any fine weather needs for a whole exchange."""


def some(*, full: int, fast: int) -> settings:
    """How many schedules: in the whole suite, and for a quick look."""
    return settings(
        max_examples=fast if FAST else full,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def real(random: RandomSource) -> Suite:
    return make_suite(1, random=random)


# ---- any weather


@dataclass(frozen=True)
class Death:
    """A daemon dies, or its host, and comes back."""

    at: float
    site: int
    seconds: float
    keeps_interface: bool


@dataclass(frozen=True)
class Schedule:
    """All that is decided before a run. Times are shares of its length."""

    seed: int
    weather: Weather
    deaths: tuple[Death, ...] = ()
    requests: tuple[tuple[float, int], ...] = ()
    begins: tuple[float, float] = (0.0, 0.0)
    """Seconds."""
    sites: int = 2
    addressed: tuple[bool, bool] = (True, True)
    modes: tuple[ExternalMode, ExternalMode] = (OFF, OFF)
    intervals: tuple[int, int] = (120, 120)

    def world(self, suite: SuiteMaker, seconds: float) -> World:
        cuts = tuple((at * seconds, at * seconds + long) for at, long in self.weather.cuts)
        world = World(self.seed, replace(self.weather, cuts=cuts))
        sites = [Site(world, f"site {n}", n + 1, make_suite=suite) for n in range(self.sites)]
        options = [
            {
                "external_mode": mode,
                "interval": interval,
                "lifetime": timing.default_lifetime(interval),
            }
            for mode, interval in zip(self.modes, self.intervals, strict=True)
        ]
        for first in range(self.sites):
            for second in range(first + 1, self.sites):
                plan = LinkPlan(
                    ends=(first, second),
                    addressed=self.addressed,
                    begins=self.begins,
                    options=(options[0], options[1]),
                )
                connect(world, plan)
        for death in self.deaths:
            site = sites[death.site % self.sites]
            dies = partial(
                site.restart, seconds=death.seconds, keeps_interface=death.keeps_interface
            )
            world.at(death.at * seconds, dies)
        for at, number in self.requests:
            world.at(at * seconds, sites[number % self.sites].request_all)
        return world


def shares() -> st.SearchStrategy[float]:
    return st.integers(0, 99).map(lambda percent: percent / 100)


WEATHERS = st.builds(
    Weather,
    loss=st.sampled_from((0.3, 0.3, 0.1, 0.0)),
    repeats=st.sampled_from((0.0, 0.2)),
    jitter=st.sampled_from((0.0, 0.05, 2.0)),
    late=st.sampled_from((0.0, 0.05)),
    cuts=st.lists(st.tuples(shares(), st.sampled_from((5.0, 40.0, 200.0))), max_size=2).map(tuple),
    install_seconds=st.sampled_from((0.01, 1.0)),
    install_fails=st.sampled_from((0.0, 0.0, 0.1)),
    keys_fail=st.sampled_from((0.0, 0.1)),
    keys_differ=st.sampled_from((0.0, 0.1)),
    keys_seconds=st.sampled_from((0.1, 5.0)),
)
DEATHS = st.builds(
    Death,
    at=shares(),
    site=st.integers(0, 2),
    seconds=st.sampled_from((0.0, 0.2, 3.0, 30.0)),
    keeps_interface=st.sampled_from((True, True, False)),
)
SCHEDULES = st.builds(
    Schedule,
    seed=st.integers(0, 2**32),
    weather=WEATHERS,
    deaths=st.lists(DEATHS, max_size=3).map(tuple),
    requests=st.lists(st.tuples(shares(), st.integers(0, 2)), max_size=3).map(tuple),
    begins=st.tuples(*[st.sampled_from((0.0, 0.0, 0.01, 4.0, 60.0))] * 2),
    sites=st.sampled_from((2, 2, 2, 3)),
    addressed=st.sampled_from(((True, True),) * 3 + ((True, False), (False, True))),
    modes=st.sampled_from(MODES),
    intervals=st.tuples(*[st.sampled_from((120, 120, 300))] * 2),
)


def run(schedule: Schedule, suite: SuiteMaker, seconds: float, counts: Counter[str]) -> None:
    """Bad weather for so long, then fine weather: one key at both ends, and sessions with it."""
    world = schedule.world(suite, seconds)
    world.run(seconds)
    world.calm(90.0 if all(schedule.addressed) else 180.0)
    world.run(world.now + SESSION_ENDS + 2 * HANDSHAKE_RETRY)
    world.calm()
    for tunnel in world.tunnels:
        assert tunnel.session_at is not None
        assert world.now - tunnel.session_at < SESSION_ENDS
    counts.update(world.counts)
    counts["schedules"] += 1
    counts["schedules with 30 % loss"] += schedule.weather.loss == 0.3
    counts["schedules with restarts"] += bool(schedule.deaths)
    counts["schedules with external keys"] += schedule.modes != (OFF, OFF)
    counts["virtual hours"] += round(world.now)


def tell(capsys: pytest.CaptureFixture[str], counts: Counter[str]) -> None:
    counts["virtual hours"] //= round(HOUR)
    with capsys.disabled():
        print("\n" + ", ".join(f"{counts[what]:,} {what}" for what in sorted(counts)))


def test_any_weather(capsys: pytest.CaptureFixture[str]) -> None:
    counts: Counter[str] = Counter()

    @some(full=2000, fast=100)
    @given(SCHEDULES)
    def schedules(schedule: Schedule) -> None:
        run(schedule, StandInSuite, 400.0, counts)

    schedules()
    tell(capsys, counts)


def test_hours_of_any_weather(capsys: pytest.CaptureFixture[str]) -> None:
    counts: Counter[str] = Counter()

    @some(full=60, fast=2)
    @given(SCHEDULES)
    def schedules(schedule: Schedule) -> None:
        run(schedule, StandInSuite, 3 * HOUR, counts)

    schedules()
    tell(capsys, counts)


def test_any_weather_with_real_cryptography(capsys: pytest.CaptureFixture[str]) -> None:
    counts: Counter[str] = Counter()

    @some(full=60, fast=5)
    @given(SCHEDULES)
    def schedules(schedule: Schedule) -> None:
        run(schedule, real, 400.0, counts)

    schedules()
    tell(capsys, counts)


# ---- fine weather: when things happen


def pair(
    seed: int,
    *,
    weather: Weather | None = None,
    identities: int = 1,
    **plan: Any,
) -> tuple[World, Site, Site]:
    """A world with two sites and one link between them; the smaller end first."""
    world = World(seed, weather or Weather())
    sites = [
        Site(world, name, number, make_suite=StandInSuite, identities=identities)
        for number, name in enumerate(("one", "two"), start=1)
    ]
    connect(world, LinkPlan(**plan))
    smaller, larger = sorted(sites, key=lambda site: site.identities[0].fingerprint)
    return world, smaller, larger


def only_link(site: Site) -> str:
    (name,) = site.configs
    return name


SEEDS = st.integers(0, 2**32)


@some(full=20, fast=3)
@given(SEEDS, st.sampled_from((120, 300, 600, 3600)))
def test_the_smaller_end_renews_when_wireguard_is_about_to(seed: int, interval: int) -> None:
    options = {"interval": interval, "lifetime": timing.default_lifetime(interval)}
    world, smaller, _ = pair(seed, options=(options, options))
    world.run(3 * HOUR)
    renewals = [start for start in world.started if start.at > ROUND_TRIP]
    assert len(renewals) >= 3 * HOUR / (interval + 32) - 1
    for start in renewals:
        assert (start.site, start.reason) == (smaller.name, StartReason.RENEWAL)
        assert start.session_age is not None
        assert start.key_age is not None
        by_session = abs(start.session_age - timing.SESSION_RENEWAL_AGE) <= timing.RENEWAL_JITTER
        without = interval + timing.NO_HANDSHAKE_MARGIN
        assert by_session or abs(start.key_age - without) <= timing.RENEWAL_JITTER
        assert start.key_age >= interval - timing.EARLY_MARGIN - timing.RENEWAL_JITTER
        assert start.key_age <= without + timing.RENEWAL_JITTER
    assert "sessions lost" not in world.counts


@some(full=20, fast=3)
@given(SEEDS)
def test_every_session_has_a_key_of_its_own(seed: int) -> None:
    """At the default interval a renewal lies ready whenever WireGuard makes a new session."""
    world, _, _ = pair(seed)
    world.run(3 * HOUR)
    (tunnel,) = world.tunnels
    keys_at_sessions = tunnel.keys_of_sessions
    assert len(keys_at_sessions) > 3 * HOUR / (REKEY_AFTER + 30)
    assert len(set(keys_at_sessions)) == len(keys_at_sessions)


@some(full=20, fast=3)
@given(SEEDS)
def test_the_larger_end_starts_when_no_renewal_came(seed: int) -> None:
    world, smaller, larger = pair(seed)
    world.run(HOUR)
    smaller.restart(seconds=400)
    begun = len(world.started)
    world.run(world.now + 300)
    first = world.started[begun]
    assert (first.site, first.reason) == (larger.name, StartReason.RENEWAL)
    late = timing.LARGER_END_MARGIN
    assert first.session_age == pytest.approx(timing.SESSION_RENEWAL_AGE + late) or (
        first.key_age == pytest.approx(120 + timing.NO_HANDSHAKE_MARGIN + late)
    )


@some(full=20, fast=3)
@given(SEEDS, st.booleans())
def test_an_end_without_an_address_never_renews(seed: int, first_is: bool) -> None:
    """It may sit in front of a NAT whose hole has closed."""
    world, _, _ = pair(seed, addressed=(first_is, not first_is))
    world.run(HOUR)
    world.calm()
    begun = {start.site for start in world.started if start.at > ROUND_TRIP}
    assert begun == {"one" if first_is else "two"}
    assert "sessions lost" not in world.counts


@some(full=20, fast=3)
@given(SEEDS)
def test_both_at_once_costs_one_exchange(seed: int) -> None:
    """docs/decisions/0003."""
    world, _, _ = pair(seed)
    world.run(60.0)
    world.calm()
    assert world.counts["keys"] == 2
    assert sorted(start.site for start in world.started) == ["one", "two"]


@some(full=100, fast=5)
@given(SEEDS, st.floats(0.0, 120.0))
def test_the_end_that_was_first_does_not_sit_out_a_pause(seed: int, second_at: float) -> None:
    world, _, _ = pair(seed, begins=(0.0, second_at))
    world.run(second_at + ROUND_TRIP)
    assert world.tunnels[0].is_settled()


# ---- lifetime, rotation, several links


@some(full=20, fast=3)
@given(SEEDS, st.sampled_from((600, 900, 4000)))
def test_a_link_without_renewals_closes_and_comes_back(seed: int, lifetime: int) -> None:
    options = {"lifetime": lifetime}
    world, smaller, larger = pair(
        seed, weather=Weather(cuts=((300.0, lifetime + 500.0),)), options=(options, options)
    )
    world.run(300.0)
    last = [site.installed[only_link(site)].expires_at for site in (smaller, larger)]
    world.run(max(last) + 1)
    assert world.counts["lifetimes over"] == 2
    assert not smaller.installed
    assert not larger.installed
    world.run(lifetime + 500.0)
    world.calm()


@some(full=100, fast=5)
@given(
    SEEDS,
    st.sampled_from((0.0, 0.3)),
    st.permutations(["one", "one", "one", "two", "two", "two"]),
    st.lists(st.floats(1.0, 300.0), min_size=6, max_size=6),
)
def test_rotation_of_identities(
    seed: int, loss: float, turns: list[str], pauses: list[float]
) -> None:
    """Both ends change their identity, in any order of steps; the link never fails for it.

    The steps of one end: the peer lists the new identity behind the old one; this end uses the
    new one first; the peer lists it first.
    """
    world, smaller, larger = pair(seed, weather=Weather(loss=loss, jitter=0.1), identities=2)
    sites = {site.name: site for site in (smaller, larger)}
    world.run(5.0)
    done: Counter[str] = Counter()
    for name, pause in zip(turns, pauses, strict=True):
        site, peer = sites[name], sites["two" if name == "one" else "one"]
        old, new = (identity.fingerprint for identity in site.identities)
        step = done[name]
        if step == 1:
            site.update_link(replace(site.configs[only_link(site)], locals=(new, old)))
        else:
            order = (old, new) if step == 0 else (new, old)
            peer.update_link(replace(peer.configs[only_link(peer)], remotes=order))
        done[name] += 1
        world.run(world.now + pause)
    world.calm()
    for site, peer in ((smaller, larger), (larger, smaller)):
        new, peers_new = site.identities[1].fingerprint, peer.identities[1].fingerprint
        config = site.configs[only_link(site)]
        site.update_link(replace(config, locals=(new,), remotes=(peers_new,)))
    world.run(world.now + 300.0)
    world.calm()
    if loss == 0.0:
        assert "sessions lost" not in world.counts


def between_the_peers(seed: int, weather: Weather) -> tuple[World, Site, Site]:
    """A link in the midst of a rotation, at which each end has completed an exchange of its own.

    The first site uses the largest of the three identities and is addressed by the smallest, so
    that neither end is the smaller one in what it begins.
    """
    world = World(seed, weather)
    one = Site(world, "one", 1, make_suite=StandInSuite, identities=2)
    two = Site(world, "two", 2, make_suite=StandInSuite)
    old, (used, other) = two.identities[0].fingerprint, (i.fingerprint for i in one.identities)
    if not other < old < used:
        return between_the_peers(seed + 1, weather)
    connect(world, LinkPlan(options=({"locals": (used, other)}, {"remotes": (other, used)})))
    for site in (one, two):
        world.run(world.now + 10.0)
        site.request_all()
    world.run(world.now + 10.0)
    assert world.tunnels[0].is_settled()
    return world, one, two


def both_init_confs_come_late(world: World, one: Site, two: Site) -> None:
    """Each reaches the other end after that has given up and begun anew."""
    begun = world.now

    def meddle(data: bytes, source: Address) -> float | None:
        is_init_conf = wire.parse_untrusted(data).type is MessageType.INIT_CONF
        return 15.3 if is_init_conf and world.now < begun + 16.0 else 0.0

    world.meddle = meddle
    one.request_all()
    two.request_all()


def an_exchange_is_dropped_for_one_without_an_answer(world: World, one: Site, two: Site) -> None:
    """An InitConf is held back, and comes when the peer's next InitHello is lost."""
    begun = world.now

    def meddle(data: bytes, source: Address) -> float | None:
        kind, early = wire.parse_untrusted(data).type, world.now < begun + 17.0
        if source == two.address and kind is MessageType.INIT_CONF and early:
            return 17.0
        if source == two.address and kind is MessageType.RESP_CONF and early:
            return None
        again = source == one.address and world.now > begun + 10.0
        return None if again and kind is MessageType.INIT_HELLO and early else 0.0

    world.meddle = meddle
    two.request_all()
    world.run(begun + 0.5)
    one.request_all()


WAYS = (
    (both_init_confs_come_late, Weather(delay=0.6)),
    (an_exchange_is_dropped_for_one_without_an_answer, Weather()),
)


@pytest.mark.parametrize(("way", "weather"), WAYS)
def test_late_init_confs_in_the_midst_of_a_rotation(
    way: Callable[[World, Site, Site], None], weather: Weather
) -> None:
    world, one, two = between_the_peers(1, weather)
    way(world, one, two)
    world.run(world.now + 25.0)
    assert world.tunnels[0].is_settled()
    assert not any(site.endpoint.link(only_link(site)).in_doubt for site in (one, two))


@pytest.mark.parametrize(("way", "weather"), WAYS)
def test_they_part_the_ends_where_each_exchange_is_judged_by_its_pair(
    way: Callable[[World, Site, Site], None], weather: Weather, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rule in BY_THE_PAIR.items():
        monkeypatch.setattr(order, name, rule)
    world, one, two = between_the_peers(1, weather)
    way(world, one, two)
    with pytest.raises(Broken, match="different PSKs, and nothing in flight or due"):
        world.run(world.now + 25.0)


def test_at_least_one_end_renews_in_the_midst_of_a_rotation() -> None:
    """Judged by the pair of its own exchanges, neither would, until WireGuard's next handshake."""
    world, _, _ = between_the_peers(1, Weather())
    begun = len(world.started)
    world.run(HOUR)
    renewals = world.started[begun:]
    assert renewals
    assert all(start.reason is StartReason.RENEWAL for start in renewals)
    for start in renewals:
        assert start.session_age is not None
        assert start.key_age is not None
        latest = timing.SESSION_RENEWAL_AGE + timing.RENEWAL_JITTER
        fallback = 120 + timing.NO_HANDSHAKE_MARGIN + timing.RENEWAL_JITTER
        assert start.session_age <= latest or start.key_age <= fallback
    assert "sessions lost" not in world.counts


@some(full=100, fast=5)
@given(SEEDS, st.floats(0.0, 400.0), st.integers(0, 1))
def test_a_changed_wireguard_key_reaches_the_peer(seed: int, at: float, changing: int) -> None:
    """Also one that changes while a key is being installed."""
    world, *sites = pair(seed, weather=Weather(loss=0.1, install_seconds=20.0))
    site, peer = sites[changing], sites[1 - changing]
    world.run(1.0 + at)
    fresh = b"f" * 32
    site.update_link(replace(site.configs[only_link(site)], wireguard_key=fresh))
    world.calm()
    announced = peer.endpoint.link(only_link(peer)).peer
    assert announced is not None
    assert announced.wireguard_key == fresh


@some(full=100, fast=5)
@given(SEEDS, st.sampled_from((0.0, 0.3)), st.lists(st.floats(0.0, 900.0), max_size=3))
def test_two_links_between_the_same_gateways(seed: int, loss: float, deaths: list[float]) -> None:
    """Each with an identity of its own at each end: mac1 says which one is meant."""
    world, smaller, larger = pair(
        seed, weather=Weather(loss=loss, repeats=0.1, jitter=0.2), identities=2
    )
    connect(world, LinkPlan(identities=(1, 1)))
    for number, at in enumerate(deaths):
        world.at(at, (smaller, larger)[number % 2].restart)
    world.run(900.0)
    world.calm()
    one, other = world.tunnels
    assert set(one.psks()).isdisjoint(other.psks())
    for site in (smaller, larger):
        assert len(site.installed) == 2


def test_a_parallel_link_needs_identities_of_its_own() -> None:
    world, smaller, _ = pair(1)
    world.run(1.0)
    config = replace(smaller.configs[only_link(smaller)], name="second")
    with pytest.raises(ValueError, match="a parallel link needs an identity of its own"):
        smaller.endpoint.add_link(config, world.now)
