"""A fallback has a limit, one extension, and outlives the daemon."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vpnd.api import MAX_FALLBACK_EXTENSION
from vpnd.external_record import ExternalRecord, ExternalRecords
from vpnd.fallback import Fallback, NotExtensible
from vpnd.link_record import boot_id
from vpnd.mixed_key import MixedKey

FALLBACK = Fallback(started_at=100.0, reason="kme: no answer", limit=60)
MIXED = MixedKey("kme", "qkd", "KME-A", ("id-1",), 256, 90.0)
RECORD = ExternalRecord(FALLBACK, {"01234567": (MIXED,), "89abcdef": ()})


def test_the_limit() -> None:
    assert not FALLBACK.over(159.9)
    assert FALLBACK.over(160.0)
    assert Fallback(100.0, "", 0).over(100.0), "a limit of 0 s is over at once"


def test_an_extension_before_the_limit_counts_from_the_limit() -> None:
    longer = FALLBACK.extend(3600, "repair", uid=0, now=120.0)
    assert longer.deadline == 160.0 + 3600
    assert longer.extended


def test_an_extension_after_the_limit_counts_from_now() -> None:
    longer = FALLBACK.extend(3600, "repair", uid=0, now=500.0)
    assert longer.deadline == 500.0 + 3600


def test_it_is_extended_once() -> None:
    longer = FALLBACK.extend(60, "repair", uid=0, now=120.0)
    with pytest.raises(NotExtensible, match=r"by 60 s.*repair"):
        longer.extend(60, "again", uid=0, now=130.0)


@pytest.mark.parametrize("seconds", [0, 59, MAX_FALLBACK_EXTENSION + 1])
def test_how_long_an_extension_may_be(seconds: int) -> None:
    with pytest.raises(NotExtensible, match="7 days"):
        FALLBACK.extend(seconds, "repair", uid=0, now=120.0)


def test_another_limit_and_another_reason() -> None:
    assert FALLBACK.with_limit(10).deadline == 110.0
    assert FALLBACK.because("other").reason == "other"
    assert FALLBACK.because("other").started_at == 100.0


# ---- over a restart


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    records = ExternalRecords(tmp_path)
    records.store("ams", RECORD)
    assert records.load("ams") == RECORD
    assert (tmp_path / "external" / "ams.json").stat().st_mode & 0o777 == 0o600
    records.store("ams", ExternalRecord())
    assert records.load("ams") == ExternalRecord()
    records.forget("ams")
    assert records.load("ams") == ExternalRecord()


def stored(**changes: Any) -> bytes:
    content: dict[str, Any] = {
        "boot_id": boot_id(),
        "fallback": asdict(FALLBACK),
        "keys": {"01234567": [MIXED.as_json()]},
    }
    return json.dumps(content | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"{}",
        b"\xff",
        stored(boot_id="another boot"),
        stored(fallback={}),
        stored(fallback=asdict(FALLBACK) | {"limit": "60"}),
        stored(fallback=asdict(FALLBACK) | {"limit": True}),
        stored(fallback=asdict(FALLBACK) | {"more": 1}),
        stored(keys=[]),
        stored(keys={"x": [{}]}),
        stored(keys={"x": [MIXED.as_json() | {"key_ids": "id"}]}),
        stored(keys={"x": [MIXED.as_json() | {"source": 1}]}),
        stored(keys={"x": [5]}),
        b"x" * 50_000,
    ],
)
def test_what_cannot_be_believed_is_no_record(tmp_path: Path, content: bytes) -> None:
    records = ExternalRecords(tmp_path)
    (tmp_path / "external").mkdir(mode=0o700)
    (tmp_path / "external" / "ams.json").write_bytes(content)
    assert records.load("ams") == ExternalRecord()
    records.store("ams", RECORD)
    assert records.load("ams") == RECORD


def test_what_a_record_holds_is_no_secret(tmp_path: Path) -> None:
    assert set(MIXED.as_json()) == {"source", "source_type", "manager", "key_ids", "bits", "at"}
