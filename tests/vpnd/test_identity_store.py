"""Identities on disk: kept secret, never overwritten; cached public keys: never believed."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kex.identity import Fingerprint, Identity
from vpnd.atomic_file import FileExists
from vpnd.file_trust import FileFault, FileMissing
from vpnd.identity_store import (
    PeerKeyCache,
    create_identity,
    identity_path,
    load_identities,
    load_identity,
    system_suite,
)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


def generate(suite: int = 1) -> Identity:
    return Identity.generate(system_suite(suite))


def test_what_is_kept_is_what_is_found(state_dir: Path) -> None:
    first, second, third = generate(), generate(2), generate()
    create_identity(state_dir, second, "cnsa")
    create_identity(state_dir, first)
    create_identity(state_dir, third, "a.next")
    stored = load_identities(state_dir)
    assert stored.faults == ()
    assert list(stored.identities.items()) == [
        ("default", first),
        ("a.next", third),
        ("cnsa", second),
    ]


def test_the_file_and_its_folder_are_for_the_owner_alone(state_dir: Path) -> None:
    before = os.umask(0)
    try:
        path = create_identity(state_dir, generate())
    finally:
        os.umask(before)
    assert path == state_dir / "identity.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert state_dir.stat().st_mode & 0o777 == 0o700
    assert os.listdir(state_dir) == ["identity.key"]


def test_an_identity_is_never_overwritten(state_dir: Path) -> None:
    first = generate()
    path = create_identity(state_dir, first)
    before = path.read_bytes()
    with pytest.raises(FileExists, match="left as it is"):
        create_identity(state_dir, generate())
    path.unlink()
    path.symlink_to(state_dir / "elsewhere")
    with pytest.raises(FileExists):
        create_identity(state_dir, generate())
    path.unlink()
    path.write_bytes(before)
    path.chmod(0o600)
    assert load_identity(path) == first
    assert os.listdir(state_dir) == ["identity.key"]


def test_of_many_who_create_one_wins(state_dir: Path) -> None:
    candidates = [generate() for _ in range(8)]
    outcomes: list[Identity | None] = [None] * len(candidates)

    def create(index: int) -> None:
        try:
            create_identity(state_dir, candidates[index])
        except FileExists:
            return
        outcomes[index] = candidates[index]

    threads = [threading.Thread(target=create, args=(index,)) for index in range(len(candidates))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [identity for identity in outcomes if identity is not None]
    assert winners == [load_identities(state_dir).identities["default"]]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700 | 0o1, 0o666])
def test_a_file_that_others_can_get_at_is_refused(state_dir: Path, mode: int) -> None:
    path = create_identity(state_dir, generate())
    path.chmod(mode)
    with pytest.raises(FileFault, match=f"has mode {mode:04o}") as caught:
        load_identity(path)
    assert "chmod 600" in caught.value.hint
    stored = load_identities(state_dir)
    assert not stored.identities
    assert [fault.path for fault in stored.faults] == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to somebody else")
def test_a_file_of_somebody_else_is_refused(state_dir: Path) -> None:
    path = create_identity(state_dir, generate())
    os.chown(path, 64321, -1)
    with pytest.raises(FileFault, match="belongs to uid 64321"):
        load_identity(path)


def test_a_folder_that_others_can_write_is_refused(state_dir: Path) -> None:
    create_identity(state_dir, generate())
    state_dir.chmod(0o770)
    with pytest.raises(FileFault, match="has mode 0770"):
        create_identity(state_dir, generate(), "second")
    assert [fault.path for fault in load_identities(state_dir).faults] == [state_dir]


def test_a_link_is_not_followed(state_dir: Path) -> None:
    path = create_identity(state_dir, generate())
    link = identity_path(state_dir, "link")
    link.symlink_to(path)
    with pytest.raises(FileFault, match="symbolic links"):
        load_identity(link)


SEED = base64.b64encode(b"a secret of thirty-two bytes ok!").decode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 100,
        b"\xff\xfe",
        b"x" * 2000,
        f"vpnd-identity-v1 1 {SEED[:-8]}\n".encode(),
        f"vpnd-identity-v1 3 {SEED}\n".encode(),
        f"vpnd-identity-v2 1 {SEED}\n".encode(),
        f"vpnd-identity-v1 1 {SEED} {SEED}\n".encode(),
        f"vpnd-identity-v1 1 {SEED[:20]}é{SEED[20:]}\n".encode(),
    ],
)
def test_a_spoiled_file_is_refused_and_not_quoted(state_dir: Path, content: bytes) -> None:
    path = create_identity(state_dir, generate())
    path.write_bytes(content)
    with pytest.raises(FileFault) as caught:
        load_identity(path)
    assert caught.value.path == path
    assert SEED[:10] not in f"{caught.value!r} {caught.value.reason} {caught.value.hint}"
    assert caught.value.__cause__ is None


def test_one_spoiled_file_does_not_hide_the_others(state_dir: Path) -> None:
    good = generate()
    create_identity(state_dir, good, "good")
    create_identity(state_dir, generate()).write_text("spoiled")
    stored = load_identities(state_dir)
    assert dict(stored.identities) == {"good": good}
    assert [fault.path for fault in stored.faults] == [identity_path(state_dir)]


def test_other_files_are_left_alone(state_dir: Path) -> None:
    create_identity(state_dir, generate())
    for name in ("identity-.key", "identity- .key", "other.key", "identity-default.key", "x.pem"):
        (state_dir / name).write_text("nonsense")
    stored = load_identities(state_dir)
    assert list(stored.identities) == ["default"]
    assert stored.faults == ()


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "x" * 65, "a\0"])
def test_a_name_that_cannot_be_a_file(state_dir: Path, name: str) -> None:
    with pytest.raises(FileFault, match="identity's name"):
        create_identity(state_dir, generate(), name)
    assert not state_dir.exists()


def test_no_folder_and_no_identity(state_dir: Path) -> None:
    assert load_identities(state_dir).identities == {}
    assert load_identities(state_dir).faults == ()
    with pytest.raises(FileMissing):
        load_identity(identity_path(state_dir))


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def cache(state_dir: Path, warnings: list[str]) -> PeerKeyCache:
    return PeerKeyCache(state_dir, warn=warnings.append)


@pytest.fixture
def peer() -> Identity:
    return generate()


def cached_file(state_dir: Path, peer: Identity) -> Path:
    return state_dir / "peer-keys" / f"{peer.fingerprint.text()}.pub"


def test_a_public_key_is_kept_and_forgotten(
    state_dir: Path, cache: PeerKeyCache, warnings: list[str], peer: Identity
) -> None:
    assert cache.load(peer.fingerprint) is None
    cache.store(peer.fingerprint, peer.public_key)
    cache.store(peer.fingerprint, peer.public_key)
    assert cache.load(peer.fingerprint) == peer.public_key
    assert cached_file(state_dir, peer).read_bytes() == peer.public_key
    assert len(os.listdir(state_dir / "peer-keys")) == 1
    cache.forget(peer.fingerprint)
    cache.forget(peer.fingerprint)
    assert cache.load(peer.fingerprint) is None
    assert not warnings


def spoil(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "damage",
    [
        spoil(lambda key: b""),
        spoil(lambda key: key[:-1]),
        spoil(lambda key: key + b"\0"),
        spoil(lambda key: bytes([key[0] ^ 1]) + key[1:]),
        spoil(lambda key: key * 20),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_spoiled_public_key_is_fetched_again(
    state_dir: Path,
    cache: PeerKeyCache,
    warnings: list[str],
    peer: Identity,
    damage: Callable[[Path], object],
) -> None:
    cache.store(peer.fingerprint, peer.public_key)
    damage(cached_file(state_dir, peer))
    assert cache.load(peer.fingerprint) is None
    assert len(warnings) == 1
    assert "fetched again" in warnings[0]


def test_another_ones_key_is_not_kept(cache: PeerKeyCache, peer: Identity) -> None:
    other = generate()
    with pytest.raises(ValueError, match="not the one of its fingerprint"):
        cache.store(peer.fingerprint, other.public_key)
    with pytest.raises(ValueError, match="not the one of its fingerprint"):
        cache.store(Fingerprint(2, peer.fingerprint.digest), peer.public_key)
    assert cache.load(peer.fingerprint) is None


def test_a_folder_that_cannot_be_made(state_dir: Path, cache: PeerKeyCache, peer: Identity) -> None:
    state_dir.write_text("a file")
    with pytest.raises(FileFault, match="cannot be made: Not a directory"):
        cache.store(peer.fingerprint, peer.public_key)
