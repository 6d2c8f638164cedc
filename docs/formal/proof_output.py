"""What ProVerif prints, read as one verdict for each query."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SUMMARY: Final = "Verification summary"
_OF_THE_SUMMARY = re.compile(r"(?: - )?(?:Query|Observational equivalence|Weak secret)\b")
_ON_THE_WAY = re.compile(r"RESULT (?!\((?:even|but)\b)")
_VERDICTS: Final = {"is true": "T", "is false": "F", "cannot be proved": "?"}
_VERDICT = re.compile(rf"\b({'|'.join(_VERDICTS)})\b[^;]*\.$")
_ERROR = re.compile(r"(?:Error|Fatal error|Anomaly)\b")


@dataclass(frozen=True)
class Found:
    """`verdicts`: one letter a query, `T`, `F` or `?`, in their order, as far as they came.
    `errors`: what ProVerif complains of, and lines that cannot be read; then nothing is proved."""

    verdicts: str
    errors: tuple[str, ...] = ()


def read(text: str) -> Found:
    """The verdicts of a whole run, from its summary, or of one that was stopped, from its results
    one by one. A line that ought to have a verdict and has none is an error, not a gap."""
    _, summarised, summary = text.partition(SUMMARY)
    lines = (summary if summarised else text).splitlines()
    pattern = _OF_THE_SUMMARY if summarised else _ON_THE_WAY
    verdicts = []
    errors = [line.strip() for line in text.splitlines() if _ERROR.match(line.strip())]
    for line in lines:
        if not pattern.match(line):
            continue
        verdict = _VERDICT.search(line)
        if verdict is None:
            errors.append(f"no verdict in: {line.strip()}")
        else:
            verdicts.append(_VERDICTS[verdict.group(1)])
    return Found("".join(verdicts), tuple(errors))


def as_expected(got: str, expected: str) -> bool:
    """Whether each query gave what it has to. Where an attack is expected, a derivation from which
    ProVerif could rebuild no run (`?`) will do: it is no proof either."""
    return len(got) == len(expected) and all(
        one == other or (one, other) == ("?", "F") for one, other in zip(got, expected, strict=True)
    )
