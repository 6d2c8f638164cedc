"""The meter's counting, by itself: numbers in, figures out."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd_lab.traffic import NUMBER_LIMIT, Counter, decode_untrusted, encode


def count(counter: Counter, start: int, end: int, *, until: float) -> dict[str, Any]:
    return counter.count(start, end, since=0.0, until=until)


@given(
    sent=st.integers(1, 300),
    loss=st.integers(0, 100),
    copies=st.integers(0, 100),
    cut=st.integers(0, 300),
    seed=st.integers(0, 2**32),
)
def test_counts_are_those_of_a_plain_list(
    sent: int, loss: int, copies: int, cut: int, seed: int
) -> None:
    chance = random.Random(seed)
    arrivals = [n for n in range(sent) if chance.randrange(100) >= loss]
    arrivals += [n for n in arrivals if chance.randrange(100) < copies]
    chance.shuffle(arrivals)
    counter = Counter(silence=1.0)
    for index, number in enumerate(arrivals):
        counter.arrived(number, index * 0.01)
    cut = min(cut, sent)
    for start, end in ((0, sent), (0, cut), (cut, sent)):
        counted = count(counter, start, end, until=len(arrivals) * 0.01)
        there = [number for number in arrivals if start <= number < end]
        assert counted["received"] == len(set(there))
        assert counted["lost"] == end - start - len(set(there))
        assert counted["repeated"] == len(there) - len(set(there))
        late = {n for i, n in enumerate(arrivals) if n not in arrivals[:i] and n < max(arrivals[:i], default=-1)}  # fmt: skip  # noqa: E501
        assert counted["reordered"] == len({n for n in late if start <= n < end})
        missing = [n for first, last in counted["missing"] for n in range(first, last + 1)]
        if len(counted["missing"]) < 100:
            assert missing == [n for n in range(start, end) if n not in set(there)]


def test_gaps_say_where_and_how_long() -> None:
    counter = Counter(silence=0.5)
    for number, now in ((1, 1.0), (2, 1.1), (7, 3.1), (8, 3.2)):
        counter.arrived(number, now)
    gaps = count(counter, 0, 12, until=5.2)["gaps"]
    assert [(gap["after"], gap["before"]) for gap in gaps] == [(2, 7), (-1, 1), (8, None)]
    assert [gap["seconds"] for gap in gaps] == pytest.approx([2.0, 1.0, 2.0])
    assert count(counter, 7, 9, until=5.2)["gaps"] == []
    assert [gap["after"] for gap in count(counter, 5, 7, until=5.2)["gaps"]] == [2]


def test_nothing_at_all_is_one_gap() -> None:
    counted = count(Counter(silence=0.5), 0, 10, until=3.0)
    assert counted["lost"] == 10
    assert counted["missing"] == [(0, 9)]
    assert [gap["seconds"] for gap in counted["gaps"]] == [3.0]


def test_a_datagram_is_read_as_it_was_written() -> None:
    assert decode_untrusted(encode(7, 123, 200), 7) == 123
    assert len(encode(7, 123, 200)) == 200


@pytest.mark.parametrize(
    "data",
    [b"", encode(7, 1, 20)[:19], encode(8, 1, 100), encode(7, NUMBER_LIMIT, 100), b"x" * 100],
)
def test_other_datagrams_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"short|stream|range"):
        decode_untrusted(data, 7)
