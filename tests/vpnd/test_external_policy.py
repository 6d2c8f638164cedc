"""What a link's policy says, from facts alone."""

from __future__ import annotations

from typing import Any

import pytest

from kex.events import RejectCode
from kex.external import ExternalMode
from vpnd import external_policy as policy
from vpnd.config_model import ExternalKeys, validate
from vpnd.config_source import Source
from vpnd.external_policy import Step
from vpnd.keysource.base import SourceError, SourceFault

PREFER, REQUIRE, OFF = ExternalMode.PREFER, ExternalMode.REQUIRE, ExternalMode.OFF


def table(mode: str = "require", **more: Any) -> ExternalKeys:
    sources = [{"source": "a", "peer_sae": "x"}, {"source": "b", "peer_sae": "y"}]
    return validate(ExternalKeys, {"mode": mode, "sources": sources} | more, Source(None))


def error(source: str, fault: SourceFault = SourceFault.UNREACHABLE) -> SourceError:
    return SourceError(source, fault, fault.value)


@pytest.mark.parametrize(
    ("mode", "over", "effective"),
    [
        ("off", False, OFF),
        ("off", True, OFF),
        ("prefer", False, PREFER),
        ("prefer", True, REQUIRE),
        ("require", False, REQUIRE),
        ("require", True, REQUIRE),
    ],
)
def test_the_mode_that_exchanges_go_by(mode: str, over: bool, effective: ExternalMode) -> None:
    assert policy.effective_mode(table(mode), over_limit=over) is effective


@pytest.mark.parametrize(
    ("more", "left_out", "must", "asked"),
    [
        ({}, (), None, "ab"),
        ({}, ("a",), None, "ab"),  # both are needed
        ({"at_least": 1}, ("a",), None, "b"),
        ({"at_least": 1}, ("a",), "a", "ab"),
        ({"at_least": 1}, ("a", "b"), None, "ab"),
        ({"require": ["a"]}, ("a",), None, "ab"),
        ({"require": ["a"]}, ("b",), None, "a"),
        ({"mode": "prefer"}, ("b",), None, "a"),
        ({"mode": "prefer"}, ("a", "b"), None, "ab"),
    ],
)
def test_which_sources_are_asked(more: Any, left_out: Any, must: str | None, asked: str) -> None:
    found = policy.to_ask(table(**more), left_out=left_out, must=must)
    assert "".join(use.source for use in found) == asked


MISMATCH = SourceFault.MISMATCH
LIMITED = SourceFault.LIMITED
TIMEOUT = SourceFault.TIMEOUT


@pytest.mark.parametrize(
    ("more", "mode", "given", "faults", "options", "step", "code"),
    [
        ({}, REQUIRE, "ab", {}, {}, Step.MIX, None),
        ({}, REQUIRE, "a", {"b": TIMEOUT}, {}, Step.END, RejectCode.POLICY),
        ({}, REQUIRE, "", {"a": TIMEOUT, "b": TIMEOUT}, {}, Step.END, RejectCode.POLICY),
        ({"at_least": 1}, REQUIRE, "a", {"b": TIMEOUT}, {}, Step.MIX, None),
        ({"require": ["b"]}, REQUIRE, "a", {"b": TIMEOUT}, {}, Step.END, RejectCode.POLICY),
        ({"require": ["b"]}, REQUIRE, "b", {"a": TIMEOUT}, {}, Step.MIX, None),
        ({"mode": "prefer"}, PREFER, "a", {"b": TIMEOUT}, {}, Step.MIX, None),
        ({"mode": "prefer"}, PREFER, "", {"a": TIMEOUT, "b": TIMEOUT}, {}, Step.MIX, None),
        # over the limit
        ({"mode": "prefer"}, REQUIRE, "", {"a": TIMEOUT}, {}, Step.END, RejectCode.POLICY),
        # a mismatch is never a fallback
        ({"mode": "prefer"}, PREFER, "a", {"b": MISMATCH}, {}, Step.END, RejectCode.KEY_MISMATCH),
        # an own limit is none while a good key lives
        (
            {"mode": "prefer"},
            PREFER,
            "",
            {"a": LIMITED, "b": LIMITED},
            {"good_key_lives": True},
            Step.END,
            RejectCode.POLICY,
        ),
        ({"mode": "prefer"}, PREFER, "", {"a": LIMITED, "b": LIMITED}, {}, Step.MIX, None),
        # one that somebody waits for
        (
            {"mode": "prefer"},
            PREFER,
            "a",
            {"b": TIMEOUT},
            {"must": "b"},
            Step.END,
            RejectCode.POLICY,
        ),
        ({"mode": "prefer"}, PREFER, "b", {"a": TIMEOUT}, {"must": "b"}, Step.MIX, None),
    ],
)
def test_what_the_initiator_does(
    more: Any,
    mode: ExternalMode,
    given: str,
    faults: dict[str, SourceFault],
    options: Any,
    step: Step,
    code: RejectCode | None,
) -> None:
    failed = {name: error(name, fault) for name, fault in faults.items()}
    found = policy.as_initiator(table(**more), mode, given=given, failed=failed, **options)
    assert found.step is step
    if step is Step.END:
        assert found.code is code
        assert found.reason


def test_what_the_responder_asks_for_by_name() -> None:
    def objection(*listed: str, here: ExternalMode = REQUIRE) -> str:
        return policy.as_responder(named, here, listed, peers=PREFER)

    named = table(require=["a"])
    assert objection("b") == (
        "external keys: require at the responder, prefer at the initiator: "
        "a must be mixed, the initiator has none"
    )
    assert objection("a") == ""
    assert objection(here=PREFER) == ""
    assert "two keys of a" in objection("a", "a")
    assert "two keys of b" in objection("a", "b", "b", here=PREFER)
    named = table()
    assert objection() == "", "their number is counted elsewhere"


def test_what_an_initiator_is_told() -> None:
    assert policy.refusal({1: error("b"), 0: error("a")}) == (RejectCode.KEY_MANAGER, (0, 1))
    mixed = {0: error("a"), 1: error("b", MISMATCH)}
    assert policy.refusal(mixed) == (RejectCode.KEY_MISMATCH, ())


@pytest.mark.parametrize(
    ("more", "mixed", "fallback"),
    [
        ({"mode": "prefer"}, "", True),
        ({"mode": "prefer"}, "a", False),
        ({"mode": "prefer", "at_least": 2}, "a", True),
        ({"mode": "prefer", "at_least": 2}, "ab", False),
        ({"mode": "prefer", "require": ["b"]}, "a", True),
        ({"mode": "prefer", "require": ["b"]}, "b", False),
        ({"mode": "require"}, "", False),
        ({"mode": "off"}, "", False),
    ],
)
def test_what_a_fallback_is(more: Any, mixed: str, fallback: bool) -> None:
    assert policy.is_fallback(table(**more), mixed) is fallback


def test_what_is_missing() -> None:
    assert policy.missing(table(), "b") == ("a",)
    assert policy.missing(table("off"), "") == ()


def test_policies_of_both_ends() -> None:
    assert policy.modes_differ(PREFER, PREFER) == ""
    assert policy.modes_differ(OFF, REQUIRE) == "external keys: off here, require at the peer"


def test_what_the_other_end_is_told_is_bounded() -> None:
    assert policy.bounded("x" * 160) == "x" * 160
    assert len(policy.bounded("x" * 161)) == 160
