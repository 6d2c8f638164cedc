"""The cases that ProVerif is asked: which model, with which libraries, and what has to come out.

A verdict is one letter for each query of the model, in its order: `T` proved, `F` an attack was
found, `?` neither, `-` not decided within the limit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
DEFAULTS: Final[Mapping[str, str]] = {
    "primitives": "primitives",
    "kem": "kem_one",
    "ext": "ext_given",
    "detail": "compact",
    "variant": "standard",
    "once": "once",
    "random": "random_good",
    "wire": "plain",
}
"""The library of each kind, in the order in which ProVerif reads them."""
ADDED: Final = "add"
"""The kind of a library that is read behind those, where there is one."""
PROTOCOL: Final = "protocol"
"""The library that is read last in every case."""
_LABEL = re.compile(r"^ *\(\* \[(.+?)\] \*\)$", re.MULTILINE)
_COMMENT = re.compile(r"\(\*|\*\)")


@dataclass(frozen=True)
class Case:
    """One run of ProVerif.

    `model`: its file, without ending. `expected`: a verdict of `T` and `F`, one letter a query.
    `libraries`: by kind, where they are not the default. `long`: minutes, or no end at all.
    """

    model: str
    expected: str
    libraries: Mapping[str, str] = field(default_factory=dict)
    long: bool = False

    @property
    def labels(self) -> list[str]:
        """The names of the queries, as they stand above them."""
        return _LABEL.findall((HERE / self.file).read_text())

    @property
    def file(self) -> str:
        return f"{self.model}.pv"

    @property
    def inputs(self) -> list[str]:
        """The files that ProVerif reads, in its order, below this folder: libraries, then model."""
        chosen = {**DEFAULTS, **self.libraries}
        names = [chosen[kind] for kind in (*DEFAULTS, ADDED) if kind in chosen]
        return [f"lib/{name}.pvl" for name in (*names, PROTOCOL)] + [self.file]

    def command(self, proverif: str) -> list[str]:
        """What is run, in this folder."""
        *libraries, model = self.inputs
        return [proverif, *(part for name in libraries for part in ("-lib", name)), model]

    def digest(self) -> str:
        """SHA-256 over the inputs without comments and spacing, as 64 hexadecimal digits: a result
        belongs to the case as long as this is the same."""
        whole = hashlib.sha256()
        for name in self.inputs:
            whole.update(" ".join(without_comments((HERE / name).read_text()).split()).encode())
            whole.update(b"\n")
        return whole.hexdigest()


def without_comments(text: str) -> str:
    """A model's text with each comment, which may hold others, put to a space. Raises ValueError
    where one does not end."""
    kept, depth, at = [], 0, 0
    for mark in _COMMENT.finditer(text):
        if depth == 0:
            kept.append(text[at : mark.start()])
        depth += 1 if mark.group() == "(*" else -1
        at = mark.end()
        if depth < 0:
            raise ValueError("a comment ends that has not begun")
    if depth:
        raise ValueError("a comment does not end")
    return " ".join((*kept, text[at:]))


AGREEMENT: Final = "TTTTTTTTTF"
FORWARD: Final = "TTFF"
_GUESSES: Final = {"ext": "ext_weak", "random": "random_unsaid", "once": "often"}
_HIDING: Final = {"random": "random_unsaid", "once": "often"}

CASES: Final[Mapping[str, Case]] = {
    "agreement": Case("agreement", AGREEMENT),
    "agreement, ML-KEM broken": Case("agreement", AGREEMENT, {"kem": "kem_pq_broken"}),
    "agreement, group broken": Case("agreement", AGREEMENT, {"kem": "kem_t_broken"}),
    "agreement, both broken": Case("agreement", "FFFFFFTTTF", {"kem": "kem_broken"}),
    "agreement, two halves": Case("agreement", AGREEMENT, {"kem": "kem_two"}, long=True),
    "agreement, two halves, DH in full": Case(
        "agreement", AGREEMENT, {"kem": "kem_hybrid"}, long=True
    ),
    "agreement, ML-KEM broken, DH in full": Case(
        "agreement", AGREEMENT, {"kem": "kem_pq_broken_dh"}, long=True
    ),
    "agreement, schedule in full": Case("agreement", AGREEMENT, {"detail": "full_schedule"}),
    "agreement, pqIK in full": Case("agreement", AGREEMENT, {"detail": "full_noise"}),
    "agreement, full detail": Case("agreement", AGREEMENT, {"detail": "full"}, long=True),
    "agreement, ML-KEM broken, schedule in full": Case(
        "agreement", AGREEMENT, {"kem": "kem_pq_broken", "detail": "full_schedule"}
    ),
    "agreement, group broken, schedule in full": Case(
        "agreement", AGREEMENT, {"kem": "kem_t_broken", "detail": "full_schedule"}
    ),
    "agreement, nonce reuse": Case("agreement", AGREEMENT, {"add": "reuse"}),
    "agreement, ML-KEM broken, nonce reuse": Case(
        "agreement", AGREEMENT, {"kem": "kem_pq_broken", "add": "reuse"}
    ),
    "agreement, group broken, nonce reuse": Case(
        "agreement", AGREEMENT, {"kem": "kem_t_broken", "add": "reuse"}
    ),
    "agreement, AEAD without commitment": Case(
        "agreement", AGREEMENT, {"primitives": "primitives_colliding"}
    ),
    "agreement, AEAD without commitment, schedule in full": Case(
        "agreement", AGREEMENT, {"primitives": "primitives_colliding", "detail": "full_schedule"}
    ),
    "agreement, bad randomness at I": Case("agreement", "TFFTFFTTTF", {"random": "random_bad_i"}),
    "agreement, bad randomness at R": Case("agreement", "FTTFTTTTTF", {"random": "random_bad_r"}),
    "forward secrecy": Case("forward_secrecy", FORWARD),
    "forward secrecy, ML-KEM broken": Case("forward_secrecy", FORWARD, {"kem": "kem_pq_broken"}),
    "forward secrecy, group broken": Case("forward_secrecy", FORWARD, {"kem": "kem_t_broken"}),
    "forward secrecy, two halves": Case("forward_secrecy", FORWARD, {"kem": "kem_two"}, long=True),
    "both broken, external key": Case(
        "both_broken", "TTTTTTFFTTF", {"kem": "kem_broken", "ext": "ext_secret"}
    ),
    "downgrade": Case(
        "downgrade", "TTTTTFF", {"kem": "kem_suite1_broken", "random": "random_unsaid"}
    ),
    "biscuit key before": Case("biscuit_key_before", "TTTTFF"),
    "biscuit key after": Case("biscuit_key_after", "FF"),
    "biscuit key, external key": Case(
        "biscuit_key_external", "TTTTF", {"kem": "kem_broken", "ext": "ext_link"}
    ),
    "weak key": Case("weak_key", "T", _GUESSES),
    "weak key, ML-KEM broken": Case(
        "weak_key", "T", {"kem": "kem_pq_broken", **_GUESSES}, long=True
    ),
    "weak key, group broken": Case("weak_key", "T", {"kem": "kem_t_broken", **_GUESSES}, long=True),
    "weak key, both broken": Case("weak_key", "F", {"kem": "kem_broken", **_GUESSES}),
    "silence": Case("silence", "TF", {"random": "random_unsaid"}),
    "silence, key fetched": Case("silence_fetched", "F", {"random": "random_unsaid"}),
    "payload": Case("payload", "TTF"),
    "identity hiding": Case("identity_hiding", "T", _HIDING),
    "identity hiding, mac1": Case("identity_hiding", "T", {**_HIDING, "wire": "mac1"}),
    "identity hiding, full detail": Case(
        "identity_hiding", "T", {**_HIDING, "detail": "full"}, long=True
    ),
    "control: mac1 under the initiator's fingerprint": Case(
        "identity_hiding", "F", {**_HIDING, "wire": "weak_mac1"}
    ),
    "control: R's key leaked": Case("identity_hiding_leaked", "F", _HIDING),
    "control: no confirm_i": Case("agreement", "FTTTTTTTTF", {"variant": "weak_confirm"}),
    "control: peer not in biscuit": Case(
        "agreement", "FFTFFTFTTF", {"variant": "weak_biscuit_peer"}
    ),
    "control: biscuit not bound": Case("agreement", "FFTTFTFTTF", {"variant": "weak_biscuit_ad"}),
    "control: h3 not in root": Case("agreement", "FFTTTTFTTF", {"variant": "weak_h3"}),
    "control: external keys not mixed": Case(
        "agreement", "FFTTTTFTTF", {"variant": "weak_external"}
    ),
    "control: external keys not mixed, both broken": Case(
        "both_broken",
        "FFFFFFFFFFF",
        {"kem": "kem_broken", "ext": "ext_secret", "variant": "weak_external"},
    ),
    "control: no skem to I": Case("agreement", "FTTFTTTTTF", {"variant": "weak_skem_i"}),
    "control: no skem to R": Case("agreement", "TFFTFTTTTF", {"variant": "weak_skem_r"}),
    "control: no ekem": Case("forward_secrecy", "FFFF", {"variant": "weak_ekem"}),
    "control: biscuits used often": Case("agreement", "FTTTTFTFTF", {"once": "often"}),
    "control: biscuits used often, nonce reuse": Case(
        "agreement", "FFTTFFTFTF", {"once": "often", "add": "reuse"}
    ),
}
