"""P_i, P_r and the reason of a Reject: what they hold, their bounds, and what fits."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kex import payload, wire
from kex.errors import PacketRejected
from kex.exchange import initiator_payload_length
from kex.external import (
    MAX_EXTERNAL_KEYS,
    MAX_KEY_ID_LENGTH,
    MAX_KEY_IDS,
    MAX_KEY_LENGTH,
    MAX_NAME_LENGTH,
    MAX_SAE_LENGTH,
    MIN_KEY_LENGTH,
    ExternalKeyReference,
    ExternalMode,
)
from kex.payload import (
    MAX_INTERVAL,
    MAX_MINOR_VERSION,
    MAX_PREFIXES,
    Announcement,
    ExternalListing,
    InitiatorPayload,
    Prefix,
    Refusal,
    ResponderPayload,
    Traffic,
)
from kex.suites import suite as make_suite
from tests.examples import examples

from .reference import SeededBytes

P_I, P_R, REASON = 960, wire.RESP_CONF_PAYLOAD_LENGTH, wire.REJECT_PAYLOAD_LENGTH


def v6(count: int) -> tuple[Prefix, ...]:
    return tuple(ipaddress.ip_network(f"2001:db8:{n:x}::/48") for n in range(count))


def announcement(**changes: Any) -> Announcement:
    values: dict[str, Any] = {
        "wireguard_key": bytes(range(32)),
        "wireguard_port": 51820,
        "prefixes": (ipaddress.ip_network("10.1.0.0/16"), *v6(1)),
        "mode": ExternalMode.PREFER,
        "interval": 120,
        "can_start": True,
    }
    return Announcement(**(values | changes))


def listed(
    name: str = "kme", *, names: int = 8, ids: int = 1, id_length: int = 36, present: bool = True
) -> ExternalListing:
    """An entry whose source and SAE have `names` bytes each."""
    reference = ExternalKeyReference(
        source_type="qkd",
        source=name.ljust(names, "-"),
        sae=name.ljust(names, "+"),
        key_ids=tuple(f"{n}".ljust(id_length, "0") for n in range(ids)),
        bits=8 * 1024,
    )
    return ExternalListing(reference, present)


def fields_of(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:2], "big")
    decoded: dict[str, Any] = cbor2.loads(data[2 : 2 + size])
    return decoded


def with_fields(data: bytes, **changes: Any) -> bytes:
    """The payload with other values under some keys; None takes a key out."""
    fields = fields_of(data) | changes
    encoded = cbor2.dumps({name: value for name, value in fields.items() if value is not None})
    return (len(encoded).to_bytes(2, "big") + encoded).ljust(len(data), b"\0")


GOOD_I = payload.encode_initiator(InitiatorPayload(announcement(), (listed(),)), P_I)
GOOD_R = payload.encode_responder(ResponderPayload(announcement(), 1, 1), P_R)
GOOD_REASON = payload.encode_refusal(Refusal(2, "not allowed"), REASON)


# ---- what goes in comes out

NAMES = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FF).filter(str.isprintable), max_size=20
)
PREFIXES = st.one_of(
    st.builds(
        lambda address, length: ipaddress.ip_network((address, length), strict=False),
        st.binary(min_size=4, max_size=4),
        st.integers(0, 32),
    ),
    st.builds(
        lambda address, length: ipaddress.ip_network((address, length), strict=False),
        st.binary(min_size=16, max_size=16),
        st.integers(0, 128),
    ),
)
ANNOUNCEMENTS = st.builds(
    Announcement,
    wireguard_key=st.binary(min_size=32, max_size=32),
    wireguard_port=st.integers(0, 65535),
    prefixes=st.lists(PREFIXES, max_size=MAX_PREFIXES).map(tuple),
    mode=st.sampled_from(ExternalMode),
    interval=st.integers(1, MAX_INTERVAL),
    can_start=st.booleans(),
    minor=st.integers(0, MAX_MINOR_VERSION),
    twins=st.booleans(),
)
LISTINGS = st.builds(
    ExternalListing,
    st.builds(
        ExternalKeyReference,
        source_type=NAMES,
        source=NAMES,
        sae=NAMES,
        key_ids=st.lists(NAMES, max_size=2).map(tuple),
        bits=st.integers(MIN_KEY_LENGTH, MAX_KEY_LENGTH).map(lambda n: 8 * n),
    ),
    st.booleans(),
)


@settings(max_examples=examples(100), deadline=None, database=None)
@given(ANNOUNCEMENTS, st.lists(LISTINGS, max_size=MAX_EXTERNAL_KEYS).map(tuple))
def test_initiator_round_trip(said: Announcement, keys: tuple[ExternalListing, ...]) -> None:
    original = InitiatorPayload(said, keys)
    encoded = payload.encode_initiator(original, 2000)
    assert len(encoded) == 2000
    assert payload.decode_initiator_untrusted(encoded) == original


@settings(max_examples=examples(100), deadline=None, database=None)
@given(ANNOUNCEMENTS, st.integers(0, MAX_EXTERNAL_KEYS), st.sampled_from([1, 2]))
def test_responder_round_trip(said: Announcement, mixed: int, suite: int) -> None:
    original = ResponderPayload(said, mixed, suite)
    encoded = payload.encode_responder(original, P_R)
    assert len(encoded) == P_R
    assert payload.decode_responder_untrusted(encoded) == original


@settings(max_examples=examples(100), deadline=None, database=None)
@given(st.integers(0, 255), st.text(max_size=300))
def test_refusal_round_trip(code: int, detail: str) -> None:
    """A detail is cut where it does not fit, and holds nothing that steers a terminal."""
    encoded = payload.encode_refusal(Refusal(code, detail), REASON)
    assert len(encoded) == REASON
    decoded = payload.decode_refusal_untrusted(encoded)
    assert decoded.code == code
    assert decoded.detail.isprintable() or not decoded.detail
    expected = "".join(char if char.isprintable() else "?" for char in detail)
    if len(detail.encode()) <= REASON - 40:
        assert decoded.detail == expected
    else:
        assert expected.startswith(decoded.detail)


def test_keys_that_are_not_known_are_ignored() -> None:
    """A later minor version may add some, and says so."""
    newer = with_fields(GOOD_I, minor=7, something={"new": [1, 2, None]})
    decoded = payload.decode_initiator_untrusted(newer)
    assert decoded.announcement == announcement(minor=7)
    assert payload.decode_responder_untrusted(with_fields(GOOD_R, minor=9, x=b"")).mixed == 1
    assert payload.decode_refusal_untrusted(with_fields(GOOD_REASON, more=1.5)).code == 2


def right_map(data: bytes, extra: bytes = b"") -> bytes:
    """The payload with another pair at the end of its map; `extra` is encoded already."""
    encoded = data[2 : 2 + int.from_bytes(data[:2], "big")]
    encoded = bytes([encoded[0] + bool(extra)]) + encoded[1:] + extra
    return (len(encoded).to_bytes(2, "big") + encoded).ljust(len(data), b"\0")


IGNORED = {
    "a float": "fb3ff8000000000000",
    "half a float": "f93e00",
    "not a number": "f97e00",
    "null": "f6",
    "undefined": "f7",
    "a simple value": "f820",
    "a big integer": "c249010000000000000000",
    "a big negative integer": "c349010000000000000000",
    "a date": "c074323032342d30312d30315430303a30303a30305a",
    "a date that is none": "c061ff",
    "a regular expression": "d8236161",
    "a message": "d824f6",
    "a reference to itself": "d81c81d81d00",
    "a decimal": "c48201c249010000000000000000",
    "a tag of no meaning": "db7fffffffffffffff00",
    "a map with a key twice": "a2616101616102",
    "a map with integers and arrays as keys": "a301008001f500",
    "a text that is not UTF-8": "61ff",
    "eight deep": "81" * 8 + "00",
    "five hundred deep": "81" * 500 + "00",
    "maps five deep": "a16161" * 5 + "00",
    "tags a hundred deep": "c1" * 100 + "00",
    "an integer in nine bytes": "1b0000000000000001",
}


@pytest.mark.parametrize("value", IGNORED.values(), ids=IGNORED)
def test_what_stands_under_an_unknown_key_is_not_looked_at(value: str) -> None:
    extra = cbor2.dumps("x") + bytes.fromhex(value)
    for good, room, decode in (
        (GOOD_I, 1500, payload.decode_initiator_untrusted),
        (GOOD_R, 1500, payload.decode_responder_untrusted),
        (GOOD_REASON, 1500, payload.decode_refusal_untrusted),
    ):
        wide = good.ljust(room, b"\0")
        assert decode(right_map(wide, extra)) == decode(good)


NOT_WELL_FORMED = {
    "nothing": "",
    "reserved": "1c",
    "reserved, 30": "fe",
    "a break": "ff",
    "an array of indefinite length": "9fff",
    "a map of indefinite length": "bfff",
    "bytes of indefinite length": "5f4100ff",
    "a text of indefinite length": "7fff",
    "indefinite length, deep": "81819fff",
    "false in two bytes": "f814",
    "a simple value below 32 in two bytes": "f81f",
    "bytes beyond the end": "5affffffff",
    "an array beyond the end": "9bffffffffffffffff",
    "a map beyond the end": "bbffffffffffffffff",
    "a tag of nothing": "c1",
    "an argument that is cut": "1b00",
}


@pytest.mark.parametrize("value", NOT_WELL_FORMED.values(), ids=NOT_WELL_FORMED)
def test_what_stands_under_an_unknown_key_has_to_be_well_formed(value: str) -> None:
    with pytest.raises(PacketRejected):
        payload.decode_initiator_untrusted(
            right_map(GOOD_I, cbor2.dumps("x") + bytes.fromhex(value))
        )


KEYS_THAT_ARE_REFUSED = {
    "an integer": "01",
    "a negative integer": "20",
    "bytes": "4178",
    "a boolean": "f5",
    "null": "f6",
    "a float": "f93e00",
    "an array": "80",
    "a text with a tag": "d9d9f76178",
    "a text that is not UTF-8": "61ff",
    "a surrogate": "63eda080",
    "a text of indefinite length": "7f6178ff",
}


@pytest.mark.parametrize("key", KEYS_THAT_ARE_REFUSED.values(), ids=KEYS_THAT_ARE_REFUSED)
def test_keys_are_texts(key: str) -> None:
    """That of a key which is not known, too."""
    with pytest.raises(PacketRejected):
        payload.decode_initiator_untrusted(right_map(GOOD_I, bytes.fromhex(key) + b"\0"))
    assert payload.decode_initiator_untrusted(right_map(GOOD_I, b"\x61x\0"))


def test_a_key_that_is_not_known_stands_there_once() -> None:
    twice = right_map(right_map(GOOD_I, b"\x61x\0"), b"\x61x\1")
    with pytest.raises(PacketRejected, match="twice"):
        payload.decode_initiator_untrusted(twice)
    longer = right_map(right_map(GOOD_I, b"\x61x\0"), b"\x78\1x\1")
    with pytest.raises(PacketRejected, match="twice"):
        payload.decode_initiator_untrusted(longer)


KINDS = {
    "false": "f4",
    "true": "f5",
    "null": "f6",
    "undefined": "f7",
    "a simple value": "f820",
    "half a float": "f90000",
    "half a float that looks like false": "f90014",
    "a float": "fa43960000",
    "a double": "fb4072c00000000000",
    "not a number": "f97e00",
    "an infinity": "f97c00",
    "a small big integer": "c24101",
    "a big integer": "c249010000000000000000",
    "a negative big integer": "c34100",
    "an integer with a tag": "d9d9f701",
    "the largest integer": "1bffffffffffffffff",
    "the smallest integer": "3bffffffffffffffff",
    "an array": "8101",
    "a map": "a0",
    "a text": "6131",
    "bytes": "4131",
    "bytes with a tag": "d9d9f75820" + "11" * 32,
    "a text with a tag": "d9d9f76131",
    "an array with a tag": "d9d9f780",
    "a boolean with a tag": "d9d9f7f5",
    "a set": "d9010280",
    "deep": "81" * 400 + "00",
}
FITS = {
    "minor": [],
    "wg": [],
    "port": [],
    "mode": [],
    "interval": [],
    "starts": ["false", "true"],
    "prefixes": [],
    "keys": [],
    "mixed": [],
    "suite": [],
    "code": [],
    "detail": ["a text"],
    "failed": ["an array"],
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_of_any_other_kind(name: str, kind: str) -> None:
    """No key takes a value that is not of just its type."""
    good, decode = {
        "keys": (GOOD_I, payload.decode_initiator_untrusted),
        "code": (GOOD_REASON, payload.decode_refusal_untrusted),
        "detail": (GOOD_REASON, payload.decode_refusal_untrusted),
        "failed": (GOOD_REASON, payload.decode_refusal_untrusted),
    }.get(name, (GOOD_R, payload.decode_responder_untrusted))
    encoded = b"".join(
        cbor2.dumps(key) + cbor2.dumps(value)
        for key, value in fields_of(good).items()
        if key != name
    )
    count = len(fields_of(good).keys() | {name})
    encoded = bytes([0xA0 | count]) + encoded + cbor2.dumps(name) + bytes.fromhex(KINDS[kind])
    data = (len(encoded).to_bytes(2, "big") + encoded).ljust(P_R, b"\0")
    if kind in FITS[name]:
        assert decode(data)
        return
    with pytest.raises(PacketRejected):
        decode(data)


@pytest.mark.parametrize("head", ["18", "19", "1a", "1b"])
def test_an_integer_may_have_more_bytes_than_it_needs(head: str) -> None:
    """As may every length: the encoding need not be the shortest."""
    size = 1 << (int(head, 16) - 0x18)
    encoded = b"".join(
        bytes([0x60 | int(head, 16) & 31]) + len(key).to_bytes(size, "big") + key.encode() + value
        for key, value in (
            ("code", bytes.fromhex(head) + (2).to_bytes(size, "big")),
            ("detail", bytes([0x60 | int(head, 16) & 31]) + (2).to_bytes(size, "big") + b"no"),
        )
    )
    encoded = bytes([0xA0 | int(head, 16) & 31]) + (2).to_bytes(size, "big") + encoded
    data = (len(encoded).to_bytes(2, "big") + encoded).ljust(REASON, b"\0")
    assert payload.decode_refusal_untrusted(data) == Refusal(2, "no")


def test_a_detail_has_at_most_200_bytes() -> None:
    assert payload.decode_refusal_untrusted(with_fields(GOOD_REASON, detail="ü" * 100))
    for detail in ("x" * 201, "ü" * 100 + "x"):
        with pytest.raises(PacketRejected, match="detail"):
            payload.decode_refusal_untrusted(with_fields(GOOD_REASON, detail=detail))


def test_every_byte_of_padding_is_zero() -> None:
    begin = 2 + int.from_bytes(GOOD_REASON[:2], "big")
    for at in range(begin, REASON):
        with pytest.raises(PacketRejected, match="length"):
            payload.decode_refusal_untrusted(GOOD_REASON[:at] + b"\1" + GOOD_REASON[at + 1 :])


def test_counters_come_along() -> None:
    told = announcement(traffic=Traffic(sent=2**64 - 1, received=0))
    data = payload.encode_initiator(InitiatorPayload(told, ()), P_I)
    assert payload.decode_initiator_untrusted(data).announcement == told
    data = payload.encode_responder(ResponderPayload(told, mixed=0, suite=1), P_R)
    assert payload.decode_responder_untrusted(data).announcement == told


def test_an_older_version_ignores_the_counters_and_tells_none() -> None:
    assert payload.decode_initiator_untrusted(GOOD_I).announcement.traffic is None
    told = announcement(traffic=Traffic(1, 2))
    fields = fields_of(payload.encode_initiator(InitiatorPayload(told, ()), P_I))
    assert fields.keys() - fields_of(GOOD_I).keys() == {"tx", "rx"}


def test_counters_give_way_where_room_is_short() -> None:
    """Nothing that fitted before is refused for their sake."""
    told = announcement(prefixes=v6(MAX_PREFIXES), traffic=Traffic(2**64 - 1, 2**64 - 1))
    bare = announcement(prefixes=v6(MAX_PREFIXES))
    with_and_without = set()
    for length in range(20, 64):
        keys = tuple(listed(f"kme{n}", names=length) for n in range(4))
        try:
            wanted = payload.encode_initiator(InitiatorPayload(bare, keys), P_I)
        except ValueError:
            with pytest.raises(ValueError, match="announce fewer prefixes"):
                payload.encode_initiator(InitiatorPayload(told, keys), P_I)
            break
        data = payload.encode_initiator(InitiatorPayload(told, keys), P_I)
        told_here = payload.decode_initiator_untrusted(data).announcement.traffic
        with_and_without.add(told_here is not None)
        assert told_here is not None or data == wanted
    assert with_and_without == {True, False}


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("minor", [None, -1, 65536, True, "0", 2**64]),
        ("wg", [None, b"", bytes(31), bytes(33), "k" * 32, [0] * 32]),
        ("port", [None, -1, 65536, True, 51820.0]),
        ("mode", [None, -1, 3, 2**63, False]),
        ("interval", [None, 0, MAX_INTERVAL + 1, -120, 120.5]),
        ("starts", [None, 0, 1, "yes"]),
        ("twins", [0, 1, "yes", []]),
        (
            "prefixes",
            [
                None,
                {},
                [1],
                [[]],
                [[24]],
                [[24, b"\x0a\0\0\0", 1]],
                [["24", b"\x0a\0\0\0"]],
                [[True, b"\x0a\0\0\0"]],
                [[33, b"\x0a\0\0\0"]],
                [[-1, b"\x0a\0\0\0"]],
                [[129, bytes(16)]],
                [[2**40, bytes(16)]],
                [[8, b"\x0a\1\0\0"]],
                [[8, b"\x0a"]],
                [[8, "10.0.0.0"]],
                [[0, bytes(4)]] * (MAX_PREFIXES + 1),
            ],
        ),
    ],
)
def test_announcements_that_are_refused(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(PacketRejected):
            payload.decode_initiator_untrusted(with_fields(GOOD_I, **{name: value}))
        with pytest.raises(PacketRejected):
            payload.decode_responder_untrusted(with_fields(GOOD_R, **{name: value}))


KEY: list[Any] = ["qkd", "kme", "sae", ["id"], 256, True]


@pytest.mark.parametrize(
    "keys",
    [
        None,
        {},
        b"",
        [KEY] * (MAX_EXTERNAL_KEYS + 1),
        [[]],
        [KEY[:5]],
        [[*KEY, 0]],
        *([[*KEY[:n], value, *KEY[n + 1 :]]] for n in range(3) for value in (1, b"x", None)),
        *([[*KEY[:n], "x" * (MAX_NAME_LENGTH + 1), *KEY[n + 1 :]]] for n in range(2)),
        [[*KEY[:2], "x" * (MAX_SAE_LENGTH + 1), *KEY[3:]]],
        *([[*KEY[:n], "line\nbreak", *KEY[n + 1 :]]] for n in range(3)),
        [["qkd", "kme", "sae", "id", 256, True]],
        [["qkd", "kme", "sae", [1], 256, True]],
        [["qkd", "kme", "sae", ["id"] * (MAX_KEY_IDS + 1), 256, True]],
        [["qkd", "kme", "sae", ["i" * (MAX_KEY_ID_LENGTH + 1)], 256, True]],
        [["qkd", "kme", "sae", ["\x1b[2J"], 256, True]],
        *(
            [["qkd", "kme", "sae", ["id"], bits, True]]
            for bits in (-8, 0, 8, 120, 257, 8200, 2**70)
        ),
        *([["qkd", "kme", "sae", ["id"], bits, False]] for bits in (-8, 8193, True, "256")),
        *([["qkd", "kme", "sae", ["id"], 256, present]] for present in (0, 1, None, "yes")),
    ],
    ids=repr,
)
def test_listings_that_are_refused(keys: Any) -> None:
    with pytest.raises(PacketRejected):
        payload.decode_initiator_untrusted(with_fields(GOOD_I, keys=keys))


@pytest.mark.parametrize("value", [None, -1, 2**64, True, 1.0, "1"], ids=repr)
@pytest.mark.parametrize("name", ["tx", "rx"])
def test_counters_that_are_refused(name: str, value: Any) -> None:
    for good, decode in (
        (GOOD_I, payload.decode_initiator_untrusted),
        (GOOD_R, payload.decode_responder_untrusted),
    ):
        with pytest.raises(PacketRejected):
            decode(with_fields(good, **{"tx": 1, "rx": 1, name: value}))


@pytest.mark.parametrize("name", ["tx", "rx"])
def test_one_counter_alone_is_refused(name: str) -> None:
    with pytest.raises(PacketRejected):
        payload.decode_initiator_untrusted(with_fields(GOOD_I, **{name: 1}))


def test_an_absent_key_may_have_any_length() -> None:
    decoded = payload.decode_initiator_untrusted(
        with_fields(GOOD_I, keys=[["qkd", "kme", "sae", [], 0, False]])
    )
    assert [entry.present for entry in decoded.external] == [False]


@pytest.mark.parametrize(
    ("name", "values"),
    [("mixed", [None, -1, 5, True, "1"]), ("suite", [None, -1, 16, True])],
)
def test_responder_fields_that_are_refused(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(PacketRejected):
            payload.decode_responder_untrusted(with_fields(GOOD_R, **{name: value}))


@pytest.mark.parametrize(
    ("name", "values"), [("code", [None, -1, 256, True]), ("detail", [None, b"x", 1])]
)
def test_refusals_that_are_refused(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(PacketRejected):
            payload.decode_refusal_untrusted(with_fields(GOOD_REASON, **{name: value}))


def sized(encoded: bytes) -> bytes:
    return (len(encoded).to_bytes(2, "big") + encoded).ljust(P_I, b"\0")


def test_encodings_that_are_refused() -> None:
    right = GOOD_I[2 : 2 + int.from_bytes(GOOD_I[:2], "big")]
    assert right[0] == 0xA8  # a map of eight
    wrong = {
        "nothing": bytes(P_I),
        "length beyond the end": (P_I - 1).to_bytes(2, "big") + right.ljust(P_I - 2, b"\0"),
        "length too small": (len(right) - 1).to_bytes(2, "big") + GOOD_I[2:],
        "length too large": (len(right) + 1).to_bytes(2, "big") + GOOD_I[2:],
        "no zeros behind": GOOD_I[:-1] + b"\1",
        "a list": sized(cbor2.dumps(list(fields_of(GOOD_I)))),
        "a text": sized(cbor2.dumps("text")),
        "two maps": sized(right + right),
        "indefinite length": sized(b"\xbf" + right[1:] + b"\xff"),
        "a key twice": sized(b"\xa9" + right[1:] + cbor2.dumps("port") + cbor2.dumps(1)),
        "cut": sized(right[:-1]),
        "deep": sized(b"\x81" * 500),
        "a huge text": sized(b"\x7b" + b"\xff" * 8),
        "a huge map": sized(b"\xbb" + b"\x7f" + b"\xff" * 7),
        "a bad text": sized(b"\xa1\x61\xff\x00"),
        "itself": sized(b"\xd8\x1c\xa1\x00\xd8\x1d\x00"),
    }
    for name, data in wrong.items():
        assert len(data) == P_I, name
        with pytest.raises(PacketRejected):
            payload.decode_initiator_untrusted(data)


# ---- what fits


def test_lengths_fill_an_init_conf() -> None:
    room = {}
    for number in (1, 2):
        suite = make_suite(number, random=SeededBytes(b""))
        room[number] = initiator_payload_length(suite)
        sealed = room[number] + 16 + suite.hash_length + 16
        assert suite.biscuit_length + sealed == wire.INIT_CONF_LENGTH == 1200
    assert room == {1: 1008, 2: 960}


LARGEST = Traffic(2**64 - 1, 2**64 - 1)


def largest(prefixes: tuple[Prefix, ...]) -> Announcement:
    return announcement(
        wireguard_port=65535,
        interval=MAX_INTERVAL,
        minor=MAX_MINOR_VERSION,
        prefixes=prefixes,
        twins=True,
    )


def room_needed(said: InitiatorPayload) -> int:
    """The sum of docs/protocol.md §5.5, an upper bound that is met by large values."""

    def text(value: str) -> int:
        size = len(value.encode())
        return size + (1 if size < 24 else 2 if size < 256 else 3)

    size = 106 + sum(20 if p.version == 6 else 8 for p in said.announcement.prefixes)
    for entry in said.external:
        reference = entry.reference
        texts = (reference.source_type, reference.source, reference.sae, *reference.key_ids)
        size += 6 + sum(text(value) for value in texts)
    return size


@settings(max_examples=examples(100), deadline=None, database=None)
@given(ANNOUNCEMENTS, st.lists(LISTINGS, max_size=MAX_EXTERNAL_KEYS).map(tuple))
def test_the_sum_of_what_fits(announced: Announcement, keys: tuple[ExternalListing, ...]) -> None:
    said = InitiatorPayload(announced, keys)
    assert payload.encode_initiator(said, 2 + room_needed(said))


def test_the_sum_is_met() -> None:
    said = InitiatorPayload(largest(v6(16)), tuple(listed(f"k{n}", names=64) for n in range(4)))
    needed = room_needed(said)
    assert payload.encode_initiator(said, 2 + needed)
    with pytest.raises(ValueError, match=f"has {needed} bytes"):
        payload.encode_initiator(said, 1 + needed)


def test_what_a_responder_says_always_fits() -> None:
    said = replace(largest(v6(MAX_PREFIXES)), traffic=LARGEST)
    data = payload.encode_responder(ResponderPayload(said, MAX_EXTERNAL_KEYS, 2), P_R)
    assert payload.decode_responder_untrusted(data).announcement.traffic == LARGEST


def test_the_room_that_counters_take() -> None:
    """24 bytes, docs/protocol.md §5.5: where they are not there, the counters are not either."""
    bare = InitiatorPayload(largest(v6(16)), (listed("k", names=64),))
    told = InitiatorPayload(replace(bare.announcement, traffic=LARGEST), bare.external)
    needed = 2 + room_needed(bare)
    for length, traffic in ((needed + 24, LARGEST), (needed + 23, None), (needed, None)):
        data = payload.encode_initiator(told, length)
        assert payload.decode_initiator_untrusted(data).announcement.traffic == traffic


@pytest.mark.parametrize(
    ("prefixes", "keys"),
    [
        # the figures of docs/protocol.md §5, "What fits"
        (16, [listed(f"k{n}", names=24, ids=1) for n in range(4)]),
        (16, [listed(f"k{n}", names=64, ids=1) for n in range(2)]),
        (16, [listed(f"k{n}", names=64, ids=2) for n in range(2)]),
        (6, [listed(f"k{n}", names=64, ids=1) for n in range(4)]),
        (3, [listed(f"k{n}", names=32, ids=4, id_length=28) for n in range(4)]),
        (
            8,
            [
                ExternalListing(
                    ExternalKeyReference("qkd", "k" * 64, "s" * 291, ("i" * 300,), 256), True
                )
            ],
        ),
    ],
)
def test_large_configurations_that_fit(prefixes: int, keys: list[ExternalListing]) -> None:
    said = InitiatorPayload(largest(v6(prefixes)), tuple(keys))
    assert payload.decode_initiator_untrusted(payload.encode_initiator(said, P_I)) == said


@pytest.mark.parametrize(
    ("prefixes", "keys"),
    [
        (16, [listed(f"k{n}", names=64) for n in range(4)]),
        (0, [listed(f"k{n}", names=64, ids=4, id_length=64) for n in range(4)]),
        (
            10,
            [
                ExternalListing(
                    ExternalKeyReference("qkd", "k" * 64, "s" * 291, ("i" * 300,), 256), True
                )
            ],
        ),
    ],
)
def test_what_does_not_fit_says_what_to_do(prefixes: int, keys: list[ExternalListing]) -> None:
    with pytest.raises(ValueError, match=r"bytes, 958 fit: announce fewer prefixes, or name"):
        payload.encode_initiator(InitiatorPayload(largest(v6(prefixes)), tuple(keys)), P_I)


@pytest.mark.parametrize("failed", [(), (0,), (1, 3), (0, 1, 2, 3)])
def test_a_refusal_says_which_keys_failed(failed: tuple[int, ...]) -> None:
    said = Refusal(4, "x" * 300, failed)
    data = payload.encode_refusal(said, wire.REJECT_PAYLOAD_LENGTH)
    assert len(data) == wire.REJECT_PAYLOAD_LENGTH
    read = payload.decode_refusal_untrusted(data)
    assert (read.code, read.failed) == (4, failed)
    assert read.detail == "x" * 200


@pytest.mark.parametrize(
    "failed",
    [1, "0", {}, [True], ["0"], [-1], [4], [1, 0], [0, 0], [0, 1, 2, 3, 3]],
    ids=repr,
)
def test_what_no_list_of_failed_keys_is(failed: Any) -> None:
    data = payload.encode_refusal(Refusal(4, ""), wire.REJECT_PAYLOAD_LENGTH)
    with pytest.raises(PacketRejected):
        payload.decode_refusal_untrusted(with_fields(data, failed=failed))


def test_what_is_allowed_gives_way_to_all_the_rest() -> None:
    """It is sent where there is room; it keeps no exchange from beginning."""
    said = announcement(prefixes=v6(16), allows=v6(16))
    p_r = payload.encode_responder(ResponderPayload(said, 4, 1), P_R)
    assert payload.decode_responder_untrusted(p_r).announcement.allows == v6(16)
    for keys, told in ((0, v6(16)), (4, None)):
        entries = tuple(listed(f"kme{n}", names=64) for n in range(keys))
        few = announcement(prefixes=v6(4), allows=v6(16))
        p_i = payload.encode_initiator(InitiatorPayload(few, entries), P_I)
        assert payload.decode_initiator_untrusted(p_i).announcement.allows == told
    many = announcement(allows=v6(payload.MAX_PREFIXES + 1))
    p_i = payload.encode_initiator(InitiatorPayload(many, ()), P_I)
    assert payload.decode_initiator_untrusted(p_i).announcement.allows is None
