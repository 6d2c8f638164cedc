"""Every interleaving of two ends: never two different PSKs with nothing in flight or due.

Also in every state reached: a refused datagram changes nothing, no key is handed out that the other
end was not proved to hold, a late answer changes nothing; and from every pair of ends a run
without further faults ends with one PSK at both, a renewal planned and nothing due.

The rules under test are those of kex/order.py. That a walk finds what it is for is shown with
rules that look as good and are not.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from kex import order
from kex.events import FailureCode
from kex.exchange import Exchange
from kex.external import ExternalMode
from kex.link_state import LinkState
from kex.responder import OpenedInitConf
from kex.wire import MessageType
from tests.examples import FAST
from tests.kex.exploration import Budget, Exploration, Report, Violation, is_dead
from tests.kex.one_end import Action, Do
from tests.kex.two_ends import OLD_PSK, TwoEnds

OFF, PREFER, REQUIRE = ExternalMode.OFF, ExternalMode.PREFER, ExternalMode.REQUIRE


@dataclass(frozen=True)
class Variant:
    """Two ends and where they begin. `settled` ends have a key and owe nothing; others have just
    been started, with the same PSK on both interfaces."""

    name: str
    budget: Budget
    settled: bool = False
    ends: Mapping[str, Any] = field(default_factory=dict)

    def exploration(self) -> Exploration:
        graph = TwoEnds(**self.ends)
        root = (
            graph.number(0, graph.fresh(0, psk=OLD_PSK)),
            graph.number(1, graph.fresh(1, psk=OLD_PSK)),
        )
        if self.settled:
            root = Exploration(graph, root, self.budget).settled(root, schedule=0)
        return Exploration(graph, root, self.budget)

    def __str__(self) -> str:
        return self.name


NO_RESTART = Budget(restarts=(0, 0))
WITH_FAULT = Budget(restarts=(0, 0), faults=1)
BOTH_REQUIRE = {"modes": (REQUIRE, REQUIRE)}
ROTATING = {"rotating": True}

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


# ---- rules that look as good


def never_ignores(link: LinkState, opened: OpenedInitConf) -> bool:
    return False


def both_ignore(link: LinkState, opened: OpenedInitConf) -> bool:
    return link.awaits_resp_conf


def larger_ignores_its_own_pair(link: LinkState, opened: OpenedInitConf) -> bool:
    return link.awaits_resp_conf and opened.biscuit.initiator < opened.local


def co1_kills_nothing(link: LinkState) -> None:
    link.in_doubt, link.has_completed = False, True


def always_settled(link: LinkState, opened: OpenedInitConf) -> bool:
    return True


def never_settled(link: LinkState, opened: OpenedInitConf) -> bool:
    return False


def nothing_assumed_after_a_start(link: LinkState, opened: OpenedInitConf) -> bool:
    return not link.in_doubt


def larger_end_is_settled(link: LinkState, opened: OpenedInitConf) -> bool:
    """As it stood before lists of identities were thought of."""
    return not link.in_doubt or opened.biscuit.initiator < opened.local


def no_doubt_after(*codes: FailureCode) -> Callable[[LinkState, Exchange, FailureCode], None]:
    rule = order.after_failure

    def after_failure(link: LinkState, ended: Exchange, code: FailureCode) -> None:
        if code not in codes:
            rule(link, ended, code)

    return after_failure


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
        "an exchange dropped for the peer's is forgotten, with rotating identities",
        NO_DOUBT_AFTER_CROSSING,
        Variant("", Budget(), ends=ROTATING),
    ),
    (
        "a start is taken for a clean one",
        {"is_settled_by_answering": nothing_assumed_after_a_start},
        Variant("", Budget()),
    ),
    (
        "the end that is larger in what it answered is settled whatever it left open",
        {"is_settled_by_answering": larger_end_is_settled, "is_first": lambda *_: True},
        Variant("", NO_RESTART, ends=ROTATING),
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
        monkeypatch.setattr(order, name, rule)
    exploration = variant.exploration()
    with pytest.raises(Violation) as caught:
        exploration.run()
    print(caught.value)


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
        lambda link, opened: link.has_completed and not link.in_doubt,
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
