"""The simulated quantum network: one SQLite file that all its key managers have open.

Each pair of key managers has a pool of bits that fills at a rate, up to its size. A key is taken
out of it for the first end at once, and is known at the second end after the delay. The file stays
when a key manager is killed, and with it what is in the pool. Times are CLOCK_MONOTONIC's, which
all processes of a host share. A key is deleted once the second end has it.
"""

from __future__ import annotations

import json
import random
import secrets
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (one INTEGER PRIMARY KEY CHECK (one = 1), document TEXT);
CREATE TABLE IF NOT EXISTS pools (pair TEXT PRIMARY KEY, bits REAL, at REAL);
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, api TEXT, holder TEXT, master TEXT, slave TEXT,
    second BLOB, made REAL, known REAL, taken REAL
);
CREATE TABLE IF NOT EXISTS calls (
    number INTEGER PRIMARY KEY AUTOINCREMENT, kme TEXT, at REAL, document TEXT
);
"""
_PATIENCE_SECONDS = 10.0


class PoolEmpty(Exception):
    """There are fewer bits in the pool than were asked for."""


class KeyNotFound(Exception):
    """No key of this ID is there (any more, or not yet); `key_id` is the first such."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no key {key_id}")
        self.key_id = key_id


class KeyOfOthers(Exception):
    """The key was not made for these two ends."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What each pair of key managers has. Raises ValueError where it makes no sense."""

    rate: float = 100_000.0
    """Bits a second by which each pool grows; 0: the quantum link is cut."""
    pool: int = 1_000_000
    """Bits that a pool holds at most. Pools are full at the start."""
    delay: float = 0.0
    """Seconds until a key that was delivered at one end is known at the other."""
    error_rate: float = 0.0
    """The share of keys that differ at the two ends, 0 to 1."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("rate", 0, 1e12),
            ("pool", 0, 10**12),
            ("delay", 0, 86_400),
            ("error_rate", 0, 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} = {value!r} is not a number")  # noqa: TRY004
            if not low <= value <= high:
                raise ValueError(f"{name} = {value!r} is not between {low} and {high:g}")


@dataclass(frozen=True, slots=True)
class Key:
    """A key as one end gets it."""

    key_id: str
    material: bytes


@dataclass(frozen=True, slots=True)
class Ends:
    """Who a key is for: the key managers, and the applications at each (SAE or system IDs)."""

    kme: str
    far_kme: str
    master: str
    slave: str

    @property
    def pair(self) -> str:
        """The name of the pool that the two key managers share."""
        return " ".join(sorted((self.kme, self.far_kme)))


class Network:
    """A quantum network, opened by one process."""

    def __init__(self, path: Path, settings: LinkSettings | None = None) -> None:
        """Open the file, or make it with these settings. Raises sqlite3.Error."""
        self._db = sqlite3.connect(
            path, timeout=_PATIENCE_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._db.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing by this; only the machine's end would, and ends the lab.
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(_SCHEMA)
        self._db.execute(
            "INSERT OR IGNORE INTO settings VALUES (1, ?)",
            (json.dumps(asdict(settings or LinkSettings())),),
        )

    def close(self) -> None:
        """Close the file; what is in it stays."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def settings(self) -> LinkSettings:
        """The settings in force."""
        (document,) = self._db.execute("SELECT document FROM settings").fetchone()
        return LinkSettings(**json.loads(document))

    def change(self, **changes: float) -> LinkSettings:
        """Change settings, for all pairs, from now on. Raises ValueError."""
        known = {each.name for each in fields(LinkSettings)}
        if unknown := set(changes) - known:
            raise ValueError(f"{min(unknown)!r} is no setting; there are: {sorted(known)}")
        with self._transaction():
            before = self.settings
            after = replace(before, **changes)  # type: ignore[arg-type]
            now = time.monotonic()
            for (pair,) in self._db.execute("SELECT pair FROM pools").fetchall():
                self._store(pair, min(self._bits(pair, before, now), after.pool), now)
            self._db.execute("UPDATE settings SET document = ?", (json.dumps(asdict(after)),))
        return after

    def stored_bits(self, ends: Ends) -> int:
        """What is in the pool now."""
        return int(self._bits(ends.pair, self.settings, time.monotonic()))

    def drain(self, *, kme: str) -> None:
        """Empty the pools of a key manager; they fill again at their rate."""
        with self._transaction():
            self._db.execute(
                "UPDATE pools SET bits = 0, at = ?1 WHERE ' ' || pair || ' ' LIKE ?2",
                (time.monotonic(), f"% {kme} %"),
            )

    def lose_keys(self, *, holder: str) -> None:
        """Forget the keys that wait at a key manager for their second end."""
        self._db.execute("DELETE FROM keys WHERE holder = ? AND taken IS NULL", (holder,))

    def introduce(self, ends: Ends) -> None:
        """Have the pool of a pair there, full, unless it is already."""
        self._db.execute(
            "INSERT OR IGNORE INTO pools VALUES (?, ?, ?)",
            (ends.pair, float(self.settings.pool), time.monotonic()),
        )

    def obtain(self, ends: Ends, *, number: int, bits: int, api: str) -> list[Key]:
        """Take new keys out of the pool for the first end. Raises PoolEmpty."""
        with self._transaction():
            self.introduce(ends)
            settings, now = self.settings, time.monotonic()
            left = self._bits(ends.pair, settings, now) - number * bits
            if left < 0:
                raise PoolEmpty
            self._store(ends.pair, left, now)
            keys = []
            for _ in range(number):
                key = Key(str(uuid.uuid4()), secrets.token_bytes(bits // 8))
                second = key.material
                if random.random() < settings.error_rate:  # noqa: S311 - an error, not a secret
                    second = bytes([second[0] ^ 1]) + second[1:]
                self._db.execute(
                    "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                    (
                        key.key_id,
                        *(api, ends.far_kme, ends.master, ends.slave),
                        *(second, now, now + settings.delay),
                    ),
                )
                keys.append(key)
        return keys

    def retrieve(self, ends: Ends, key_ids: Sequence[str], *, api: str) -> list[Key]:
        """Deliver keys to the second end, once: all of them or none.

        `ends.kme` is the second end's. Raises KeyNotFound, KeyOfOthers.
        """
        with self._transaction():
            now = time.monotonic()
            keys = []
            for key_id in key_ids:
                row = self._db.execute(
                    "SELECT master, slave, second FROM keys WHERE id = ? AND api = ? "
                    "AND holder = ? AND known <= ? AND taken IS NULL",
                    (key_id, api, ends.kme, now),
                ).fetchone()
                if row is None:
                    raise KeyNotFound(key_id)
                if row[:2] != (ends.master, ends.slave):
                    raise KeyOfOthers
                self._db.execute(
                    "UPDATE keys SET taken = ?, second = NULL WHERE id = ?", (now, key_id)
                )
                keys.append(Key(key_id, row[2]))
        return keys

    def record(self, kme: str, call: dict[str, Any]) -> None:
        """Write down a call that a key manager answered."""
        self._db.execute(
            "INSERT INTO calls (kme, at, document) VALUES (?, ?, ?)",
            (kme, call["at"], json.dumps(call)),
        )

    def calls(self, kme: str, *, after: int = 0) -> list[dict[str, Any]]:
        """A key manager's calls, in order, with their `number`; those after one, if it is given."""
        rows = self._db.execute(
            "SELECT number, document FROM calls WHERE kme = ? AND number > ? ORDER BY number",
            (kme, after),
        )
        return [{"number": number, **json.loads(document)} for number, document in rows]

    def key_counts(self) -> dict[str, int]:
        """How many keys were made, and how many of them the second end has taken."""
        made, taken = self._db.execute("SELECT count(*), count(taken) FROM keys").fetchone()
        return {"made": made, "taken": taken}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _bits(self, pair: str, settings: LinkSettings, now: float) -> float:
        row = self._db.execute("SELECT bits, at FROM pools WHERE pair = ?", (pair,)).fetchone()
        if row is None:
            return float(settings.pool)
        bits, at = float(row[0]), float(row[1])
        return min(float(settings.pool), bits + settings.rate * (now - at))

    def _store(self, pair: str, bits: float, now: float) -> None:
        self._db.execute("UPDATE pools SET bits = ?, at = ? WHERE pair = ?", (bits, now, pair))
