"""Whether what one end of a link sends arrives at the other: both ends' counters compared.

Each payload of an exchange tells what WireGuard has counted of the link at its sender
(docs/protocol.md §5.2). Handshakes and the exchange may pass while no packet does: a firewall that
drops WireGuard's data, a TUN device that does not fit. No end can know that alone, since traffic
in one direction is nothing wrong.

Counters are seconds old when they are told. So the two ends are compared over windows of which the
receiver's surely holds the sender's, and packets on their way count for nobody.

Pure logic; times are seconds on the boot clock, counts are bytes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from kex.payload import Traffic

BETWEEN_SECONDS: Final = 60.0
"""Between two exchanges whose counters are compared, at least: nothing has passed for so long."""
OUTDATED_SECONDS: Final = 420.0
"""And at most: what was lost earlier says nothing about now. Holds a renewal that was late."""
DUMP_MARGIN: Final = 20.0
"""How old the counters may be that an end tells, with what it takes to get here."""
WAY_MARGIN: Final = 10.0
"""What has not arrived by then was lost."""
REPORTS: Final = 8
"""Kept, with WAY_MARGIN between them: they span more than BETWEEN_SECONDS."""
ASK_AGAIN_SECONDS: Final = 120.0
ASK_RARELY_SECONDS: Final = 600.0
"""Before the next exchange for the sake of its counters, where the last one showed no trouble."""
HANDSHAKES: Final = (512, 30.0)
"""What WireGuard's handshakes make up at most: bytes, and bytes a second. A message has 148 bytes,
and comes every 5 s where none succeeds."""
ENOUGH: Final = 2048
"""Bytes that are missing at least, beyond handshakes: some ten packets."""
SOMETHING: Final = 200
"""Bytes: one handshake, and more."""


@dataclass(frozen=True, slots=True)
class Reading:
    """This end's counters."""

    at: float
    sent: int = 0
    received: int = 0


@dataclass(slots=True)
class _Report:
    """What the other end told, and this end's counters around it."""

    at: float
    far: Traffic
    before: Reading
    """From well before it was told, or all zero."""
    after: Reading | None = None


def handshakes_at_most(seconds: float) -> float:
    """Bytes of one direction that may be handshakes, and no packets."""
    return HANDSHAKES[0] + HANDSHAKES[1] * seconds


def _lost(sent: int, received: int, seconds: float) -> bool | None:
    """Whether packets were sent, and what arrived may be handshakes alone; None where too little
    was sent to tell."""
    handshakes = handshakes_at_most(seconds)
    if received > handshakes or (sent >= SOMETHING and received >= 0.9 * sent):
        return False
    if sent - received >= handshakes + ENOUGH and 4 * received <= sent:
        return True
    return None


@dataclass(slots=True)
class FlowWatch:
    """One peer's counters, as dumps show them, beside those that the peer tells."""

    loses_inbound: bool = False
    """Nothing of what the peer sends arrives here."""
    loses_outbound: bool = False
    """Nothing of what is sent here arrives at the peer."""
    withheld: bool = False
    """What WireGuard receives does not come out of the interface (vpnd.tunnel_flow)."""
    not_taken: bool = False
    """What goes into the interface is not sent by WireGuard (vpnd.tunnel_flow)."""
    passed: int = 0
    """What was received, without what was withheld."""
    _readings: deque[Reading] = field(default_factory=deque)
    _reports: deque[_Report] = field(default_factory=lambda: deque(maxlen=REPORTS))
    _found_at: Reading | None = None
    """When it was found that nothing arrives here."""
    _asked_at: float | None = None
    _sound_at: float | None = None
    """When both directions were last found sound."""

    def reset(self) -> None:
        """The peer is another one, or gone from the interface."""
        self.loses_inbound = self.loses_outbound = self.withheld = self.not_taken = False
        self.passed = 0
        self._readings.clear()
        self._reports.clear()
        self._found_at = self._asked_at = self._sound_at = None

    @property
    def traffic(self) -> Traffic:
        """What to tell the peer."""
        sent = self._readings[-1].sent if self._readings else 0
        return Traffic(sent=sent, received=self.passed)

    def interrupted(self) -> None:
        """An exchange had no answer: what was lost meanwhile tells nothing of afterwards."""
        self._reports.clear()

    def observe(self, sent: int, received: int, now: float) -> None:
        """Take one dump's counters."""
        last = self._readings[-1] if self._readings else Reading(now)
        if sent < last.sent or received < last.received:  # made anew behind our back
            self.reset()
            last = Reading(now)
        if not self.withheld:
            self.passed += received - last.received
        reading = Reading(now, sent, received)
        self._readings.append(reading)
        while len(self._readings) > 1 and self._readings[1].at <= now - BETWEEN_SECONDS:
            self._readings.popleft()
        if self._reports and self._reports[-1].after is None:
            report = self._reports[-1]
            if now >= report.at + WAY_MARGIN:
                report.after = reading
                self._judge_inbound(report, reading)
        self._look_for_life(reading)

    def heard(self, far: Traffic | None, now: float) -> None:
        """An exchange is complete, in which the other end told its counters (or none: it is of an
        older version, or cannot read them)."""
        if far is None:
            self.loses_inbound = self.loses_outbound = False
            self.interrupted()
            return
        if self._reports:
            last = self._reports[-1].far
            if far.sent < last.sent or far.received < last.received:
                self._reports.clear()  # its peer was made anew
        report = _Report(now, far, self._reading_before(now - DUMP_MARGIN))
        self._judge_outbound(report)
        if not self._reports or now >= self._reports[-1].at + WAY_MARGIN:
            self._reports.append(report)

    def wants_comparison(self, now: float) -> bool:
        """Whether an exchange is worth its while for the counters alone: there is trouble, or this
        end has sent packets for a minute and nothing has come back. True once in a while."""
        if not self._reports or now < self._reports[-1].at + BETWEEN_SECONDS:
            return False
        troubled = self.loses_inbound or self.loses_outbound
        if not (troubled or self._one_way()):
            return False
        sound = self._sound_at is not None and not troubled
        pause = ASK_RARELY_SECONDS if sound else ASK_AGAIN_SECONDS
        since = self._sound_at if sound else self._asked_at
        if since is not None and now < since + pause:
            return False
        self._asked_at = now
        return True

    def _one_way(self) -> bool:
        first, last = self._readings[0], self._readings[-1]
        if last.at - first.at < BETWEEN_SECONDS:
            return False
        sent, received = last.sent - first.sent, last.received - first.received
        return _lost(sent, received, last.at - first.at) is True

    def _reading_before(self, at: float) -> Reading:
        """The last one up to then; where there is none, the counters of a peer that came later."""
        found = Reading(at)
        for reading in self._readings:
            if reading.at > at:
                break
            found = reading
        return found

    def _earlier(self, report: _Report) -> _Report | None:
        """The newest report to compare one with."""
        for earlier in reversed(self._reports):
            if BETWEEN_SECONDS <= report.at - earlier.at <= OUTDATED_SECONDS:
                return earlier
        return None

    def _judge_inbound(self, report: _Report, after: Reading) -> None:
        earlier = self._earlier(report)
        if earlier is None:
            return
        sent = report.far.sent - earlier.far.sent
        received = after.received - earlier.before.received
        lost = _lost(sent, received, after.at - earlier.before.at)
        if lost is not None:
            self.loses_inbound = lost
            self._found_at = after if lost else None
        if sent - received < ENOUGH and not self.loses_outbound:
            self._sound_at = after.at

    def _judge_outbound(self, report: _Report) -> None:
        earlier = self._earlier(report)
        if earlier is None or earlier.after is None or earlier.after.at >= report.before.at:
            return
        lost = _lost(
            report.before.sent - earlier.after.sent,
            report.far.received - earlier.far.received,
            report.at - earlier.at,
        )
        if lost is not None:
            self.loses_outbound = lost

    def _look_for_life(self, reading: Reading) -> None:
        """What arrives by now ends the trouble, without waiting for another exchange."""
        found = self._found_at
        if found is not None:
            more = reading.received - found.received
            if more > ENOUGH + 2 * handshakes_at_most(reading.at - found.at):
                self.loses_inbound, self._found_at = False, None
