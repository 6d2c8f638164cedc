"""Labels keep derivations apart: each is there once, and none begins another."""

from __future__ import annotations

from itertools import permutations

from kex import labels
from kex.suites import SUITE_NUMBERS, suite


def test_all_holds_every_label() -> None:
    constants = {name: value for name, value in vars(labels).items() if isinstance(value, bytes)}
    assert sorted(constants.values()) == sorted(labels.ALL)


def test_labels_are_distinct() -> None:
    assert len(set(labels.ALL)) == len(labels.ALL)


def test_no_label_begins_another() -> None:
    names = [suite(number, random=bytes).protocol_name for number in SUITE_NUMBERS]
    for one, other in permutations((*labels.ALL, *names), 2):
        assert not other.startswith(one), (one, other)


def test_the_label_of_x_wing_is_the_drafts() -> None:
    assert labels.KEM_MLKEM768_X25519.hex() == "5c2e2f2f5e5c"
