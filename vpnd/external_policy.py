"""The policy of a link for keys from outside: facts in, decisions out (docs/qkd.md, "Policy").

Nothing here asks a source, looks at a clock or tells anybody.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from kex.answering import both_modes
from kex.events import RejectCode
from kex.external import ExternalMode
from vpnd.config_model import ExternalKeys
from vpnd.keysource.base import SourceError, SourceFault
from vpnd.source_use import SourceUse

LEFT_OUT_SECONDS: Final = 300.0
"""How long a source is left out that the other end could not have a key of, where others do."""
MAX_DETAIL: Final = 160
"""Characters of what the other end is told; 200 bytes fit."""
MODES: Final[Mapping[str, ExternalMode]] = {mode.name.lower(): mode for mode in ExternalMode}


@dataclass(frozen=True, slots=True)
class Needed:
    """What has to be mixed into a key: some by name, and so many in all."""

    names: tuple[str, ...]
    at_least: int

    @classmethod
    def by(cls, external: ExternalKeys) -> Needed:
        return cls(external.require, external.minimum)

    def met(self, mixed: Container[str], sources: Iterable[str]) -> bool:
        """Whether a key with these sources mixed has what is needed."""
        count = sum(source in mixed for source in sources)
        return count >= self.at_least and all(name in mixed for name in self.names)

    def lacking(self, mixed: Container[str]) -> tuple[str, ...]:
        """Of the sources that are needed by name, those that are not mixed."""
        return tuple(name for name in self.names if name not in mixed)


def effective_mode(external: ExternalKeys, *, over_limit: bool) -> ExternalMode:
    """The mode that an exchange goes by: `prefer` is `require` once a fallback is over its
    limit."""
    mode = MODES[external.mode]
    return ExternalMode.REQUIRE if mode is ExternalMode.PREFER and over_limit else mode


def to_ask(
    external: ExternalKeys, *, left_out: Container[str], must: str | None = None
) -> tuple[SourceUse, ...]:
    """The sources to ask for an exchange of our own.

    A source that is left out is not asked while the others are what is needed; else all are.
    `must` is asked in any case.
    """
    needed = Needed.by(external)
    uses = external.uses
    kept = tuple(use for use in uses if use.source == must or use.source not in left_out)
    names = {use.source for use in kept}
    return kept if needed.met(names, names) else uses


class Step(Enum):
    """What becomes of an exchange once its sources have answered."""

    MIX = auto()
    """Go on with the keys that there are, which may be none where `prefer` allows it."""
    END = auto()
    """No key from this exchange."""


@dataclass(frozen=True, slots=True)
class Decision:
    step: Step
    reason: str = ""
    code: RejectCode = RejectCode.KEY_MANAGER


def as_initiator(
    external: ExternalKeys,
    mode: ExternalMode,
    *,
    given: Container[str],
    failed: Mapping[str, SourceError],
    must: str | None = None,
    good_key_lives: bool = False,
    better_than: Container[str] | None = None,
) -> Decision:
    """Whether an exchange of our own goes on with the keys that could be had.

    `better_than` has the sources of the key in use where the exchange is to give one with what is
    needed and with a source more, or none.

    `good_key_lives` says that a key with all that is needed is in use and not about to end: our
    own limits are no reason to replace it by a lesser one.
    """
    why = told(failed.values())
    if must is not None and must not in given:
        reason = f"{must} gave no key: {why}" if why else f"{must} gave no key"
        return Decision(Step.END, reason, RejectCode.POLICY)
    if any(error.fault is SourceFault.MISMATCH for error in failed.values()):
        return Decision(Step.END, why, RejectCode.KEY_MISMATCH)
    names = [use.source for use in external.uses]
    needed = Needed.by(external)
    enough = needed.met(given, names)
    if better_than is not None:
        more = any(name in given and name not in better_than for name in names)
        if enough and more:
            return Decision(Step.MIX)
        return Decision(Step.END, why or "too few external keys", RejectCode.POLICY)
    if enough:
        return Decision(Step.MIX)
    if mode is ExternalMode.PREFER:
        own_limit = any(error.fault is SourceFault.LIMITED for error in failed.values())
        if own_limit and good_key_lives:
            return Decision(Step.END, why, RejectCode.POLICY)
        return Decision(Step.MIX, why)
    return Decision(Step.END, why or "too few external keys", RejectCode.POLICY)


def as_responder(
    external: ExternalKeys,
    mode: ExternalMode,
    listed: Sequence[str],
    *,
    peers: ExternalMode,
) -> str:
    """Why the keys that an initiator lists are not what this end needs, with the modes of both;
    empty if they are.

    `listed` has the source of each key. The number of keys is checked before (kex.answering);
    here it is their names, and that no source counts for two.
    """
    for name in listed:
        if listed.count(name) > 1:
            return f"two keys of {name}: each source gives one"
    if mode is not ExternalMode.REQUIRE:
        return ""
    names = " and ".join(Needed.by(external).lacking(listed))
    return (
        f"{both_modes(mode, peers)}: {names} must be mixed, the initiator has none" if names else ""
    )


def refusal(errors: Mapping[int, SourceError]) -> tuple[RejectCode, tuple[int, ...]]:
    """What an initiator is told when keys of its listing cannot be had: the code, and which."""
    if any(error.fault is SourceFault.MISMATCH for error in errors.values()):
        return RejectCode.KEY_MISMATCH, ()
    return RejectCode.KEY_MANAGER, tuple(sorted(errors))


def missing(external: ExternalKeys, mixed: Container[str]) -> tuple[str, ...]:
    """The sources of the link whose keys are not in a key."""
    return tuple(use.source for use in external.uses if use.source not in mixed)


def is_fallback(external: ExternalKeys, mixed: Container[str]) -> bool:
    """Whether a key with these sources mixed is one that only `prefer` admits, and not for long."""
    names = [use.source for use in external.uses]
    return external.mode == "prefer" and not Needed.by(external).met(mixed, names)


def told(errors: Iterable[SourceError]) -> str:
    """What went wrong, in one line: a source each."""
    return "; ".join(str(error) for error in errors)


def bounded(text: str) -> str:
    """A text as the other end may be told it."""
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"


def modes_differ(here: ExternalMode, there: ExternalMode) -> str:
    """The policies of both ends where they are not the same; empty where they are."""
    if here is there:
        return ""
    return f"external keys: {here.name.lower()} here, {there.name.lower()} at the peer"


def pairs(managers: Sequence[tuple[str, str]]) -> str:
    """The key managers of both ends, (initiator's, responder's) for each key."""
    return ", ".join(
        f"{one} at the initiator and {other} at the responder" for one, other in managers
    )
