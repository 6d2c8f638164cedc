"""docs/protocol.md says what the code does: its tables and figures are compared with it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import cbor2
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
from kex.errors import PacketRejected
from kex.events import RejectCode
from kex.exchange import TRANSITIONS, Input, Phase, initiator_payload_length
from kex.link_state import LinkState
from kex.secret import Secret
from kex.suites import Suite
from kex.suites import suite as make_suite
from kex.wire import MessageType
from vpnd.keysource import static_key
from vpnd.keysource.base import SourceType

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
    row = (
        f"| {kind:d} | {name} | {sender} | {figure(lengths[0])} | {figure(lengths[1])} "
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
        "| exchange given up: for each of `IDENTITY`, `HELLO`, `CONF`, from its first sending | "
        f"{figure(timing.GIVE_UP_SECONDS)} |",
        f"| external keys at the initiator | {figure(timing.INITIATOR_KEYS_SECONDS)} |",
        "| external keys at the responder | "
        f"{figure(timing.RESPONDER_KEYS_SECONDS)} from InitConf |",
        f"| silence after {timing.SILENCE_AFTER} exchanges without an answer: each, each fourth | "
        f"{figure(timing.SILENCE_SHORT)}, {figure(timing.SILENCE_LONG)} |",
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
        f"{load.SOURCE.burst:.0f} InitHello of one host (one /{load.IPV6_SITE_LENGTH} of IPv6) "
        f"are opened in a burst and {load.SOURCE.rate:.0f} a second",
        f"of all of them together {load.ALL_SOURCES.burst:.0f} and "
        f"{load.ALL_SOURCES.rate:.0f} a second",
        f"{timing.INIT_CONFS.burst:.0f} InitConf at once, and one every "
        f"{1 / timing.INIT_CONFS.rate:.0f} s",
        f"without an answer in {timing.UNANSWERED_EXCHANGES} exchanges in a row",
        f"{timing.UNPROVED_BYTES.burst / 1024:.0f} KiB, and as much again in an hour",
        f"a bucket of {load.BURST:.0f}, refilled at {load.RATE:.0f} a second",
        f"{reassembly.MAX_BYTES // 1024} KiB in all with {reassembly.ENTRY_COST} bytes counted",
        f"{reassembly.MAX_MESSAGES_PER_ORIGIN} messages of one source",
        f"{reassembly.MAX_MESSAGES_PER_SITE} of one host (one /{load.IPV6_SITE_LENGTH} of IPv6)",
        f"{reassembly.MAX_MESSAGES_PER_ORIGIN} answers to one exchange",
        f"{figure(wire.MIN_CHUNK_LENGTH)} to {figure(wire.MAX_CHUNK_LENGTH)} bytes (1,200 unless",
        f"a bounded memory ({endpoint.HELLO_CACHE_ENTRIES} answers)",
        f"latest = installed + interval + {timing.NO_HANDSHAKE_MARGIN:.0f}\n",
        f"early  = session + {timing.SESSION_RENEWAL_AGE:.0f}\n",
        f"early < installed + interval − {timing.EARLY_MARGIN:.0f}\n",
        f"jitter between −{timing.RENEWAL_JITTER:.0f} and +{timing.RENEWAL_JITTER:.0f}\n",
        f"due + {timing.LARGER_END_MARGIN:.0f}           at any other",
        f"after {timing.RETRY_FIRST:.0f} s, and the pause doubles up to {timing.RETRY_LAST:.0f} s",
        f"at most once in {timing.REQUEST_SPACING:.0f} s",
        f"by a *silence* of {timing.SILENCE_SHORT:.0f} s first, and each fourth silence lasts "
        f"{timing.SILENCE_LONG:.0f} s",
        f"array of at most {payload.MAX_PREFIXES} `[integer, bytes]`",
        f"array of at most {external.MAX_EXTERNAL_KEYS} entries",
        f"array of at most {external.MAX_KEY_IDS} texts of at most {external.MAX_KEY_ID_LENGTH}",
        f"integer, 0 to {figure(8 * external.MAX_KEY_LENGTH)} | length of the whole key; where it "
        f"is present a multiple of 8 and at least {8 * external.MIN_KEY_LENGTH}",
        f"P_r ({figure(wire.RESP_CONF_PAYLOAD_LENGTH)} bytes) and the reason of a Reject "
        f"({wire.REJECT_PAYLOAD_LENGTH} bytes)",
        f"| `detail` | text, at most {payload.MAX_DETAIL_LENGTH} bytes |",
        f"less than {timing.MIN_INTERVAL} counts as {timing.MIN_INTERVAL}",
    ],
)
def test_figures_in_the_text(words: str) -> None:
    assert words in document()


LINK_STATE_ELSEWHERE = {
    "config": "what is configured",
    "adopted_wireguard_key": "of the adopted key: for the check of the peer's key alone",
    "session_at": "`session` in the formula of §7",
    "retry_reason": "for the log",
    "skip_external": "§5.4: after a Reject, in `prefer`",
    "retransmit_at": "§4.4",
    "retransmit_interval": "§4.4",
    "exchange_deadline": "§4.4 and §7",
    "responder_deadline": "§7",
    "requested_at": "§7, overdue handshakes",
    "held": "before a stop",
    "traffic": "§8: what WireGuard has counted",
    "cookie_until": "§3.4",
    "cookie_taken": "§3.4",
}
"""Fields of a link that the table of §6 leaves out, and why."""


def test_table_of_the_state_of_a_link() -> None:
    table = document().split("**State of a link.**")[1].split("\n\n")[1]
    header, _, *rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()
    ]
    assert all(len(row) == len(header) for row in rows)
    told = [name for row in rows for name in re.findall(r"\w+", row[0].split(" (")[0])]
    assert len(told) == len(set(told))
    assert {*told, *LINK_STATE_ELSEWHERE} == {field.name for field in fields(LinkState)}
    assert not set(told) & set(LINK_STATE_ELSEWHERE)


# ---- §5: the tables of payloads drive the decoder


def section(number: str) -> str:
    """A section of the document, from its heading to the next one."""
    begin = re.search(rf"^#+ {re.escape(number)}[. ].*$", document(), re.MULTILINE)
    assert begin is not None, number
    rest = document()[begin.end() :]
    end = re.search(r"^##", rest, re.MULTILINE)
    return rest if end is None else rest[: end.start()]


def tables(number: str) -> list[list[list[str]]]:
    """The tables of a section: rows of cells, the heading first."""
    found: list[list[list[str]]] = []
    open_table = False
    for line in section(number).splitlines():
        if not line.startswith("|"):
            open_table = False
            continue
        if not open_table:
            found.append([])
            open_table = True
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not set("".join(cells)) <= {"-"}:
            found[-1].append(cells)
    return found


def typed_keys(number: str) -> dict[str, str]:
    """Key and type of the first table of a section."""
    heading, *rows = tables(number)[0]
    assert heading[:2] == ["key", "type"]
    return {row[0].strip("`"): row[1].partition(OPTIONAL)[0] for row in rows}


def optional_together() -> frozenset[str]:
    """The keys that are there all, or not at all."""
    rows = [row for row in tables("5.2")[0][1:] if OPTIONAL in row[1]]
    keys = {row[0].strip("`") for row in rows}
    for row in rows:
        others = set(re.findall(r"`(\w+)`", row[1].partition(OPTIONAL)[2]))
        assert others | {row[0].strip("`")} == keys
    return frozenset(keys)


OPTIONAL = "; optional, together with"


def number_of(text: str) -> int:
    return int(text.replace(",", ""))


PREFIX = [24, bytes([10, 0, 0, 0])]
ENTRY = ["qkd", "kme", "sae", ["id"], 256, True]
OTHER_KINDS: list[Any] = [
    *(0, 1, -1, 2**64 - 1, -(2**64), 1.0, float("nan"), float("inf"), True, False, None),
    *(b"", b"1", "", "1", [], [0], {}, {"a": 1}, cbor2.undefined, cbor2.CBORSimpleValue(99)),
    *(cbor2.CBORTag(2, b"\1"), cbor2.CBORTag(3, b"\1"), cbor2.CBORTag(55799, 1)),
    *(cbor2.CBORTag(55799, bytes(32)), cbor2.CBORTag(55799, "x"), cbor2.CBORTag(55799, [])),
    *(cbor2.CBORTag(55799, True), cbor2.CBORTag(258, []), cbor2.CBORTag(1, 0)),
]
"""Of each kind of CBOR one or more."""


def of_kind(*kinds: type) -> list[Any]:
    """Those of the other kinds that are of none of these: no type takes them."""
    return [value for value in OTHER_KINDS if type(value) not in kinds]


def values(said: str) -> tuple[list[Any], list[Any]]:
    """Values that a type of the document admits, its bounds among them; and those that it does
    not. A type that is written in another way than all others fails here."""
    if found := re.fullmatch(r"integer, ([\d,]+) to ([\d,]+)", said):
        low, high = map(number_of, found.groups())
        outside = [each for each in (2**64 - 1, -(2**64)) if not low <= each <= high]
        return [low, high], [low - 1, high + 1, *outside, *of_kind(int)]
    if found := re.fullmatch(r"bytes, (\d+)", said):
        size = int(found[1])
        return [bytes(size)], [bytes(size - 1), bytes(size + 1), "x" * size, *of_kind()]
    if found := re.fullmatch(r"text, at most (\d+) bytes", said):
        size = int(found[1])
        fit = ["", "x" * size, "ü" * (size // 2)]
        return fit, ["x" * (size + 1), "ü" * (size // 2) + "x", b"x", *of_kind(str)]
    if said == "boolean":
        return [True, False], of_kind(bool)
    if found := re.fullmatch(r"array of at most (\d+) `\[integer, bytes\]`", said):
        count = int(found[1])
        wrong: list[Any] = [[each] for each in (24, [], [24], [*PREFIX, 0], [b"", 24], ["8", b""])]
        wrong += [[[33, PREFIX[1]]], [[129, bytes(16)]], [[0, bytes(5)]], [[8, b"\n\1\0\0"]]]
        wrong += [[[value, PREFIX[1]]] for value in of_kind(int)]
        wrong += [[[0, value]] for value in of_kind()]
        good = [[], [PREFIX] * count, [[0, bytes(4)], [32, bytes(4)], [0, bytes(16)]]]
        return [*good, [[128, bytes(16)]]], [[PREFIX] * (count + 1), *wrong, *of_kind(list)]
    if found := re.fullmatch(r"array of at most (\d+) entries", said):
        count = int(found[1])
        wrong = [[ENTRY[:-1]], [[*ENTRY, 0]], *([each] for each in of_kind())]
        return [[], [ENTRY] * count], [[ENTRY] * (count + 1), *wrong, *of_kind(list)]
    if found := re.fullmatch(r"array of at most (\d+) texts of at most (\d+) bytes", said):
        count, size = int(found[1]), int(found[2])
        wrong = [["x"] * (count + 1), ["x" * (size + 1)], *([each] for each in of_kind(str))]
        return [[], ["x" * size] * count, [""]], [*wrong, *of_kind(list)]
    if found := re.fullmatch(
        r"array of at most (\d+) integers from (\d+) to (\d+), strictly ascending", said
    ):
        count, low, high = map(int, found.groups())
        assert count == high - low + 1
        wrong = [[low - 1], [high + 1], [high, low], [low, low], *([each] for each in of_kind(int))]
        return [[], list(range(low, high + 1)), [high]], [*wrong, *of_kind(list)]
    raise AssertionError(f"a type that is not understood: {said}")


Decoder = Callable[[bytes], Any]
PAYLOADS: dict[str, tuple[Decoder, int]] = {
    "P_i": (payload.decode_initiator_untrusted, 4000),
    "P_r": (payload.decode_responder_untrusted, 4000),
    "Reject": (payload.decode_refusal_untrusted, 4000),
}


def keys_of(name: str) -> dict[str, str]:
    """What the document lists for a payload, in its order."""
    of_p_i = typed_keys("5.2")
    if name == "P_i":
        return of_p_i
    if name == "Reject":
        return typed_keys("5.4")
    assert "The keys of P_i but for `keys`, with the same types, and" in section("5.3")
    return {key: said for key, said in of_p_i.items() if key != "keys"} | typed_keys("5.3")


def right(name: str) -> dict[str, Any]:
    return {key: values(said)[0][-1] for key, said in keys_of(name).items()}


def encoded(fields: Mapping[Any, Any], length: int) -> bytes:
    data = cbor2.dumps(dict(fields))
    return (len(data).to_bytes(2, "big") + data).ljust(length, b"\0")


def taken(name: str, fields: Mapping[Any, Any]) -> Any:
    decode, length = PAYLOADS[name]
    return decode(encoded(fields, length))


def refused(name: str, fields: Mapping[Any, Any]) -> None:
    with pytest.raises(PacketRejected):
        taken(name, fields)


EACH_KEY = [(name, key) for name in PAYLOADS for key in keys_of(name)]


@pytest.mark.parametrize(("name", "key"), EACH_KEY)
def test_each_key_of_a_payload(name: str, key: str) -> None:
    """What the document admits is taken, its bounds among it; all else is refused."""
    fits, does_not = values(keys_of(name)[key])
    good = right(name)
    for value in fits:
        taken(name, good | {key: value})
    for value in does_not:
        refused(name, good | {key: value})
    without = {other: value for other, value in good.items() if other != key}
    if key == "failed":
        assert taken(name, without).failed == ()
    elif key in optional_together():
        refused(name, without)
        bare = {other: good[other] for other in good.keys() - optional_together()}
        assert taken(name, bare).announcement.traffic is None
    elif key == "allows":
        assert taken(name, without).announcement.allows is None
    elif key == "twins":
        assert taken(name, without).announcement.twins is False
    else:
        refused(name, without)


@pytest.mark.parametrize("name", PAYLOADS)
def test_keys_that_the_document_does_not_list(name: str) -> None:
    """Those of another payload among them, whatever stands there."""
    listed = keys_of(name)
    others = {key for other in PAYLOADS for key in keys_of(other)} - listed.keys()
    before = taken(name, right(name))
    for key in ("new", *others):
        for value in OTHER_KINDS:
            assert taken(name, right(name) | {key: value}) == before


def test_the_values_come_through() -> None:
    decoded = taken("P_i", right("P_i")).announcement
    good = right("P_i")
    assert decoded.wireguard_key == good["wg"]
    assert (decoded.minor, decoded.wireguard_port) == (good["minor"], good["port"])
    assert (decoded.interval, decoded.can_start) == (good["interval"], good["starts"])
    assert [[p.prefixlen, p.network_address.packed] for p in decoded.prefixes] == good["prefixes"]
    assert decoded.allows == decoded.prefixes
    assert (taken("P_r", right("P_r")).mixed, taken("P_r", right("P_r")).suite) == (4, 15)
    assert taken("Reject", right("Reject")).failed == (3,)


def entry_fields() -> list[list[str]]:
    heading, *rows = tables("5.2")[1]
    assert heading == ["", "type", ""]
    return rows


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("present", [True, False])
def test_each_field_of_an_entry(at: int, present: bool) -> None:
    rows = entry_fields()
    assert len(rows) == len(ENTRY)
    name, said, more = rows[at]
    fits, does_not = values(said)

    def with_field(value: Any) -> dict[str, Any]:
        entry = [*ENTRY[:5], present]
        entry[at] = value
        return right("P_i") | {"keys": [entry]}

    if name == "bits" and present:
        found = re.search(r"a multiple of (\d+) and at least (\d+)", more)
        assert found is not None
        unit, low = int(found[1]), int(found[2])
        assert fits[0] < low <= fits[1]
        does_not = [*does_not, fits[0], low - unit, low + 1, fits[1] - 1]
        fits = [low, low + unit, fits[1]]
    for value in fits:
        taken("P_i", with_field(value))
    for value in does_not:
        refused("P_i", with_field(value))


def ranges_not_printable() -> list[tuple[int, int]]:
    block = re.search(r"((?:^    [0-9A-F][0-9A-F -]+\n)+)", section("5.2"), re.MULTILINE)
    assert block is not None
    ends = [part.split("-") for part in block[1].split()]
    return [(int(each[0], 16), int(each[-1], 16)) for each in ends]


def test_printable() -> None:
    ranges = ranges_not_printable()
    assert tuple(ranges) == external.NOT_PRINTABLE

    def with_char(code: int, at: int) -> dict[str, Any]:
        entry: list[Any] = list(ENTRY)
        entry[at] = [f"a{chr(code)}"] if at == 3 else f"a{chr(code)}"
        return right("P_i") | {"keys": [entry]}

    inside = {code for one in ranges for code in one if not 0xD800 <= code <= 0xDFFF}
    beside = {code for low, high in ranges for code in (low - 1, high + 1)}
    beside = {code for code in beside if 0 <= code <= 0x10FFFF}
    beside -= {code for low, high in ranges for code in range(low, high + 1)}
    assert {0x20, 0x7E, 0xA1, 0xAC, 0xF900} <= beside
    for at in range(4):
        for code in inside:
            refused("P_i", with_char(code, at))
        for code in beside:
            taken("P_i", with_char(code, at))


def test_what_may_be_configured_may_be_sent() -> None:
    """The list of the document has nothing that Python calls printable."""
    shown = "".join(char for char in map(chr, range(0x110000)) if char.isprintable())
    assert external.is_printable(shown)


def test_types_of_the_encoding() -> None:
    """Each type that the tables use is said to be encoded in one way."""
    heading, *rows = tables("5.1")[0]
    assert heading == ["type", "encoded as"]
    used = [said for name in PAYLOADS for said in keys_of(name).values()]
    used += [row[1] for row in entry_fields()]
    assert {re.split(r"[, ]", said)[0] for said in used} == {row[0] for row in rows}
    majors = {row[0]: re.match(r"major type (\d)", row[1]) for row in rows}
    for name, example in (("integer", 1), ("bytes", b"1"), ("text", "1"), ("array", [1])):
        major = majors[name]
        assert major is not None
        assert int(major[1]) == cbor2.dumps(example)[0] >> 5
    assert "f4 for false, f5 for true" in section("5.1")


def test_codes_of_a_reject() -> None:
    heading, *rows = tables("5.4")[1]
    assert heading[:2] == ["code", "name"]
    codes = {int(row[0]): row[1].strip("`") for row in rows}
    assert codes == {code.value: code.name for code in RejectCode}
    for code in (*codes, 0, 99, 255):
        assert taken("Reject", right("Reject") | {"code": code}).code == code


# ---- §5.6: sources of external keys


def source_table() -> dict[str, dict[str, str]]:
    """For each source type what its column says."""
    heading, *rows = tables("5.6")[0]
    return {
        kind.strip("`"): {row[0]: row[at] for row in rows}
        for at, kind in enumerate(heading)
        if at > 0
    }


def test_source_types() -> None:
    assert set(source_table()) == {kind.value for kind in SourceType}


@pytest.mark.parametrize("kind", SourceType, ids=lambda kind: kind.value)
def test_limits_of_a_source_type(kind: SourceType) -> None:
    column = source_table()[kind.value]
    least = {SourceType.FILE: static_key.MIN_STATIC_KEY}.get(kind, external.MIN_KEY_LENGTH)
    assert column["bits"] == f"{8 * least} to {figure(8 * external.MAX_KEY_LENGTH)}"
    ids = {SourceType.QKD: f"1 to {external.MAX_KEY_IDS}: "}.get(kind, "1: ")
    assert column["key IDs"].startswith(ids)


def test_hash_of_a_static_key() -> None:
    person = re.search(r'personalisation "([^"]+)"', section("5.6"))
    example = re.search(r"32 bytes 00 01 … 1f is `([0-9a-f]{32})`", section("5.6"))
    assert person is not None
    assert example is not None
    key = bytes(range(32))
    plain = hashlib.blake2b(key, digest_size=16, person=person[1].encode()).hexdigest()
    assert plain == example[1] == static_key.key_hash(Secret(key))


if __name__ == "__main__":
    print(transition_table())
