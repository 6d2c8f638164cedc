"""A holder for secret bytes, so that none gets into a log line or a traceback by accident."""

from __future__ import annotations

from hmac import compare_digest
from typing import Final, Never, final

_REDACTED: Final = "<secret>"


@final
class Secret:
    """Immutable secret bytes of any length.

    They leave it by ``expose()`` alone: ``repr``, ``str`` and ``format`` are redacted, pickling is
    refused, comparison takes constant time for equal lengths. A copy is the object itself, so
    that copying a state makes no further copy of its secrets. Memory is not erased: Python moves
    and shares bytes as it likes, so dropping the last reference is all that can be promised.
    """

    __slots__ = ("_value",)
    _value: bytes

    def __init__(self, value: bytes) -> None:
        if not isinstance(value, bytes):
            raise TypeError(f"Secret holds bytes, not {type(value).__name__}")
        object.__setattr__(self, "_value", value)

    def expose(self) -> bytes:
        """The bytes themselves. Hand them to a cryptographic function and keep no reference."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __repr__(self) -> str:
        return _REDACTED

    def __format__(self, spec: str) -> str:
        return format(_REDACTED, spec)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __setattr__(self, name: str, value: object) -> Never:
        raise AttributeError("a Secret cannot be changed")

    def __delattr__(self, name: str) -> Never:
        raise AttributeError("a Secret cannot be changed")

    def __reduce_ex__(self, protocol: object) -> Never:
        raise TypeError("a Secret is not pickled: it would leave the process in the clear")
