"""What a link in `prefer` has to tell of keys that were in use before its policy, or its daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from vpnd.api import Event
from vpnd.config_model import ExternalKeys, validate
from vpnd.config_source import Source
from vpnd.event_feed import EventFeed
from vpnd.external_record import ExternalRecords
from vpnd.fallback_watch import FallbackWatch
from vpnd.journal import Journal
from vpnd.mixed_key import MixedKey

MIXED = MixedKey("kme", "qkd", "KME-A", ("id-1",), 256, 90.0)
OFF = validate(ExternalKeys, {"mode": "off"}, Source(None))


def table(mode: str) -> ExternalKeys:
    return validate(ExternalKeys, {"mode": mode, "source": "kme", "peer_sae": "far"}, Source(None))


class Told(EventFeed):
    """Keeps what is published."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def publish(self, event: Event) -> None:
        self.events.append(event["event"])
        super().publish(event)


def watch(folder: Path, external: ExternalKeys, feed: EventFeed | None = None) -> FallbackWatch:
    journal = Journal(feed or EventFeed())
    return FallbackWatch("ams", external, ExternalRecords(folder), journal, lambda: None)


def test_a_key_found_after_a_restart_that_nobody_knows_is_one_without(tmp_path: Path) -> None:
    told = Told()
    found = watch(tmp_path, table("prefer"), told)
    found.adopted("01234567")
    assert told.events == ["fallback_started"]
    assert found.fallback is not None
    assert "restart" in found.standing
    # Another restart goes on counting
    again = watch(tmp_path, table("prefer"))
    again.adopted("01234567")
    assert again.fallback == found.fallback


def test_where_keys_are_required_it_is_told_as_missing(tmp_path: Path) -> None:
    found = watch(tmp_path, table("require"))
    found.adopted("01234567")
    assert found.fallback is None
    assert "no key of kme is mixed" in found.standing


def test_a_key_that_is_known_is_as_it_was(tmp_path: Path) -> None:
    before = watch(tmp_path, table("prefer"))
    before.key_set("01234567", (MIXED,), "", lifetime=600)
    found = watch(tmp_path, table("prefer"))
    found.adopted("01234567")
    assert found.fallback is None
    assert found.standing == ""


@pytest.mark.parametrize("before", [OFF, table("require")], ids=["off", "require"])
def test_a_key_from_before_the_policy_was_changed(tmp_path: Path, before: ExternalKeys) -> None:
    told = Told()
    found = watch(tmp_path, before, told)
    found.key_set("01234567", (), "", lifetime=600)
    found.take(table("prefer"))
    assert told.events == ["fallback_started"]
    found.key_set("89abcdef", (MIXED,), "", lifetime=600)
    assert told.events == ["fallback_started", "fallback_ended"]
    assert found.standing == ""


def test_without_a_key_there_is_nothing_to_judge(tmp_path: Path) -> None:
    told = Told()
    found = watch(tmp_path, OFF, told)
    found.take(table("prefer"))
    found.adopted("01234567")
    found.take(OFF)
    assert told.events == ["fallback_started", "fallback_ended"]
