"""A walk through all states of two ends and a network, breadth first.

The network is the set of all datagrams ever sent. Each may arrive at any time, any number of
times, or never: that is loss, delay, repetition and reordering in one. A state is the two ends,
that set, and how many faults may still happen.

Two things keep the number of states down, and take nothing away:

- A datagram that can never again change its receiver is left out of the set (`is_dead`).
- An end in the same state does the same (tests/kex/two_ends.py), so the real code runs once for
  each state of an end and each input, not once for each state of the whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kex.exchange import Phase
from kex.wire import MessageType
from tests.kex.one_end import FAULTS, NAMES, RESTARTS, Action, Do, Facts, exchange_name
from tests.kex.two_ends import Message, Step, TwoEnds

_START = Action(Do.START)
State = tuple[int, int, tuple[int, ...], int]
"""The smaller end, the larger end, live messages, faults left: numbers all."""


class Violation(AssertionError):
    """A state that must not be; the text tells the shortest way there."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may happen in one run; for both ends the same where it is one number."""

    starts: tuple[int, int] = (2, 2)
    restarts: tuple[int, int] = (1, 1)
    faults: int = 0
    """Failed installations, missing or different external keys, lost caches, ended lifetimes."""
    states: int | None = None
    """Stop after so many."""


@dataclass(slots=True)
class Report:
    """What a walk has seen."""

    states: int = 0
    transitions: int = 0
    ends: int = 0
    """States of single ends."""
    steps: int = 0
    """Runs of the real code."""
    settled: int = 0
    """Pairs of ends from which a fair run was made."""
    depth: int = 0
    seconds: float = 0.0
    complete: bool = True

    def __str__(self) -> str:
        bounded = "" if self.complete else ", stopped at its bound"
        return (
            f"{self.states:,} states, {self.transitions:,} transitions, depth {self.depth}, "
            f"{self.ends:,} states of single ends, {self.steps:,} steps of the real code, "
            f"{self.settled:,} fair runs, {self.seconds:.1f} s{bounded}"
        )


class Exploration:
    """All that can be reached from a pair of ends."""

    def __init__(self, graph: TwoEnds, root: tuple[int, int], budget: Budget) -> None:
        self.graph = graph
        self.root = root
        self.budget = budget
        self.report = Report()
        self._parents: dict[State, State | None] = {}
        self._alive: dict[tuple[int, int, tuple[int, ...]], tuple[int, ...]] = {}
        self._fair: dict[tuple[int, int, int], bool] = {}
        self._moves: dict[tuple[int, int], tuple[tuple[int, Step], ...]] = {}
        self._pairs: set[tuple[int, int]] = set()
        facts = self.graph.facts
        self._base = [(facts[core].epoch, facts[core].started) for core in self.root]

    def run(self) -> Report:
        """Walk, check every state. Raises Violation with the shortest trace."""
        begun = time.process_time()
        report, parents = self.report, self._parents
        start: State = (*self.root, (), self.budget.faults)
        parents[start] = None
        frontier = [start]
        bound = self.budget.states
        while frontier and report.complete:
            following: list[State] = []
            for state in frontier:
                self._check(state)
                if bound is not None and len(parents) >= bound:
                    report.complete = False
                    break
                for after in self._successors(state):
                    report.transitions += 1
                    if after not in parents:
                        parents[after] = state
                        following.append(after)
            frontier = following
            report.depth += 1
        report.states = len(parents)
        report.ends = len(self.graph.cores)
        report.steps = self.graph.steps_run
        report.settled = len(self._pairs)
        report.seconds = time.process_time() - begun
        return report

    def states(self) -> Iterable[State]:
        """All states that were reached, in the order of their distance."""
        return self._parents

    # ---- what can happen next

    def _successors(self, state: State) -> list[State]:
        smaller, larger, messages, faults = state
        graph = self.graph
        found = []
        for number in messages:
            end = graph.messages[number].to
            core = larger if end else smaller
            step = graph.step(end, core, Action(Do.DELIVER, number))
            if step.core != core:
                found.append(self._after(state, end, step, 0))
            elif faults and graph.messages[number].type is MessageType.INIT_HELLO:
                late = graph.step(end, core, Action(Do.DELIVER_LATE, number))
                if late.core != core:
                    found.append(self._after(state, end, late, 1))
        for end, core in ((0, smaller), (1, larger)):
            for cost, step in self._own_moves(end, core):
                if cost <= faults:
                    found.append(self._after(state, end, step, cost))
        changing = self._next_change((smaller, larger))
        if changing is not None:
            core = larger if changing else smaller
            step = graph.step(changing, core, Action(Do.CHANGE))
            found.append(self._after(state, changing, step, 0))
        return found

    def _next_change(self, ends: Sequence[int]) -> int | None:
        """The end whose configuration may change now, if any."""
        return self.graph.next_change(sum(self.graph.facts[core].changed for core in ends))

    def _own_moves(self, end: int, core: int) -> tuple[tuple[int, Step], ...]:
        """What an end can do by itself: the cost in faults, and what comes of it."""
        known = self._moves.get((end, core))
        if known is None:
            known = self._moves[end, core] = tuple(
                (int(action.do in FAULTS), self.graph.step(end, core, action))
                for action in self.graph.facts[core].actions
                if self._is_affordable(end, core, action)
            )
        return known

    def _is_affordable(self, end: int, core: int, action: Action) -> bool:
        facts = self.graph.facts[core]
        epoch, started = self._base[end]
        if action.do is Do.CHANGE:
            return False  # depends on both ends, see _successors
        if action.do in RESTARTS:
            return facts.epoch - epoch < self.budget.restarts[end]
        if action.do is Do.START:
            return facts.started - started < self.budget.starts[end]
        return action.do not in FAULTS or self.budget.faults > 0

    def _after(self, state: State, end: int, step: Step, cost: int) -> State:
        smaller, larger, messages, faults = state
        if end:
            larger = step.core
        else:
            smaller = step.core
        if step.sent:
            messages = tuple(sorted({*messages, *step.sent}))
        return (smaller, larger, self._live(smaller, larger, messages), faults - cost)

    def _live(self, smaller: int, larger: int, messages: tuple[int, ...]) -> tuple[int, ...]:
        key = (smaller, larger, messages)
        known = self._alive.get(key)
        if known is None:
            ends = (self.graph.facts[smaller], self.graph.facts[larger])
            known = self._alive[key] = tuple(
                number for number in messages if not is_dead(self.graph.messages[number], ends)
            )
        return known

    # ---- what must hold

    def _check(self, state: State) -> None:
        pair = state[:2]
        if pair in self._pairs:
            return
        self._pairs.add(pair)
        ends = (self.graph.facts[pair[0]], self.graph.facts[pair[1]])
        if ends[0].psk != ends[1].psk and all(end.quiet for end in ends):
            raise Violation(
                "the PSKs differ and nothing is in flight or due:\n" + self.trace(state)
            )
        for end, name in zip(ends, NAMES, strict=True):
            if end.in_doubt and end.quiet and not end.answering:
                told = f"the {name} is in doubt, and nothing is in flight or due"
                raise Violation(f"{told}:\n" + self.trace(state))
        for schedule in (0, 1, 2):
            problem = self._run_fairly(list(pair), schedule, self._fair)
            if problem:
                raise Violation(f"{problem}, in a fair run after:\n" + self.trace(state))

    def settled(self, pair: tuple[int, int], *, schedule: int) -> tuple[int, int]:
        """The two ends after a run without further faults from here."""
        ends = list(pair)
        problem = self._run_fairly(ends, schedule, known={})
        if problem:
            raise Violation(problem)
        return ends[0], ends[1]

    def completed(self, pair: tuple[int, int]) -> tuple[int, int]:
        """The two ends once each has completed an exchange of its own."""
        for end in (0, 1):
            ends = list(self.settled(pair, schedule=0))
            ends[end] = self.graph.step(end, ends[end], _START).core
            pair = (ends[0], ends[1])
        return self.settled(pair, schedule=0)

    def _run_fairly(
        self, ends: list[int], schedule: int, known: dict[tuple[int, int, int], bool]
    ) -> str:
        """Let it run until nothing is due; gives what is wrong then, empty if nothing is.

        `known` are pairs and schedules that ended well: there is nothing new behind them.
        """
        seen = []
        queue: list[int] = []
        repeated: set[tuple[int, int]] = set()
        by_patience = list(self._order(schedule))
        for _ in range(1000):
            if not queue and not repeated:
                key = (ends[0], ends[1], schedule)
                if key in known:
                    break
                seen.append(key)
            action = self._fair_action(ends, queue, repeated, by_patience, schedule)
            if action is None:
                facts = [self.graph.facts[core] for core in ends]
                if facts[0].psk != facts[1].psk or facts[0].psk is None:
                    return "different PSKs"
                if not all(end.renews for end in facts):
                    return "no renewal is planned"
                break
            end, what = action
            step = self.graph.step(end, ends[end], what)
            if step.core != ends[end]:
                repeated.clear()
            ends[end] = step.core
            queue += [number for number in step.sent if number not in queue]
        else:
            return "no end after 1,000 steps"
        known.update(dict.fromkeys(seen, True))
        return ""

    def _fair_action(
        self,
        ends: list[int],
        queue: list[int],
        repeated: set[tuple[int, int]],
        by_patience: list[int],
        schedule: int,
    ) -> tuple[int, Action] | None:
        """The next thing in a run in which everything arrives, in order.

        Schedule 0 lets the smaller end begin, 1 the larger one, 2 both before anything arrives.
        While an end refuses what the other begins, the configurations change as planned. The end
        that gave up last is the last to do so again: `by_patience`, the least patient end first.
        """
        both = self._order(schedule)
        facts = (self.graph.facts[ends[0]], self.graph.facts[ends[1]])
        if not self.graph.can_agree((facts[0].changed, facts[1].changed)):
            changing = self._next_change(ends)
            if changing is None:
                raise ValueError("the last configurations do not fit each other")
            return changing, Action(Do.CHANGE)
        for end in both:
            answer = facts[end].good_answer
            if answer is not None:
                return end, answer
        if queue and schedule != 2:
            return self._delivery(queue)
        startable = [end for end in both if facts[end].can_start and not facts[end].quiet]
        if schedule == 2 and startable:
            return startable[0], _START
        if queue:
            return self._delivery(queue)
        for end in both:
            if facts[end].phase is not None and (end, ends[end]) not in repeated:
                repeated.add((end, ends[end]))
                return end, Action(Do.REPEAT)
        for end in by_patience:
            time_out = facts[end].time_out
            if time_out is not None:
                by_patience.remove(end)
                by_patience.append(end)
                return end, time_out
        if not startable and not (facts[0].quiet and facts[1].quiet):
            # Due at an end that knows no address: it waits for the other's renewal
            startable = [end for end in both if facts[end].can_start and facts[end].renews]
        return (startable[0], _START) if startable else None

    @staticmethod
    def _order(schedule: int) -> tuple[int, int]:
        return (1, 0) if schedule == 1 else (0, 1)

    def _delivery(self, queue: list[int]) -> tuple[int, Action]:
        number = queue.pop(0)
        return self.graph.messages[number].to, Action(Do.DELIVER, number)

    # ---- telling

    def trace(self, state: State) -> str:
        """The shortest way to a state, in plain words."""
        path = [state]
        while (parent := self._parents[path[-1]]) is not None:
            path.append(parent)
        path.reverse()
        lines = [self._told(before, after) for before, after in pairwise(path)]
        ends = [self.graph.facts[core] for core in state[:2]]
        lines += [f"=> {_end_told(name, end)}" for name, end in zip(NAMES, ends, strict=True)]
        return "\n".join(f"  {line}" for line in lines)

    def _told(self, before: State, after: State) -> str:
        ends = before[:2]
        for number in before[2]:
            message = self.graph.messages[number]
            to = message.to
            for do, when in ((Do.DELIVER, ""), (Do.DELIVER_LATE, ", after 10 s")):
                step = self.graph.step(to, ends[to], Action(do, number))
                if step.core != ends[to] and after == self._after(before, to, step, do in FAULTS):
                    return f"{message} reaches the {NAMES[to]}{when}"
        changing = self._next_change(ends)
        for end in (0, 1):
            for action in self.graph.facts[ends[end]].actions:
                if action.do is Do.CHANGE and end != changing:
                    continue
                step = self.graph.step(end, ends[end], action)
                if after == self._after(before, end, step, action.do in FAULTS):
                    about = f" ({exchange_name(action.token)})" if action.token else ""
                    return f"the {NAMES[end]}: {action.do.name.lower().replace('_', ' ')}{about}"
        raise KeyError("no such transition")


def is_dead(message: Message, ends: tuple[Facts, Facts]) -> bool:
    """Whether a message can never again change its receiver, or only in ways without effect.

    Exchange ids are used once, and the phases of an exchange have one direction. A late InitHello
    makes a biscuit that its initiator does not wait for any more: the order of the numbers of
    all other biscuits stays the same. An InitConf that was accepted is answered with a RespConf
    that is on the network already.
    """
    receiver, sender = ends[message.to], ends[1 - message.to]
    identifier = message.exchange_id
    if message.type is MessageType.INIT_HELLO:
        return sender.exchange_id != identifier or sender.phase is not Phase.HELLO
    if message.type is MessageType.INIT_CONF:
        key_id, number = message.biscuit
        return key_id != receiver.biscuit_key or number <= receiver.last_accepted
    if receiver.exchange_id != identifier:
        return True
    if message.type is MessageType.RESP_HELLO:
        return receiver.phase is not Phase.HELLO
    return receiver.phase is not Phase.CONF


def _end_told(name: str, end: Facts) -> str:
    own = "none" if end.phase is None else f"{end.phase.name} of {exchange_name(end.exchange_id)}"
    psk = "none" if end.psk is None else end.psk[:4].hex()
    due = "nothing due" if end.quiet else "in flight or due"
    return f"{name}: PSK {psk}, own exchange {own}, {due}"
