"""A static key in a file: what is taken, what is refused, and how two ends find out."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from kex.external import ExternalKeyReference
from tests.vpnd.keysource.conftest import Told
from vpnd.config_key_sources import FileSourceConfig
from vpnd.file_trust import FileFault
from vpnd.keysource.base import Correspondent, SourceError, SourceFault
from vpnd.keysource.file_source import FileSource
from vpnd.keysource.registry import KeySources
from vpnd.keysource.static_key import key_hash, read_static_key

KEY = bytes.fromhex("ad229dfb8a276e74c1f3b6c09349a69fb2fed73c541270663f0e5cbbfb031670")
FAR = Correspondent("ams1")


def written(folder: Path, content: bytes, mode: int = 0o600, name: str = "shared.key") -> Path:
    path = folder / name
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(content)
    path.chmod(mode)
    return path


def config(path: Path) -> FileSourceConfig:
    return FileSourceConfig.model_validate({"type": "file", "file": str(path)})


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (KEY, KEY),
        (KEY * 8 + os.urandom(3), None),
        (KEY.hex().encode(), KEY),
        (KEY.hex().upper().encode() + b"\r\n", KEY),
        (base64.b64encode(KEY) + b"\n", KEY),
        (base64.encodebytes(os.urandom(1024)), None),
        (b"\n" + KEY[1:], None),
    ],
    ids=["bytes", "more", "hex", "HEX, line end", "Base64", "1,024 in lines", "begins like text"],
)
def test_what_is_taken(tmp_path: Path, content: bytes, key: bytes | None) -> None:
    found = read_static_key(written(tmp_path, content))
    if key is not None:
        assert found.expose() == key
    assert 32 <= len(found) <= 1024


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has 0 bytes"),
        (KEY[:31], "has 31 bytes"),
        (os.urandom(1025), "has 1025 bytes"),
        (KEY.hex()[:62].encode(), "has 31 bytes"),
        (b"changeme", "has 6 bytes of key"),
        (b"changeme" * 8, "repeats 6 bytes"),
        (b"replace this line with a key of 32 bytes or more\n", "neither hexadecimal digits nor"),
        (base64.b64encode(b"correct horse battery staple, and some more"), "holds a text"),
        (bytes(32), "one byte over and over"),
        (b"\xff" * 64, "one byte over and over"),
        (b"0" * 64, "one byte over and over"),
        (bytes(range(32)), "a sequence of numbers"),
        (bytes(range(255, 191, -1)), "a sequence of numbers"),
        (bytes(range(0, 256, 5)), "a sequence of numbers"),
        (KEY[:16] * 3, "repeats 16 bytes"),
        (bytes([1, 2, 3, 4, 5, 6, 7, 200]) * 3 + b"\x09" * 8, "too few different bytes"),
        (b"x" * 5000, "is longer than"),
    ],
)
def test_what_is_obviously_no_key(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(FileFault) as refused:
        read_static_key(written(tmp_path, content))
    assert says in refused.value.reason
    assert refused.value.hint


def test_random_keys_are_taken(tmp_path: Path) -> None:
    for length in (32, 33, 64, 256, 1024):
        for _ in range(50):
            content = os.urandom(length)
            assert read_static_key(written(tmp_path, content)).expose() == content


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read(tmp_path: Path, mode: int) -> None:
    with pytest.raises(FileFault, match="others than its owner"):
        read_static_key(written(tmp_path, KEY, mode))


async def test_both_ends_have_the_same(tmp_path: Path, told: Told) -> None:
    ours = FileSource("shared", config(written(tmp_path, KEY)), told)
    theirs = FileSource("other name", config(written(tmp_path, KEY.hex().encode(), name="b")), told)
    found = await ours.obtain(FAR)
    assert found.reference == ExternalKeyReference("file", "", "", (ours.status().identity,), 256)
    assert theirs.serves(FAR, found.reference)
    assert await theirs.retrieve(FAR, found.reference) == found.key
    assert KEY.hex() not in repr(found)
    assert KEY.hex()[:8] not in ours.status().identity


async def test_two_ends_with_different_files(tmp_path: Path, told: Told) -> None:
    ours = FileSource("shared", config(written(tmp_path, KEY)), told)
    theirs = FileSource("shared", config(written(tmp_path, os.urandom(32), name="b")), told)
    reference = (await ours.obtain(FAR)).reference
    assert not theirs.serves(FAR, reference)
    with pytest.raises(SourceError) as refused:
        await theirs.retrieve(FAR, reference)
    assert refused.value.fault is SourceFault.MISMATCH
    assert ours.status().identity in refused.value.reason
    assert theirs.status().identity in refused.value.reason


async def test_a_reload_takes_the_file_anew(tmp_path: Path, told: Told) -> None:
    path = written(tmp_path, KEY)
    configs = {"shared": config(path)}
    sources = KeySources(configs, told)
    before = await sources["shared"].obtain(FAR)
    assert sources.reconfigure(configs) == []
    other = os.urandom(32)
    written(tmp_path, other)
    # Until then the key is as it was when the configuration was read
    assert (await sources["shared"].obtain(FAR)).key == before.key
    assert sources.reconfigure(configs) == ["shared"]
    found = (await sources["shared"].obtain(FAR)).key
    assert found is not None
    assert found.expose() == other
    assert told.names == ["source_file_changed"]
    path.unlink()
    sources.reconfigure(configs)
    with pytest.raises(SourceError) as refused:
        await sources["shared"].obtain(FAR)
    assert refused.value.fault is SourceFault.FILE
    assert not sources["shared"].status().available


async def test_a_test_of_the_file(tmp_path: Path, told: Told) -> None:
    source = FileSource("shared", config(written(tmp_path, KEY)), told)
    (step,) = await source.probe(None)
    assert step.done
    written(tmp_path, os.urandom(32))
    (step,) = await source.probe(None)
    assert not step.done
    assert "reload" in step.hint


def test_the_hash_is_the_same_everywhere(tmp_path: Path) -> None:
    found = key_hash(read_static_key(written(tmp_path, KEY)))
    # python3 -c 'import hashlib; print(hashlib.blake2b(KEY, digest_size=16,
    # person=b"vpnd-file-key-id").hexdigest())'
    assert found == "8620f08b519d754a8f30167382963cb7"
