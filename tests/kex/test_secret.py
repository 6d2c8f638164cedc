"""Secret bytes stay where they are put."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kex.secret import Secret

VALUE = b"correct horse battery staple"


@dataclass(frozen=True)
class Holder:
    key: Secret


@pytest.mark.parametrize(
    "form",
    [
        repr(Secret(VALUE)),
        str(Secret(VALUE)),
        f"{Secret(VALUE)}",
        f"{Secret(VALUE)!r}",
        f"{Secret(VALUE):>40}",
        f"{Secret(VALUE)} {Secret(VALUE)!r}",
        repr(Holder(Secret(VALUE))),
        repr([Secret(VALUE)]),
    ],
)
def test_no_text_form_shows_it(form: str) -> None:
    assert "<secret>" in form
    for part in ("correct", VALUE.hex(), str(len(VALUE))):
        assert part not in form


@given(value=st.binary())
def test_it_leaves_by_expose_alone(value: bytes) -> None:
    secret = Secret(value)
    assert secret.expose() == value
    assert len(secret) == len(value)


@pytest.mark.parametrize("take", [bytes, bytearray, list, tuple, memoryview, hex])
def test_it_is_not_a_buffer_or_a_sequence(take: Any) -> None:
    with pytest.raises(TypeError):
        take(Secret(VALUE))


@given(a=st.binary(max_size=4), b=st.binary(max_size=4))
def test_equality_is_that_of_the_bytes(a: bytes, b: bytes) -> None:
    assert (Secret(a) == Secret(b)) == (a == b)
    assert (hash(Secret(a)) == hash(Secret(b))) == (a == b)


def test_it_is_not_equal_to_its_bytes() -> None:
    assert Secret(VALUE) != VALUE
    assert Secret(VALUE) not in [VALUE]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret(VALUE), protocol)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Holder(Secret(VALUE)), protocol)


def test_a_copy_is_the_object_itself() -> None:
    secret = Secret(VALUE)
    assert copy.copy(secret) is secret
    assert copy.deepcopy(secret) is secret
    assert copy.deepcopy(Holder(secret)).key is secret


def test_it_cannot_be_changed() -> None:
    secret = Secret(VALUE)
    with pytest.raises(AttributeError):
        secret._value = b""
    with pytest.raises(AttributeError):
        secret.other = b""
    with pytest.raises(AttributeError):
        del secret._value
    assert secret.expose() == VALUE


@pytest.mark.parametrize("value", [bytearray(VALUE), memoryview(VALUE), "text", 32, None])
def test_it_holds_bytes_only(value: Any) -> None:
    with pytest.raises(TypeError, match="holds bytes"):
        Secret(value)
