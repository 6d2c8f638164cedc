"""External keys: what is mixed, in which order, and that no two lists look alike."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kex import external
from kex.events import (
    ExchangeFailed,
    ExternalKeysWanted,
    FailureCode,
    KeyEstablished,
    RejectCode,
    RejectSent,
    Role,
    StartReason,
)
from kex.external import (
    MAX_EXTERNAL_KEYS,
    MAX_KEY_IDS,
    MAX_KEY_LENGTH,
    MIN_KEY_LENGTH,
    ExternalKey,
    ExternalKeyReference,
    ExternalMode,
    root_input,
)
from kex.secret import Secret
from kex.wire import MessageType
from tests.examples import examples

from .harness import (
    OFF,
    PREFER,
    REQUIRE,
    SUITES,
    KeySource,
    Network,
    absent,
    agreeing,
    disagreeing,
    external_key,
    finish,
    pair,
    same_key,
)


def reference(**changes: Any) -> ExternalKeyReference:
    values: dict[str, Any] = {
        "source_type": "qkd",
        "source": "kme",
        "sae": "sae",
        "key_ids": ("id",),
        "bits": 256,
    }
    return ExternalKeyReference(**(values | changes))


def mixed(key: bytes | None) -> ExternalKey:
    return ExternalKey(reference(), None if key is None else Secret(key))


# ---- root_input


def test_the_bytes_of_root_input() -> None:
    keys = (mixed(b"k" * 16), mixed(None), mixed(b"m" * 300))
    assert root_input(keys) == (
        b"\x01"
        + b"\x00\x10"
        + b"k" * 16
        + b"\x00"
        + b"\x00\x00"
        + b"\x01"
        + b"\x01\x2c"
        + b"m" * 300
    )
    assert root_input(()) == b""


ANY_KEYS = st.lists(st.one_of(st.none(), st.binary(max_size=40)), max_size=MAX_EXTERNAL_KEYS)


@settings(max_examples=examples(500), deadline=None, database=None)
@given(ANY_KEYS, ANY_KEYS)
def test_no_two_lists_give_the_same_input(one: list[Any], other: list[Any]) -> None:
    inputs = [root_input([mixed(key) for key in keys]) for keys in (one, other)]
    assert (inputs[0] == inputs[1]) == (one == other)


@settings(max_examples=examples(200), deadline=None, database=None)
@given(ANY_KEYS)
def test_the_list_can_be_read_back(keys: list[bytes | None]) -> None:
    """Which is what makes it unambiguous."""
    data, read = root_input([mixed(key) for key in keys]), []
    while data:
        present, size = data[0], int.from_bytes(data[1:3], "big")
        read.append(data[3 : 3 + size] if present else None)
        data = data[3 + size :]
    assert read == keys


def test_short_lists_of_short_keys_all_differ() -> None:
    """All lists of up to three keys of up to two bytes over two values, absent ones among them."""
    keys = [None] + [bytes(k) for n in range(3) for k in itertools.product((0, 1), repeat=n)]
    lists = [combo for n in range(4) for combo in itertools.product(keys, repeat=n)]
    assert len({root_input([mixed(key) for key in combo]) for combo in lists}) == len(lists)


def test_the_order_is_fixed_whatever_the_sources_gave() -> None:
    keys = [
        ExternalKey(reference(source_type="file", source="z"), None),
        ExternalKey(reference(source="a", sae="b"), None),
        ExternalKey(reference(source="a", sae="b", key_ids=("x",)), None),
        ExternalKey(reference(source="a", sae="c"), None),
    ]
    for order in itertools.permutations(keys):
        assert list(external.in_fixed_order(order)) == keys


# ---- bounds


def test_keys_that_are_mixed() -> None:
    for length in (MIN_KEY_LENGTH, 32, MAX_KEY_LENGTH):
        external.check([external_key("kme", length=length)] * MAX_EXTERNAL_KEYS)
    external.check([absent(external_key("kme"))])
    external.check([])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([external_key("kme")] * 5, "at most 4"),
        ([external_key("kme", length=15)], "128 to 8192"),
        ([external_key("kme", length=1025)], "a key of 8200 bits; at most 8192"),
        ([ExternalKey(reference(bits=128), Secret(bytes(32)))], "256 bits, announced are 128"),
        ([ExternalKey(reference(bits=250), Secret(bytes(32)))], "256 bits, announced are 250"),
        ([ExternalKey(reference(bits=-1), None)], "a key of -1 bits"),
        ([ExternalKey(reference(bits=8193), None)], "a key of 8193 bits"),
        ([ExternalKey(reference(source="x" * 65), None)], "a name of 65 bytes"),
        ([ExternalKey(reference(source="ü" * 33), None)], "a name of 66 bytes"),
        ([ExternalKey(reference(sae="x" * 301), None)], "a name of 301 bytes"),
        ([ExternalKey(reference(source_type="x" * 65), None)], "a name of 65 bytes"),
        ([ExternalKey(reference(key_ids=("x" * 301,)), None)], "a key ID of 301 bytes"),
        ([ExternalKey(reference(key_ids=("x",) * (MAX_KEY_IDS + 1)), None)], "5 key IDs"),
    ],
)
def test_keys_that_are_not(keys: list[ExternalKey], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        external.check(keys)


def test_a_key_is_not_shown() -> None:
    shown = repr(ExternalKey(reference(), Secret(b"0123456789abcdef")))
    assert "0123" not in shown
    assert "<secret>" in shown


# ---- in exchanges


def linked(left: Any = PREFER, right: Any = PREFER, *, number: int = 1, **both: Any) -> Network:
    links = {
        "left": {"external_mode": left, **both},
        "right": {"external_mode": right, **both},
    }
    return pair(number, links=links)


def run(network: Network, left: KeySource | None, right: KeySource | None) -> None:
    network["left"].source, network["right"].source = left, right
    network.start()
    network.settle()


def mixed_names(network: Network, name: str) -> list[str]:
    key = network[name].installed[-1]
    return [entry.reference.source for entry in key.external if entry.present]


@pytest.mark.parametrize("number", SUITES)
@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("d", "c", "b", "a")])
@pytest.mark.parametrize("mode", [PREFER, REQUIRE])
def test_keys_that_agree(number: int, names: tuple[str, ...], mode: Any) -> None:
    network = linked(mode, mode, number=number)
    run(network, agreeing(*names), agreeing(*names))
    same_key(network)
    assert mixed_names(network, "left") == mixed_names(network, "right") == sorted(names)


def test_the_responder_is_asked_for_what_is_present_in_the_order_of_p_i() -> None:
    def some(wanted: ExternalKeysWanted) -> tuple[ExternalKey, ...]:
        return (external_key("b"), absent(external_key("c")), external_key("a"))

    network = linked()
    run(network, some, agreeing())
    same_key(network)
    (wanted,) = network["right"].events_of(ExternalKeysWanted)
    assert wanted.role is Role.RESPONDER
    assert [entry.reference.source for entry in wanted.listing] == ["a", "b", "c"]
    assert [entry.present for entry in wanted.listing] == [True, True, False]
    assert [r.source for r in wanted.references] == ["a", "b"]
    assert wanted.deadline == network.now + 8


def test_with_and_without_a_key_are_different_keys() -> None:
    """The same exchange, byte for byte, but for the key that was mixed: another PSK."""
    network = linked()
    network.start()
    network.settle()
    outcomes = set()
    for keys in (
        (),
        (absent(external_key("a")),),
        (external_key("a"),),
        (external_key("a", key=bytes(32)),),
        (external_key("a"), external_key("b")),
    ):
        branch = network.copy()

        def same(wanted: ExternalKeysWanted, keys: tuple[ExternalKey, ...] = keys) -> Any:
            return keys

        branch["right"].source = same
        token = branch["left"].events_of(ExternalKeysWanted)[0].token
        branch["left"].endpoint.external_keys("right", token, keys, branch.now)
        branch.collect()
        branch.settle()
        same_key(branch)
        outcomes.add(branch["left"].installed[-1].psk)
    assert len(outcomes) == 5


@pytest.mark.parametrize("number", SUITES)
@pytest.mark.parametrize("mode", [PREFER, REQUIRE])
def test_keys_that_differ_are_found_before_anything_is_installed(number: int, mode: Any) -> None:
    network = linked(mode, mode, number=number)
    run(network, agreeing("a"), disagreeing)
    (told,) = network["right"].events_of(RejectSent)
    assert told.code is RejectCode.KEY_MISMATCH
    (failed,) = network["left"].events_of(ExchangeFailed)
    assert (failed.code, failed.reject) == (FailureCode.REFUSED, RejectCode.KEY_MISMATCH)
    assert not network["left"].events_of(KeyEstablished)
    assert not network["right"].events_of(KeyEstablished)
    # A mismatch is never a fallback
    network["left"].source, network["right"].source = agreeing("a"), disagreeing
    network.advance(10)
    assert not network["left"].events_of(KeyEstablished)
    finish(network)


@pytest.mark.parametrize("bits", [128, 512])
def test_a_key_of_another_length_is_a_mismatch(bits: int) -> None:
    def other_length(wanted: ExternalKeysWanted) -> tuple[ExternalKey, ...]:
        return tuple(ExternalKey(e.reference, Secret(bytes(bits // 8))) for e in wanted.listing)

    network = linked()
    run(network, agreeing("a"), other_length)
    (told,) = network["right"].events_of(RejectSent)
    assert told.code is RejectCode.KEY_MISMATCH
    finish(network)


@pytest.mark.parametrize("what", ["fewer", "more", "reordered", "not present", "not asked for"])
def test_an_answer_to_another_question_is_the_callers_mistake(what: str) -> None:
    network = linked()
    network["left"].source = lambda wanted: (
        external_key("a"),
        external_key("b"),
        absent(external_key("c")),
    )
    network.start()
    network.settle()
    (wanted,) = network["right"].events_of(ExternalKeysWanted)
    right = [external_key("a"), external_key("b"), absent(external_key("c"))]
    wrong = {
        "fewer": right[:2],
        "more": [*right, external_key("d")],
        "reordered": right[::-1],
        "not present": [right[0], absent(right[1]), right[2]],
        "not asked for": [right[0], right[1], external_key("c")],
    }[what]
    endpoint = network["right"].endpoint
    before = endpoint.state()
    with pytest.raises(ValueError, match="external keys"):
        endpoint.external_keys("left", wanted.token, tuple(wrong), network.now)
    assert endpoint.state() == before
    endpoint.external_keys("left", wanted.token, tuple(right), network.now)
    network.collect()
    network.settle()
    same_key(network)


def test_keys_that_cannot_be_sent_are_the_callers_mistake() -> None:
    network = linked()
    network.start()
    network.settle()
    (wanted,) = network["left"].events_of(ExternalKeysWanted)
    left = network["left"].endpoint
    before = left.state()
    for keys in ([external_key("k")] * 5, [external_key("k", length=8)], [external_key("x" * 65)]):
        with pytest.raises(ValueError, match=r"at most|bits"):
            left.external_keys("right", wanted.token, tuple(keys), network.now)
        assert left.state() == before
    long = [
        ExternalKey(reference(source=f"{n}" * 64, sae="s" * 64, key_ids=("i" * 64,) * 3), None)
        for n in range(4)
    ]
    with pytest.raises(ValueError, match="name external key sources shorter"):
        left.external_keys("right", wanted.token, tuple(long), network.now)
    assert left.state() == before
    left.external_keys("right", wanted.token, (), network.now)
    network.collect()
    network.settle()
    same_key(network)


# ---- where there is no key


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "failing"])
def test_the_initiator_has_none(silent: bool) -> None:
    """`prefer` goes on without, `require` does not; bounded by 30 s."""
    none = None if silent else (lambda wanted: "the key manager does not answer")
    network = linked(PREFER, PREFER)
    run(network, none, agreeing())
    network.advance(31 if silent else 0)
    same_key(network)
    assert mixed_names(network, "right") == []
    network = linked(REQUIRE, REQUIRE)
    run(network, none, agreeing())
    network.advance(31 if silent else 0)
    (failed, *_) = network["left"].events_of(ExchangeFailed)
    assert failed.code is FailureCode.EXTERNAL_KEYS
    assert not network["left"].events_of(KeyEstablished)
    finish(network)


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "failing"])
def test_the_responder_has_none(silent: bool) -> None:
    """It says so after 8 s at most; in `prefer` the initiator begins anew without, at once."""
    none = None if silent else (lambda wanted: "no such key")
    network = linked(PREFER, PREFER)
    run(network, agreeing("a"), none)
    network.advance(8.5 if silent else 0.5)
    (told,) = network["right"].events_of(RejectSent)
    assert told.code is RejectCode.KEY_MANAGER
    same_key(network)
    assert mixed_names(network, "left") == []
    # and the next one asks again
    network["right"].source = agreeing()
    network.start()
    network.settle()
    same_key(network)
    assert mixed_names(network, "left") == ["a"]

    network = linked(REQUIRE, REQUIRE)
    run(network, agreeing("a"), none)
    network.advance(12)
    assert {event.code for event in network["right"].events_of(RejectSent)} == {
        RejectCode.KEY_MANAGER
    }
    assert not network["left"].events_of(KeyEstablished)
    finish(network)


def test_keys_that_come_too_late_install_nothing() -> None:
    network = linked(REQUIRE, REQUIRE)
    run(network, agreeing("a"), None)
    (wanted,) = network["right"].events_of(ExternalKeysWanted)
    network.advance(8.1)
    before = network["right"].endpoint.state()
    network["right"].endpoint.external_keys("left", wanted.token, (external_key("a"),), network.now)
    network["right"].endpoint.external_keys_failed("left", wanted.token, "late", network.now)
    assert network["right"].endpoint.state() == before
    assert not network["right"].events_of(KeyEstablished)
    finish(network)


def test_policies_that_do_not_fit() -> None:
    """Each end obeys its own; both are told."""
    network = linked(OFF, REQUIRE)
    run(network, agreeing("a"), agreeing())
    network.advance(5)
    assert {event.code for event in network["right"].events_of(RejectSent)} == {RejectCode.POLICY}
    assert not network["left"].events_of(KeyEstablished)

    network = linked(REQUIRE, OFF)
    run(network, agreeing("a"), agreeing())
    network.advance(5)
    assert {event.code for event in network["right"].events_of(RejectSent)} == {RejectCode.POLICY}
    assert not network["left"].events_of(KeyEstablished)

    network = linked(PREFER, OFF)
    run(network, agreeing("a"), agreeing())
    network.advance(0.5)
    same_key(network)
    assert mixed_names(network, "left") == []


def test_more_than_one_key_may_be_required() -> None:
    network = linked(PREFER, REQUIRE, external_at_least=2)
    run(network, agreeing("a"), agreeing())
    assert {event.code for event in network["right"].events_of(RejectSent)} == {RejectCode.POLICY}
    network = linked(REQUIRE, REQUIRE, external_at_least=2)
    run(network, agreeing("a"), agreeing())
    assert network["left"].events_of(ExchangeFailed)[0].code is FailureCode.EXTERNAL_KEYS
    network = linked(REQUIRE, REQUIRE, external_at_least=2)
    run(network, agreeing("a", "b"), agreeing())
    same_key(network)


def test_a_fallback_does_not_outlive_a_stricter_policy() -> None:
    """The peer refused in `prefer`, so the next exchange would go without; `require` comes
    between."""
    network = linked(PREFER, PREFER)
    run(network, agreeing("a"), lambda wanted: "no such key")
    left = network["left"].endpoint
    assert left.link("right").skip_external
    left.update_link(replace(left.link("right").config, external_mode=REQUIRE), network.now)
    network.advance(20)
    assert not network["left"].events_of(KeyEstablished)
    assert not [f for f in network.log if f.type is MessageType.RESP_CONF]
    finish(network)
    assert mixed_names(network, "left") == ["kme"]


# ---- what the responder says of the keys that it cannot have


def refused(
    modes: tuple[ExternalMode, ExternalMode], *, code: RejectCode, failed: tuple[int, ...] = ()
) -> Network:
    """An exchange with the keys a and b, which the responder refuses."""
    network = linked(*modes)
    network["left"].source = agreeing("a", "b")
    network.start()
    network.settle()
    (wanted,) = network["right"].events_of(ExternalKeysWanted)
    assert wanted.peer_mode is modes[0]
    network["right"].endpoint.external_keys_failed(
        "left", wanted.token, "not those", network.now, code=code, failed=failed
    )
    network.collect()
    network["right"].source = agreeing()
    return network


@pytest.mark.parametrize("mode", [PREFER, REQUIRE])
def test_a_known_mismatch_is_no_reason_to_go_on_without(mode: ExternalMode) -> None:
    network = refused((mode, mode), code=RejectCode.KEY_MISMATCH)
    network.settle()
    (failed, *_) = network["left"].events_of(ExchangeFailed)
    assert (failed.code, failed.reject) == (FailureCode.REFUSED, RejectCode.KEY_MISMATCH)
    network.advance(1.5)
    same_key(network)
    assert mixed_names(network, "left") == ["a", "b"]


@pytest.mark.parametrize("mode", [PREFER, REQUIRE])
def test_the_initiator_learns_which_keys_could_not_be_had(mode: ExternalMode) -> None:
    network = refused((mode, mode), code=RejectCode.KEY_MANAGER, failed=(1,))
    network["left"].source = agreeing("a")
    network.settle()
    (failed, *_) = network["left"].events_of(ExchangeFailed)
    assert [reference.source for reference in failed.failed] == ["b"]
    network.advance(0.1 if mode is PREFER else 1.5)
    same_key(network)
    assert mixed_names(network, "left") == ["a"], "the others are mixed before none is"


def test_the_others_are_tried_once() -> None:
    network = refused((PREFER, PREFER), code=RejectCode.KEY_MANAGER, failed=(1,))
    network["right"].source = lambda wanted: "none of them"
    network.settle()
    network.advance(0.1)
    same_key(network)
    assert mixed_names(network, "left") == [], "a second refusal means that none is mixed"


def test_where_all_keys_failed_none_is_mixed() -> None:
    network = refused((PREFER, PREFER), code=RejectCode.KEY_MANAGER, failed=(0, 1))
    network.settle()
    network.advance(0.1)
    same_key(network)
    assert mixed_names(network, "left") == []


def test_a_refusal_counts_for_the_next_exchange_alone() -> None:
    """The peer's exchange gave a key in between: the next renewal asks for external keys again."""
    network = refused((PREFER, PREFER), code=RejectCode.KEY_MANAGER, failed=(0, 1))
    network["left"].endpoint.hold()
    network.settle()
    network["right"].source = agreeing("a", "b")
    network["left"].source = agreeing("a", "b")
    assert network["left"].endpoint.link("right").skip_external
    network["right"].endpoint.request_exchange("left", StartReason.REQUESTED, network.now)
    network.collect()
    network.settle()
    same_key(network)
    assert not network["left"].endpoint.link("right").skip_external


def test_only_what_may_be_said_of_keys_is_said() -> None:
    network = linked(REQUIRE, REQUIRE)
    with pytest.raises(ValueError, match="INSTALL_FAILED"):
        network["left"].endpoint.external_keys_failed(
            "right", b"", "", network.now, code=RejectCode.INSTALL_FAILED
        )


@pytest.mark.parametrize("code", [RejectCode.POLICY, RejectCode.KEY_MISMATCH])
def test_prefer_goes_on_without_only_where_none_can_be_had(code: RejectCode) -> None:
    network = linked(PREFER, PREFER)
    network.start()
    network.settle()
    (wanted,) = network["left"].events_of(ExternalKeysWanted)
    assert wanted.peer_mode is None
    network["left"].endpoint.external_keys_failed(
        "right", wanted.token, "not now", network.now, code=code
    )
    network["left"].source = agreeing("a")
    network["right"].source = agreeing()
    network.collect()
    (failed,) = network["left"].events_of(ExchangeFailed)
    assert failed.code is FailureCode.EXTERNAL_KEYS
    network.advance(1.5)
    same_key(network)
    assert mixed_names(network, "left") == ["a"]


def test_a_mismatch_names_who_gave_the_keys() -> None:
    network = linked(REQUIRE, REQUIRE)
    run(network, agreeing("a"), None)
    (wanted,) = network["right"].events_of(ExternalKeysWanted)
    network["right"].endpoint.external_keys(
        "left", wanted.token, disagreeing(wanted), network.now, holders="a here, b there"
    )
    network.collect()
    network.settle()
    (told,) = network["right"].events_of(RejectSent)
    assert told.code is RejectCode.KEY_MISMATCH
    assert told.detail.endswith(": a here, b there")
    (failed, *_) = network["left"].events_of(ExchangeFailed)
    assert failed.detail == told.detail


def test_keys_that_are_listed_and_not_mixed_allow_no_fallback_at_once() -> None:
    """Else an initiator without keys would be refused again and again without a pause."""
    network = linked(PREFER, REQUIRE)
    run(network, lambda wanted: (absent(external_key("a")),), agreeing())
    network.advance(0.5)
    assert len(network["left"].events_of(ExchangeFailed)) == 1


@pytest.mark.parametrize("modes", [(OFF, REQUIRE), (REQUIRE, OFF), (PREFER, REQUIRE)])
def test_policies_that_do_not_fit_are_both_named(modes: tuple[ExternalMode, ExternalMode]) -> None:
    network = linked(*modes)
    run(network, (lambda wanted: "none") if modes[0] is PREFER else agreeing("a"), agreeing())
    (told, *_) = network["right"].events_of(RejectSent)
    (failed, *_) = network["left"].events_of(ExchangeFailed)
    assert told.detail == failed.detail
    assert f"{modes[1].name.lower()} at the responder" in told.detail
    assert f"{modes[0].name.lower()} at the initiator" in told.detail
