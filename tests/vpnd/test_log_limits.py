"""What happens again and again: the log stays short, tells changes, and owns up to the rest."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from vpnd.event_feed import EventFeed
from vpnd.journal import Journal
from vpnd.log_limits import FIRST, OF_ONE_KIND, WORDINGS

HOUR, DAY = 3600.0, 86_400.0


class Log:
    """A journal with a clock in the test's hands, and the lines that it wrote."""

    def __init__(self, out: io.StringIO) -> None:
        self.now = 1000.0
        self.feed = EventFeed(queue_length=100_000)
        self.journal = Journal(self.feed, now=lambda: self.now)
        self._out = out

    def lines(self, event: str = "", **about: Any) -> list[dict[str, Any]]:
        """What was written so far."""
        every: list[dict[str, Any]] = [
            json.loads(line) for line in self._out.getvalue().split("\n") if line
        ]
        return [
            line for line in every if event in ("", line["event"]) and about.items() <= line.items()
        ]

    def away(self, seconds: float, peer: str = "ams") -> int:
        """A peer that does not answer; how many records that made."""
        until, count = self.now + seconds, 0
        while self.now < until:
            count += 1
            self.journal.record(
                "exchange_started", peer=peer, reason="again", exchange=f"{count:x}", attempt=count
            )
            self.now += 15
            self.journal.record(
                "exchange_failed",
                peer=peer,
                level="warning",
                reason="no answer",
                code="no_answer",
                exchange=f"{count:x}",
            )
        return 2 * count


@pytest.fixture
def log() -> Iterator[Log]:
    out = io.StringIO()
    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    try:
        yield Log(out)
    finally:
        structlog.configure(**before)


def told_and_left_out(lines: list[dict[str, Any]]) -> int:
    return len(lines) + sum(int(line.get("left_out", 0)) for line in lines)


def test_a_peer_that_is_away_for_a_day(log: Log) -> None:
    with log.feed.subscribe():
        made = log.away(DAY)
        assert log.feed.statistics().published == made
        assert log.feed.statistics().dropped == 0
    assert log.journal.link_counters["ams"].total() == made
    failed = log.lines("exchange_failed")
    assert [line.get("left_out", 0) for line in failed[:FIRST]] == [0] * FIRST
    assert len(failed) < 40
    # and it is seen to go on: at least once in an hour or so
    assert told_and_left_out(failed) > made / 2 - 1.2 * HOUR / 15
    assert len(log.lines("exchange_started")) < 40


def test_what_changes_is_told_at_once(log: Log) -> None:
    log.away(HOUR)
    before = len(log.lines())
    record = log.journal.record
    record("exchange_failed", peer="ams", level="warning", reason="refused", code="refused")
    (line,) = log.lines()[before:]
    assert line["reason"] == "refused"
    assert line["left_out"] > 100
    record("state_changed", peer="ams", state="closed")
    record("exchange_failed", peer="fra", level="warning", reason="no answer", code="no_answer")
    assert [line["event"] for line in log.lines()[-2:]] == ["state_changed", "exchange_failed"]


def test_when_it_works_again_the_next_time_is_new(log: Log) -> None:
    log.away(HOUR)
    before = len(log.lines())
    log.journal.record("key_installed", peer="ams", key_id="00000001")
    told, installed = log.lines()[before:]
    assert (told["event"], installed["event"]) == ("records_left_out", "key_installed")
    assert "exchange_failed " in told["reason"]
    assert "exchange_started " in told["reason"]
    assert told["peer"] == "ams"
    everything = log.lines("exchange_failed") + log.lines("exchange_started")
    assert told_and_left_out(everything) + told["left_out"] == 2 * HOUR / 15
    log.away(45)
    assert len(log.lines()[before + 2 :]) == 2 * FIRST


def test_after_a_while_of_quiet_it_is_new(log: Log) -> None:
    log.away(HOUR)
    before = len(log.lines("exchange_failed"))
    log.now += HOUR
    log.away(30)
    assert len(log.lines("exchange_failed")[before:]) == 2


def test_regular_renewals_are_all_told(log: Log) -> None:
    rounds = 720
    for n in range(rounds):
        log.journal.record("exchange_started", peer="ams", reason="renewal", exchange=f"{n:x}")
        log.journal.record("key_installed", peer="ams", key_id=f"{n:08x}")
        log.now += 120
    assert len(log.lines()) == 2 * rounds


def test_a_peer_that_always_says_something_else(log: Log) -> None:
    """It would have the log to itself; and it cannot hide what happens to its link besides."""
    for n in range(int(HOUR)):
        log.journal.record("exchange_refused", peer="ams", level="warning", reason=f"{n}")
        log.journal.record("key_installed", peer="ams", key_id=f"{n:08x}")
        log.now += 1
    most = OF_ONE_KIND.burst + OF_ONE_KIND.rate * HOUR + 1
    assert len(log.lines("exchange_refused")) <= most
    assert len(log.lines("key_installed")) <= most
    assert len(log.lines("records_left_out")) <= most
    log.journal.record("link_closed", peer="ams", level="error", reason="over")
    assert log.lines()[-1]["event"] == "link_closed"


def test_few_wordings_taking_turns_are_known(log: Log) -> None:
    for n in range(1000):
        log.journal.record("exchange_started", peer="ams", reason="again", to=f"{n % WORDINGS}")
        log.now += 15
    assert len(log.lines()) < WORDINGS * (FIRST + 10)


@pytest.mark.parametrize(
    ("event", "about"),
    [
        ("peer_altered", {"peer": "ams", "reason": "keepalive was 5 s"}),
        ("put_right", {"tunnel": "backbone", "reason": "guard routes were missing: 10.0.0.0/8"}),
        ("tunnel_failed", {"tunnel": "backbone", "reason": "there is no VRF blue (yet)"}),
        ("source_failed", {"source": "kme", "reason": "refused", "code": "source_refused"}),
        ("external_keys_missing", {"peer": "ams", "sources": "kme", "reason": "none"}),
        ("listen_failed", {"address": "[::]:51821", "reason": "the device is gone"}),
        ("internal_error", {"reason": "datagram"}),
    ],
)
def test_every_kind_of_thing_is_bounded(log: Log, event: str, about: dict[str, Any]) -> None:
    every = 15.0
    for _ in range(int(DAY / 4 / every)):
        log.journal.record(event, level="warning", **about)
        log.now += every
    lines = log.lines(event)
    assert FIRST < len(lines) < 20
    assert all(about.items() <= line.items() for line in lines)


def test_the_last_state_is_written_in_the_end(log: Log) -> None:
    """A log whose last word on a link is `active` while it is down would be worse than none."""
    for n in range(1000):
        state = ("active", "down")[n % 2]
        log.journal.record("state_changed", peer="ams", state=state, reason="flaps")
        log.now += 0.1
    log.now += 120
    log.journal.record("key_in_force", peer="fra", key_id="00000001")
    states = log.lines("state_changed")
    assert len(states) <= OF_ONE_KIND.burst + 3
    assert states[-1]["state"] == "down"
    assert told_and_left_out(states) == 1000


def test_what_somebody_asked_for_is_always_told(log: Log) -> None:
    for _ in range(200):
        log.journal.record("rekey_requested", peer="ams", uid=0)
        log.journal.record("reload_refused", level="error", reason="is missing")
    assert len(log.lines("rekey_requested")) == len(log.lines("reload_refused")) == 200


def test_another_traceback_is_another_message(log: Log) -> None:
    def fail(error: Exception) -> None:
        log.journal.record("internal_error", level="error", reason="datagram", exc_info=error)

    for _ in range(10):
        fail(ValueError("one"))
    fail(KeyError("two"))
    assert len(log.lines("internal_error")) == FIRST + 1


def test_a_link_that_is_removed_is_forgotten(log: Log) -> None:
    log.away(HOUR)
    log.journal.forget_link("ams")
    before = len(log.lines("exchange_failed"))
    log.away(15)
    (line,) = log.lines("exchange_failed")[before:]
    assert "left_out" not in line
