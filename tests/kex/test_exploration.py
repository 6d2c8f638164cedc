"""Every interleaving of two ends: never two different PSKs with nothing in flight or due.

Also in every state reached: a refused datagram changes nothing, no key is handed out that the other
end was not proved to hold, a late answer changes nothing; and from every pair of ends a run
without further faults ends with one PSK at both, a renewal planned and nothing due.

The rules under test are those of kex/order.py. That a walk finds what it is for is shown with
rules that look as good and are not.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Any

import pytest

from kex import initiating, order
from kex.endpoint import Endpoint
from kex.events import FailureCode
from kex.exchange import Exchange, Phase
from kex.external import ExternalMode
from kex.identity import Fingerprint
from kex.link_state import LinkState
from kex.node import Node
from kex.responder import OpenedInitConf
from kex.wire import MessageType
from tests.examples import FAST
from tests.kex.exploration import Budget, Exploration, Report, Violation, is_dead
from tests.kex.one_end import Action, Do
from tests.kex.two_ends import OLD_PSK, Change, Configurations, Lists, TwoEnds

OFF, PREFER, REQUIRE = ExternalMode.OFF, ExternalMode.PREFER, ExternalMode.REQUIRE


@dataclass(frozen=True)
class Variant:
    """Two ends and where they begin. `settled` ends have a key and owe nothing, `completed` ones
    have completed an exchange of their own besides; others have just been started, with the same
    PSK on both interfaces."""

    name: str
    budget: Budget
    settled: bool = False
    completed: bool = False
    ends: Mapping[str, Any] = field(default_factory=dict)

    def exploration(self) -> Exploration:
        graph = TwoEnds(**self.ends)
        root = (
            graph.number(0, graph.fresh(0, psk=OLD_PSK)),
            graph.number(1, graph.fresh(1, psk=OLD_PSK)),
        )
        if self.settled:
            root = Exploration(graph, root, self.budget).settled(root, schedule=0)
        if self.completed:
            root = Exploration(graph, root, self.budget).completed(root)
        return Exploration(graph, root, self.budget)

    def __str__(self) -> str:
        return self.name


NO_RESTART = Budget(restarts=(0, 0))
WITH_FAULT = Budget(restarts=(0, 0), faults=1)
BOTH_REQUIRE = {"modes": (REQUIRE, REQUIRE)}
ROTATING = {"lists": (Lists((0, 3), (2, 1)), Lists((1, 2), (3, 0)))}
"""Each end is the smaller one in the exchanges that it begins."""

QUICK = [
    Variant("two exchanges each", NO_RESTART),
    Variant("two exchanges each, from rest", NO_RESTART, settled=True),
    Variant("two exchanges each, rotating identities", NO_RESTART, ends=ROTATING),
]
BOUNDED = [
    Variant("two exchanges and a restart each", Budget()),
    Variant("two exchanges each and a fault, from rest", WITH_FAULT, settled=True),
    Variant(
        "external keys required, two exchanges against one, and a fault",
        Budget(starts=(2, 1), restarts=(0, 0), faults=1),
        ends=BOTH_REQUIRE,
    ),
    Variant(
        "external keys preferred at one end, off at the other, and a fault",
        Budget(starts=(2, 1), restarts=(0, 0), faults=1),
        ends={"modes": (OFF, PREFER)},
    ),
    Variant(
        "the smaller end knows no address, a restart of it",
        Budget(restarts=(1, 0)),
        ends={"addressed": (False, True)},
    ),
    Variant(
        "the larger end knows no address, a restart of it",
        Budget(restarts=(0, 1)),
        ends={"addressed": (True, False)},
    ),
]
FULL = [
    Variant("two exchanges and a restart each, from rest", Budget(), settled=True),
    Variant("two exchanges, a restart each, a fault", Budget(faults=1)),
    Variant("two exchanges, a restart each, a fault, from rest", Budget(faults=1), settled=True),
    Variant("two exchanges each, two faults", Budget(restarts=(0, 0), faults=2)),
    Variant("three exchanges each", Budget(starts=(3, 3), restarts=(0, 0))),
    Variant("two exchanges and a restart each, rotating identities", Budget(), ends=ROTATING),
    Variant("two exchanges each and a fault, rotating identities", WITH_FAULT, ends=ROTATING),
    Variant("external keys required, a fault", WITH_FAULT, ends=BOTH_REQUIRE),
    Variant("external keys preferred, a fault", WITH_FAULT, ends={"modes": (PREFER, PREFER)}),
    Variant(
        "external keys required and preferred, a fault",
        WITH_FAULT,
        ends={"modes": (REQUIRE, PREFER)},
    ),
    Variant("external keys preferred and off, a fault", WITH_FAULT, ends={"modes": (PREFER, OFF)}),
    Variant(
        "external keys required, a restart each",
        Budget(starts=(2, 1)),
        ends=BOTH_REQUIRE,
    ),
    Variant(
        "the smaller end knows no address, a restart each",
        Budget(),
        ends={"addressed": (False, True)},
    ),
    Variant(
        "the larger end knows no address, a restart each",
        Budget(),
        ends={"addressed": (True, False)},
    ),
]


# ---- lists of identities


def lists_at_one_end() -> Iterator[Configurations]:
    """Two identities at one end, which may be listed in another order than they are used."""
    for ranks in permutations(range(3)):
        *own, peer = ranks
        for listed in permutations(own):
            yield Lists(tuple(own), (peer,)), Lists((peer,), listed)


def mismatched_lists() -> Iterator[Configurations]:
    """The second identity is known to one end alone."""
    for used, other, peer in permutations(range(3)):
        yield Lists((used, other), (peer,)), Lists((peer,), (used,))
        yield Lists((used,), (peer,)), Lists((peer,), (used, other))


def lists_at_both_ends() -> Iterator[Configurations]:
    """Of the ends, which the walk treats alike, the one with the smallest identity is end 0."""
    for first in ((0, other) for other in range(1, 4)):
        second = tuple(rank for rank in range(4) if rank not in first)
        for own, other in product(permutations(first), permutations(second)):
            for listed, listed_there in product(permutations(second), permutations(first)):
                yield Lists(own, listed), Lists(other, listed_there)


@dataclass(frozen=True)
class Plan:
    """Lists, and what becomes of them while exchanges run."""

    lists: Configurations
    changes: tuple[Change, ...]


def rotation(old: int, new: int, peer: int) -> Plan:
    """The steps of docs/operations.md, "Changing this node's identity", at end 0."""
    one = (peer,)
    return Plan(
        (Lists((old,), one), Lists(one, (old,))),
        (
            Change(0, Lists((old, new), one)),
            Change(1, Lists(one, (old, new))),
            Change(0, Lists((new, old), one)),
            Change(1, Lists(one, (new, old))),
            Change(1, Lists(one, (new,))),
            Change(0, Lists((new,), one)),
        ),
    )


def rotation_in_the_wrong_order(old: int, new: int, peer: int) -> Plan:
    """The new identity is used before the peer lists it, and the old one is listed once more."""
    one = (peer,)
    return Plan(
        (Lists((old,), one), Lists(one, (old,))),
        (
            Change(0, Lists((new, old), one)),
            Change(1, Lists(one, (new,))),
            Change(1, Lists(one, (new, old))),
        ),
    )


def changes_of_any_kind(seed: int, *, changes: int) -> Plan:
    """Of two identities at each end one or both, in any order, and so from change to change."""
    chance = random.Random(seed)
    ranks = chance.sample(range(4), 4)
    held = (ranks[:2], ranks[2:])

    def some_of(identities: list[int]) -> tuple[int, ...]:
        return tuple(chance.sample(identities, chance.randint(1, 2)))

    def some(end: int) -> Lists:
        return Lists(some_of(held[end]), some_of(held[1 - end]))

    while True:
        first = (some(0), some(1))
        plan = [Change(end, some(end)) for end in chance.choices((0, 1), k=changes)]
        last = dict(enumerate(first)) | dict(plan)
        if all(TwoEnds(lists=lists).can_agree((0, 0)) for lists in (first, (last[0], last[1]))):
            return Plan(first, tuple(plan))


def walk_all(
    variants: list[Variant], capsys: pytest.CaptureFixture[str], what: str
) -> list[Report]:
    """Walk through each. Raises Violation, which tells the variant."""
    reports = []
    for variant in variants:
        try:
            reports.append(variant.exploration().run())
        except Violation as violation:
            raise Violation(f"{variant}: {violation}") from None
    states, seconds = sum(r.states for r in reports), sum(r.seconds for r in reports)
    with capsys.disabled():
        print(f"\n{len(variants)} {what}: {states:,} states in all, {seconds:.1f} s")
    assert all(report.complete for report in reports)
    return reports


ONCE = Budget(starts=(1, 1), restarts=(0, 0))
"""Between two ends that have completed exchanges: enough for most faults of an order rule."""
FAMILIES = {
    "lists of two at one end": lists_at_one_end,
    "lists of which the ends do not know the same": mismatched_lists,
    "lists of two at both ends": lists_at_both_ends,
}


def of_lists(family: str, budget: Budget, **begins: bool) -> list[Variant]:
    return [
        Variant(" and ".join(map(str, lists)), budget, ends={"lists": lists}, **begins)
        for lists in FAMILIES[family]()
    ]


def of_plan(plan: Plan, budget: Budget, **begins: bool) -> Variant:
    ends = {"lists": plan.lists, "changes": plan.changes}
    return Variant(str(plan), budget, ends=ends, **begins)


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    """A walk makes no cycles, and looking for them among millions of objects takes its time."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def walk(variant: Variant, capsys: pytest.CaptureFixture[str]) -> Report:
    report = variant.exploration().run()
    with capsys.disabled():
        print(f"\n{variant}: {report}")
    return report


@pytest.mark.parametrize("variant", QUICK, ids=str)
def test_all_interleavings(variant: Variant, capsys: pytest.CaptureFixture[str]) -> None:
    report = walk(variant, capsys)
    assert report.complete
    assert report.states > 5_000


@pytest.mark.skipif(FAST, reason="takes half a minute")
@pytest.mark.parametrize("variant", BOUNDED, ids=str)
def test_all_interleavings_with_restarts_and_faults(
    variant: Variant, capsys: pytest.CaptureFixture[str]
) -> None:
    assert walk(variant, capsys).complete


@pytest.mark.long
@pytest.mark.parametrize("variant", FULL, ids=str)
def test_all_interleavings_in_full(variant: Variant, capsys: pytest.CaptureFixture[str]) -> None:
    assert walk(variant, capsys).complete


@pytest.mark.parametrize("family", FAMILIES)
def test_lists_of_identities(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In both orders at each end: also where each uses another pair than the other does."""
    variants = of_lists(family, ONCE, completed=True)
    assert len({variant.name for variant in variants}) == len(variants) >= 12
    walk_all(variants, capsys, family)


@pytest.mark.parametrize("plan", [rotation, rotation_in_the_wrong_order])
def test_identities_change_while_exchanges_run(
    plan: Callable[[int, int, int], Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    plans = [plan(*ranks) for ranks in permutations(range(3))]
    variants = [of_plan(plan, ONCE, completed=True) for plan in plans]
    assert min(report.states for report in walk_all(variants, capsys, plan.__name__)) > 500


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_lists_of_identities_in_full(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    for budget in (NO_RESTART, Budget(starts=(1, 1)), Budget((1, 1), (0, 0), faults=1)):
        walk_all(of_lists(family, budget, completed=True), capsys, f"{family}, {budget}")
    walk_all(of_lists(family, NO_RESTART), capsys, f"{family}, from the start")


@pytest.mark.long
@pytest.mark.parametrize("budget", [Budget((2, 1), (0, 0)), Budget((1, 1), (1, 0))], ids=str)
def test_identities_change_in_full(budget: Budget, capsys: pytest.CaptureFixture[str]) -> None:
    plans = [
        plan(*ranks)
        for plan in (rotation, rotation_in_the_wrong_order)
        for ranks in permutations(range(3))
    ]
    plans += [changes_of_any_kind(seed, changes=3) for seed in range(20)]
    variants = [of_plan(plan, budget, completed=True) for plan in plans]
    walk_all(variants, capsys, f"changes of identities, {budget}")


# ---- rules that look as good


def never_ignores(link: LinkState, opened: OpenedInitConf) -> bool:
    return False


def both_ignore(link: LinkState, opened: OpenedInitConf) -> bool:
    return link.awaits_resp_conf


def larger_ignores_its_own_pair(link: LinkState, opened: OpenedInitConf) -> bool:
    return link.awaits_resp_conf and opened.biscuit.initiator < opened.local


def co1_kills_nothing(link: LinkState) -> None:
    link.in_doubt, link.has_completed = False, True


def always_settled(link: LinkState) -> bool:
    return True


def nothing_assumed_after_a_start(link: LinkState) -> bool:
    return not link.in_doubt


def answered(link: LinkState) -> OpenedInitConf:
    """The peer's exchange that is being answered."""
    assert link.responding is not None
    return link.responding.opened


def larger_end_is_settled(link: LinkState) -> bool:
    """As it stood before lists of identities were thought of."""
    opened = answered(link)
    return not link.in_doubt or opened.biscuit.initiator < opened.local


def settled_by_the_pair_answered(link: LinkState) -> bool:
    """As it stood before it was judged once for the link (docs/decisions/0003)."""
    opened = answered(link)
    first = opened.biscuit.initiator < opened.local
    return not link.in_doubt and (link.has_completed or first)


def doubt_by_the_pair_begun(link: LinkState, ended: Exchange, code: FailureCode) -> None:
    """The other half of it."""
    in_doubt = ended.phase in (Phase.CONF, Phase.INSTALLING) and code is not FailureCode.REFUSED
    if in_doubt and ended.local < ended.remote:
        link.in_doubt = True


BY_THE_PAIR = {
    "is_settled_by_answering": settled_by_the_pair_answered,
    "after_failure": doubt_by_the_pair_begun,
}


def change_means_nothing(link: LinkState, highest_issued: int) -> None:
    pass


def no_doubt_after(*codes: FailureCode) -> Callable[[LinkState, Exchange, FailureCode], None]:
    rule = order.after_failure

    def after_failure(link: LinkState, ended: Exchange, code: FailureCode) -> None:
        if code not in codes:
            rule(link, ended, code)

    return after_failure


def biscuits_outlive_their_pair(
    endpoint: Endpoint, pairs: dict[tuple[Fingerprint, Fingerprint], str]
) -> None:
    endpoint._pairs = pairs
    endpoint._dead = dict.fromkeys(pairs, 0)


NO_DOUBT_AFTER_SILENCE = {"after_failure": no_doubt_after(FailureCode.INIT_CONF_UNANSWERED)}
NO_DOUBT_AFTER_CROSSING = {"after_failure": no_doubt_after(FailureCode.CROSSED)}
MISTAKES = [
    (
        "the smaller end never ignores, and forgets what it drops",
        {"ignores": never_ignores, **NO_DOUBT_AFTER_CROSSING},
        Variant("", NO_RESTART),
    ),
    (
        "nobody ignores: with rotating identities both drop theirs for ever",
        {"ignores": never_ignores},
        Variant("", NO_RESTART, ends=ROTATING),
    ),
    (
        "both ends ignore: nobody gives way",
        {"ignores": both_ignore},
        Variant("", NO_RESTART),
    ),
    (
        "each end looks at the pair of one exchange only",
        {"ignores": larger_ignores_its_own_pair},
        Variant("", NO_RESTART, ends=ROTATING),
    ),
    (
        "CO1 does not raise the last accepted number",
        {"after_co1": co1_kills_nothing},
        Variant("", NO_RESTART),
    ),
    (
        "the smaller end drops its own although one was left unanswered",
        {"is_settled_by_answering": always_settled},
        Variant("", NO_RESTART),
    ),
    (
        "an InitConf without an answer is forgotten",
        NO_DOUBT_AFTER_SILENCE,
        Variant("", NO_RESTART),
    ),
    (
        "a start is taken for a clean one",
        {"is_settled_by_answering": nothing_assumed_after_a_start},
        Variant("", Budget()),
    ),
    (
        "the end that is larger in what it answered is settled whatever it left open",
        {"is_settled_by_answering": larger_end_is_settled, "yields": lambda link: False},
        Variant("", NO_RESTART, ends=ROTATING),
    ),
    (
        "both ends may yield",
        {"yields": lambda link: True},
        Variant("", ONCE, completed=True),
    ),
    (
        # Each of the two is enough: docs/decisions/0020
        "a change of identities leaves no doubt and kills no biscuit",
        {"after_change": change_means_nothing, "_give_pairs": biscuits_outlive_their_pair},
        of_plan(rotation_in_the_wrong_order(2, 0, 1), ONCE, completed=True),
    ),
]


@pytest.mark.parametrize(
    ("rules", "variant"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_wrong_rules_are_found(
    rules: Mapping[str, Callable[..., Any]],
    variant: Variant,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, rule in rules.items():
        monkeypatch.setattr(Endpoint if name == "_give_pairs" else order, name, rule)
    exploration = variant.exploration()
    with pytest.raises(Violation) as caught:
        exploration.run()
    print(caught.value)


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("lists of two at one end", 1),
        pytest.param("lists of two at both ends", 7, marks=pytest.mark.long),
    ],
)
def test_judging_by_the_pair_of_each_exchange_is_found(
    family: str, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ends that begin under different pairs, so that neither goes first in what it begins,
    and neither is in doubt of it."""
    for name, rule in BY_THE_PAIR.items():
        monkeypatch.setattr(order, name, rule)
    violated = []
    for variant in of_lists(family, ONCE, completed=True):
        try:
            variant.exploration().run()
        except Violation as violation:
            violated.append(str(violation))
    assert len(violated) == found
    assert all("different PSKs" in told for told in violated)


def test_a_debt_forgotten_by_an_installation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of identities that comes between CO1 and the installation is made good for."""
    installed = initiating.installed

    def forgets(link: LinkState, node: Node, now: float) -> None:
        in_doubt, link.in_doubt = link.in_doubt, False
        installed(link, node, now)
        link.in_doubt = in_doubt

    monkeypatch.setattr(initiating, "installed", forgets)
    with pytest.raises(Violation, match="is in doubt, and nothing is in flight or due"):
        of_plan(rotation(0, 1, 2), ONCE, completed=True).exploration().run()


def test_an_unchecked_confirmation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kex.responder.hmac", _AllEqual)
    variant = Variant("", Budget(starts=(1, 0), restarts=(0, 0), faults=1), ends=BOTH_REQUIRE)
    with pytest.raises(AssertionError, match="although the external keys differ"):
        variant.exploration().run()


class _AllEqual:
    @staticmethod
    def compare_digest(one: bytes, other: bytes) -> bool:
        return len(one) == len(other)


def test_larger_end_that_answered_costs_one_exchange() -> None:
    """Both begin at once: one exchange is enough (docs/decisions/0003)."""
    exploration = Variant("", NO_RESTART).exploration()
    smaller, larger = exploration.settled(exploration.root, schedule=2)
    facts = exploration.graph.facts
    assert facts[smaller].psk == facts[larger].psk != OLD_PSK
    assert (facts[smaller].started, facts[larger].started) == (1, 1)


def test_larger_end_that_goes_on_costs_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule that 0003 replaced is right as well, and dearer."""
    monkeypatch.setattr(
        order,
        "is_settled_by_answering",
        lambda link: link.has_completed and not link.in_doubt,
    )
    exploration = Variant("", NO_RESTART).exploration()
    exploration.run()
    smaller, larger = exploration.settled(exploration.root, schedule=2)
    facts = exploration.graph.facts
    assert facts[smaller].started + facts[larger].started > 2


# ---- the walk itself


def test_leaving_dead_messages_out_loses_no_pair_of_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every message kept for ever, the same ends are reached, but for numbers of biscuits
    that nobody waits for."""
    budget = Budget(starts=(1, 1), restarts=(1, 0), faults=0)

    def outcomes() -> set[tuple[Any, ...]]:
        exploration = Variant("", budget).exploration()
        exploration.run()
        facts = exploration.graph.facts
        return {
            tuple((f.psk, f.quiet, f.answering, f.exchange_id, f.phase, f.epoch) for f in ends)
            for ends in ((facts[a], facts[b]) for a, b, _, _ in exploration.states())
        }

    pruned = outcomes()
    monkeypatch.setattr("tests.kex.exploration.is_dead", lambda message, ends: False)
    assert outcomes() == pruned


def test_dead_messages_change_nothing() -> None:
    """But for the InitHello of an exchange that is over: that uses up a number, see above."""
    exploration = Variant("", Budget(starts=(1, 1), restarts=(1, 0))).exploration()
    exploration.run()
    graph = exploration.graph
    pairs = {(smaller, larger) for smaller, larger, _, _ in exploration.states()}
    messages = [m for m in enumerate(graph.messages) if m[1].type is not MessageType.INIT_HELLO]
    dead = [
        (message.to, pair[message.to], number)
        for pair in pairs
        for number, message in messages
        if is_dead(message, (graph.facts[pair[0]], graph.facts[pair[1]]))
    ]
    assert len(dead) > 1_000
    for end, core, number in dead:
        assert graph.step(end, core, Action(Do.DELIVER, number)).core == core
