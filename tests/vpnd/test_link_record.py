"""The records that a restart believes, and those that it does not."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vpnd.link_record import LinkRecord, LinkRecords, boot_id, stamp_of, stamp_text

RECORD = LinkRecord(
    tunnel="backbone",
    identity="vpnd1qexample",
    wireguard_key="ab" * 32,
    key_id="01234567",
    installed_at=100.5,
    expires_at=700.5,
    stamp_before="1700000000.000000001",
    replaces=True,
    in_force_key_id="89abcdef",
    in_force_since=90.0,
    in_force_installed_at=80.0,
)


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    records = LinkRecords(tmp_path)
    records.store("ams", RECORD)
    assert records.load("ams") == RECORD
    pending = replace(RECORD, pending_key_id="deadbeef")
    records.store("ams", pending)
    assert records.load("ams") == pending
    assert (tmp_path / "links" / "ams.json").stat().st_mode & 0o777 == 0o600
    records.forget("ams")
    assert records.load("ams") is None


def test_what_a_killed_writer_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    LinkRecords(tmp_path).store("ams", RECORD)
    left = tmp_path / "links" / ".ams.json.x1y2z3ab"
    left.write_text("{")
    records = LinkRecords(tmp_path)
    assert left.exists(), "who only reads leaves it to the daemon, which may be writing"
    records.discard_leftovers()
    assert not left.exists()
    assert records.names() == ["ams"]
    assert records.load("ams") == RECORD


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"{}",
        json.dumps({**asdict(RECORD), "boot_id": "another boot"}).encode(),
        json.dumps(asdict(RECORD)).encode(),
        json.dumps({**asdict(RECORD), "boot_id": boot_id(), "more": 1}).encode(),
        json.dumps({**asdict(RECORD), "boot_id": boot_id(), "expires_at": "soon"}).encode(),
        json.dumps({**asdict(RECORD), "boot_id": boot_id(), "wireguard_key": 5}).encode(),
        json.dumps({**asdict(RECORD), "boot_id": boot_id(), "stamp_before": "now"}).encode(),
        json.dumps({**asdict(RECORD), "boot_id": boot_id(), "replaces": 1}).encode(),
        json.dumps({**asdict(RECORD), "boot_id": boot_id(), "wireguard_key": "zz"}).encode(),
        json.dumps({**asdict(RECORD), "boot_id": boot_id(), "wireguard_key": "ab"}).encode(),
        b"x" * 10000,
    ],
)
def test_what_cannot_be_believed_is_no_record(tmp_path: Path, content: bytes) -> None:
    records = LinkRecords(tmp_path)
    (tmp_path / "links").mkdir(mode=0o700)
    (tmp_path / "links" / "ams.json").write_bytes(content)
    assert records.load("ams") is None
    records.store("ams", RECORD)
    assert records.load("ams") == RECORD


@pytest.mark.parametrize("stamp", [None, (0, 0), (1700000000, 1), (1700000000, 999999999)])
def test_a_stamp_survives_as_text(stamp: tuple[int, int] | None) -> None:
    assert stamp_of(stamp_text(stamp)) == stamp


def test_the_boot_may_be_told_by_the_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LinkRecords(tmp_path).store("ams", RECORD)
    monkeypatch.setenv("VPND_BOOT_ID", boot_id())
    assert LinkRecords(tmp_path).load("ams") == RECORD, "the same, however it is learnt"
    monkeypatch.setenv("VPND_BOOT_ID", "0" * 32)
    assert LinkRecords(tmp_path).load("ams") is None
