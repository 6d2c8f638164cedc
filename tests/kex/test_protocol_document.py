"""docs/protocol.md says what the code does: its tables and figures are compared with it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from kex import (
    biscuit,
    cookies,
    endpoint,
    external,
    labels,
    load,
    payload,
    reassembly,
    timing,
    wire,
)
from kex.events import RejectCode
from kex.exchange import TRANSITIONS, Input, Phase, initiator_payload_length
from kex.suites import Suite
from kex.suites import suite as make_suite
from kex.wire import MessageType

from .harness import SUITES
from .reference import SeededBytes

PATH = Path(__file__).parent.parent.parent / "docs" / "protocol.md"


@cache
def document() -> str:
    return PATH.read_text()


def figure(number: float) -> str:
    return f"{number:,.0f}"


def figure_of(number: int) -> str:
    """The same for one that a float cannot hold."""
    return f"{number:,}"


def suites() -> list[Suite]:
    return [make_suite(number, random=SeededBytes(b"")) for number in SUITES]


def transition_table() -> str:
    """The state table of §4.5; `python -m tests.kex.test_protocol_document` prints it."""
    rows = [
        f"| `{state.name}` | `{happened.name}` | `{after.name}` |"
        for (state, happened), after in TRANSITIONS.items()
    ]
    return "\n".join(["| state | input | next state |", "|---|---|---|", *rows])


def test_state_table() -> None:
    assert transition_table() in document()
    assert {state for state, _ in TRANSITIONS} == set(Phase) - {Phase.OVER}
    assert {happened for _, happened in TRANSITIONS} == set(Input)


def test_every_label_is_there() -> None:
    for label in labels.ALL:
        assert re.search(r"[\"`]" + re.escape(label.decode()) + r"[\"`]", document()), label


def test_names_of_suites() -> None:
    for suite in suites():
        assert f"`{suite.protocol_name.decode()}`" in document()


def message_lengths(suite: Suite) -> dict[MessageType, int]:
    return {
        MessageType.INIT_HELLO: suite.message1_length,
        MessageType.RESP_HELLO: suite.message2_length + suite.biscuit_length,
        MessageType.INIT_CONF: wire.INIT_CONF_LENGTH,
        MessageType.RESP_CONF: wire.RESP_CONF_PAYLOAD_LENGTH + 16,
        MessageType.COOKIE_REPLY: cookies.COOKIE_REPLY_LENGTH,
        MessageType.IDENTITY_QUERY: suite.public_key_length,
        MessageType.IDENTITY_REPLY: suite.public_key_length,
        MessageType.REJECT: wire.REJECT_PAYLOAD_LENGTH + 16,
    }


@pytest.mark.parametrize("kind", MessageType, ids=lambda kind: kind.name)
def test_message_table(kind: MessageType) -> None:
    name = "".join(part.capitalize() for part in kind.name.split("_"))
    lengths = [message_lengths(suite)[kind] for suite in suites()]
    counts = [wire.fragment_count(length, wire.MAX_CHUNK_LENGTH) for length in lengths]
    sender = "initiator" if kind in wire.QUESTIONS else "responder"
    to = "responder" if kind in wire.QUESTIONS else "initiator"
    if kind in (MessageType.COOKIE_REPLY, MessageType.IDENTITY_REPLY):
        to = "(responder)"
    row = (
        f"| {kind:d} | {name} | {sender} | {to} | {figure(lengths[0])} | {figure(lengths[1])} "
        f"| {counts[0]} / {counts[1]} |"
    )
    assert row in document()


def test_layout_of_init_conf() -> None:
    one, two = suites()
    room = [initiator_payload_length(suite) for suite in (one, two)]
    assert f"| biscuit | {one.biscuit_length} | {two.biscuit_length} |" in document()
    assert f"| C_i: P_i, tag | {figure(room[0])} + 16 | {room[1]} + 16 |" in document()
    assert f"| confirm_i, tag | {one.hash_length} + 16 | {two.hash_length} + 16 |" in document()
    assert f"P_i ({figure(room[0])} bytes in suite 1, {room[1]} in suite 2)" in document()
    assert f"In all {room[1] - 2} bytes" in document()


@pytest.mark.parametrize("code", RejectCode, ids=lambda code: code.name)
def test_reject_codes(code: RejectCode) -> None:
    assert f"| {code:d} | `{code.name}` |" in document()


@pytest.mark.parametrize(
    "row",
    [
        f"| repetition: first, last, jitter | {timing.RETRANSMIT_FIRST}, "
        f"{figure(timing.RETRANSMIT_LAST)}, ±{timing.RETRANSMIT_JITTER:.0%} |".replace("%", " %"),
        "| exchange given up (in `IDENTITY`, `HELLO`, `CONF`) | "
        f"{figure(timing.GIVE_UP_SECONDS)} |",
        f"| external keys at the initiator | {figure(timing.INITIATOR_KEYS_SECONDS)} |",
        "| external keys at the responder | "
        f"{figure(timing.RESPONDER_KEYS_SECONDS)} from InitConf |",
        f"| RespHello repeated for a known InitHello | {figure(endpoint.HELLO_CACHE_SECONDS)} |",
        "| biscuit key, cookie secret: in use, accepted | "
        f"{figure(biscuit.KEY_SECONDS)}, {figure(2 * cookies.SECRET_SECONDS)} |",
        f"| cookie used by who got it | {figure(cookies.COOKIE_SECONDS)} |",
        f"| chunks kept | {figure(reassembly.MESSAGE_SECONDS)} |",
        f"| renewal interval | {timing.MIN_INTERVAL} to {figure(payload.MAX_INTERVAL)}; "
        f"default {timing.MIN_INTERVAL} |",
        f"| lifetime of a key | the larger of {timing.default_lifetime(120)} and interval + "
        f"{timing.default_lifetime(3600) - 3600}; at least interval + 300 |",
    ],
)
def test_table_of_times(row: str) -> None:
    assert row in document()


@pytest.mark.parametrize(
    "words",
    [
        f"{load.SOURCE_BURST:.0f} InitHello of one host (one /{load.IPV6_SITE_LENGTH} of IPv6) "
        f"are opened in a burst and {load.SOURCE_RATE:.0f} a second",
        f"a bucket of {load.BURST:.0f}, refilled at {load.RATE:.0f} a second",
        f"{reassembly.MAX_BYTES // 1024} KiB in all with {reassembly.ENTRY_COST} bytes counted",
        f"{reassembly.MAX_MESSAGES_PER_SOURCE} messages of one source",
        f"{figure(wire.MIN_CHUNK_LENGTH)} to {figure(wire.MAX_CHUNK_LENGTH)} bytes (1,200 unless",
        f"a bounded memory ({endpoint.HELLO_CACHE_ENTRIES} answers)",
        f"session is {timing.SESSION_RENEWAL_AGE:.0f} s old",
        f"more than {timing.EARLY_MARGIN:.0f} s before the interval is over",
        f"due {timing.NO_HANDSHAKE_MARGIN:.0f} s after the interval",
        f"a jitter of ±{timing.RENEWAL_JITTER:.0f} s, the other end "
        f"{timing.LARGER_END_MARGIN:.0f} s",
        f"after {timing.RETRY_FIRST:.0f} s, and the pause doubles up to {timing.RETRY_LAST:.0f} s",
        f"at most once in {timing.REQUEST_SPACING:.0f} s",
        f"array of at most {payload.MAX_PREFIXES} `[integer, bytes]`",
        f"array of at most {external.MAX_EXTERNAL_KEYS} entries",
        f"array of at most {external.MAX_KEY_IDS} texts of at most {external.MAX_KEY_ID_LENGTH}",
        f"integer, 0 to {figure(8 * external.MAX_KEY_LENGTH)} | length of the key; where it is "
        f"present a multiple of 8 and at least {8 * external.MIN_KEY_LENGTH}",
        f"P_r ({figure(wire.RESP_CONF_PAYLOAD_LENGTH)} bytes) and the reason of a Reject "
        f"({wire.REJECT_PAYLOAD_LENGTH} bytes)",
        f"at most {wire.REJECT_PAYLOAD_LENGTH - 40} bytes; the receiver",
    ],
)
def test_figures_in_the_text(words: str) -> None:
    assert words in document()


def test_range_of_the_counters() -> None:
    assert document().count(f"integer, 0 to {figure_of(payload.MAX_COUNT)}; optional") == 2


def test_keys_of_the_payloads() -> None:
    said = re.findall(r"^\| `(\w+)` \| ", document(), re.MULTILINE)
    assert said[-12:] == [
        "minor",
        "wg",
        "port",
        "prefixes",
        "mode",
        "interval",
        "starts",
        "tx",
        "rx",
        "keys",
        "mixed",
        "suite",
    ]


if __name__ == "__main__":
    print(transition_table())
