"""Key managers that answer what cannot be used, at each end of a link: a row each.

The lab is that of backbone.py; what has to come of a row, at both ends of a link in `require` and
of one in `prefer`, is in broken_kme.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest
from backbone import FAR, HUB, Backbone, in_a_thread
from broken_kme import CHECKS, Tell, fault, keys_differ, nothing_fails, responder_fails, row
from report import Case

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long, pytest.mark.long]


@dataclass(frozen=True, slots=True)
class Row:
    """A fault, and the code that it has at the end whose key manager is told."""

    name: str
    tell: Tell
    initiator: str
    responder: str


def _same(name: str, code: str, tell: Tell | None = None) -> Row:
    return Row(name, tell or fault(name), code, code)


def _statuses() -> Iterator[Row]:
    """What each HTTP status says, whatever comes with it. 400, 401 and 404 to a call by ID say that
    there is no such key, for the status of the pair is answered."""
    codes = {
        400: ("source_refused", "source_unknown_key"),
        401: ("source_unauthorized", "source_unknown_key"),
        404: ("source_refused", "source_unknown_key"),
        422: ("source_refused", "source_refused"),
        500: ("source_unavailable", "source_unavailable"),
        503: ("source_unavailable", "source_unavailable"),
    }
    for status, (initiator, responder) in codes.items():
        for body in ("json", "html", "empty"):
            tell = fault("status", status=status, body=body)
            yield Row(f"{status}-{body}", tell, initiator, responder)


ROWS: Final = [
    *_statuses(),
    _same("json-cut", "source_bad_answer"),
    _same("wrong-shape", "source_bad_answer"),
    _same("nulls", "source_wrong_key_id"),
    _same("huge", "source_bad_answer"),
    _same("connection-cut", "source_bad_answer"),
    _same("key-short", "source_bad_key"),
    _same("key-long", "source_bad_key"),
    _same("key-not-encoded", "source_bad_key"),
    Row("keys-none", fault("keys-none"), "source_empty", "source_unknown_key"),
    _same("keys-extra", "source_bad_answer"),
    _same("id-missing", "source_wrong_key_id"),
    _same("id-doubled", "source_wrong_key_id"),
]
CASES: Final = [pytest.param(end, each, id=f"{end}-{each.name}") for each in ROWS for end in CHECKS]


@pytest.fixture(scope="module")
def backbone() -> Iterator[Backbone]:
    with in_a_thread() as running:
        yield running


@pytest.mark.parametrize(("end", "broken"), CASES)
def test_an_answer_that_cannot_be_used(
    backbone: Backbone, case: Case, end: str, broken: Row
) -> None:
    code = broken.initiator if end == "initiator" else broken.responder
    row(backbone, CHECKS[end], case, broken.tell, code)


@pytest.mark.parametrize("ends", [(HUB,), FAR, (HUB, *FAR)], ids=["initiator", "responder", "both"])
def test_unknown_fields_do_no_harm(backbone: Backbone, case: Case, ends: tuple[str, ...]) -> None:
    row(backbone, nothing_fails, case, fault("unknown-fields"), *ends)


def test_an_id_other_than_the_one_asked_for(backbone: Backbone, case: Case) -> None:
    row(backbone, responder_fails, case, fault("id-other"), "source_wrong_key_id")


def test_an_id_that_the_far_end_does_not_know(backbone: Backbone, case: Case) -> None:
    """The initiator cannot see that; the responder's key manager has never heard of the ID."""
    row(
        backbone,
        responder_fails,
        case,
        fault("id-other"),
        "source_unknown_key",
        tell_initiator=True,
    )


@pytest.mark.parametrize("ends", [(HUB,), FAR], ids=["initiator", "responder"])
def test_two_key_managers_with_different_keys_under_one_id(
    backbone: Backbone, case: Case, ends: tuple[str, ...]
) -> None:
    row(backbone, keys_differ, case, fault("key-differs"), *ends)


def test_an_empty_pool_at_the_initiator(backbone: Backbone, case: Case) -> None:
    row(backbone, CHECKS["initiator"], case, fault("pool-empty"), "source_empty")


def test_a_pool_without_the_key_at_the_responder(backbone: Backbone, case: Case) -> None:
    row(backbone, responder_fails, case, fault("pool-empty"), "source_unavailable")
