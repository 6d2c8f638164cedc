"""When things are due: the numbers of docs/protocol.md §7, in seconds, and the sums over them."""

from __future__ import annotations

from collections.abc import Callable

from kex.token_bucket import Allowance

MIN_INTERVAL = 120
"""WireGuard renews its session no sooner, and a PSK counts from a renewal."""
SESSION_RENEWAL_AGE = 105.0
"""A renewal is due when the WireGuard session has this age, so that it lies ready at 120 s."""
RENEWAL_JITTER = 5.0
NO_HANDSHAKE_MARGIN = 25.0
"""After the interval when no handshake was seen: 145 s after the last exchange."""
EARLY_MARGIN = 30.0
"""A session that renews this much before the interval is over is taken as its end."""
LARGER_END_MARGIN = 15.0
"""After which the end that does not renew starts an exchange itself."""
RETRANSMIT_FIRST = 0.5
RETRANSMIT_LAST = 5.0
RETRANSMIT_JITTER = 0.25
GIVE_UP_SECONDS = 15.0
INITIATOR_KEYS_SECONDS = 30.0
RESPONDER_KEYS_SECONDS = 8.0
BEGINS_AGAIN_SECONDS = 60.0
"""An exchange of the peer's that begins this soon after an answer is not its regular renewal."""
RETRY_FIRST = 1.0
RETRY_LAST = 30.0
"""Between exchanges that are refused: 1 s, doubling to 30 s."""
SILENCE_AFTER = 12
"""Exchanges in a row to which nothing was heard, three minutes, before this end keeps silent for a
while: a router on the way may have an entry for this flow, made before its port forwarding was,
which each repetition keeps alive."""
SILENCE_SHORT = 35.0
"""Longer than Linux keeps an entry without an answer: nf_conntrack_udp_timeout, 30 s."""
SILENCE_LONG = 185.0
"""Longer than the longest common one: nf_conntrack_udp_timeout_stream, 120 s, and 180 s before
Linux 4.19."""
SILENCE_LONG_EACH = 4
"""Each silence of this number is a long one, a quarter of an hour after the first exchange."""
REQUEST_SPACING = 30.0
"""Between exchanges started because WireGuard did not take a key up."""

UNANSWERED_EXCHANGES = 4
"""Without an answer in so many exchanges a learnt address is given up: after a minute."""
UNPROVED_BYTES = Allowance(burst=32 * 1024, rate=32 * 1024 / 3600)
"""What is sent of own exchanges to addresses that the peer has not proved to be at: one exchange,
and one more an hour."""
INIT_CONFS = Allowance(burst=20, rate=0.2)
"""Exchanges of the peer's that are accepted: what a start, a crossing, a fallback and requests
take at once, and then one in 5 s: a refused one comes again within that, and waits for 15 s."""


def default_lifetime(interval: int) -> int:
    """Seconds that a key may be used without a renewal."""
    return max(600, interval + 480)


def jitter(random: Callable[[int], bytes], width: float) -> float:
    """A number between -width and +width."""
    return (int.from_bytes(random(2), "big") / 0xFFFF * 2 - 1) * width


def retry_pause(refusals: int) -> float:
    """The pause after this many refusals in a row."""
    return min(RETRY_FIRST * 2.0 ** min(refusals - 1, 10), RETRY_LAST)


def silence(unanswered: int, *, has_key: bool) -> float:
    """How long to keep silent after this many exchanges in a row to which nothing was heard; 0.0
    for not at all. With a key whose lifetime is running, no silence is long."""
    silences, rest = divmod(unanswered, SILENCE_AFTER)
    if rest or not silences:
        return 0.0
    return SILENCE_SHORT if has_key or silences % SILENCE_LONG_EACH else SILENCE_LONG


def renewal_due(*, installed_at: float, session_at: float | None, interval: int) -> float:
    """When the next exchange is due.

    With the interval rounded to a moment at which WireGuard is about to renew its session: the
    age of 105 s of the session now running, if that moment is not too early; else, and as long as
    no handshake is seen, 25 s after the interval.
    """
    fallback = installed_at + interval + NO_HANDSHAKE_MARGIN
    if session_at is None:
        return fallback
    renewal = session_at + SESSION_RENEWAL_AGE
    too_early = renewal - installed_at < interval - EARLY_MARGIN
    return fallback if too_early else min(renewal, fallback)
