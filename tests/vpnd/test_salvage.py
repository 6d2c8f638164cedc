"""What is read out of files that are wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.salvage import (
    decoded_leniently,
    read_leniently,
    salvage_endpoints,
    salvage_path,
    salvage_peer,
    salvage_tables,
)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ('allowed_ips = ["10.20.0.0/16", "fd00:20::/48"]', {"10.20.0.0/16", "fd00:20::/48"}),
        ('allowed_ips = [10.20.0.0/16, fd00:20::/48', {"10.20.0.0/16", "fd00:20::/48"}),
        ("allowed_ips = [“10.20.0.0/16”]", {"10.20.0.0/16"}),
        ('allowed-ips: ["10.20.0.0 / 16"]', {"10.20.0.0/16"}),
        ('allowed_ips = [\n  "10.20.0.0/16",\n  "10.21.0.0/16\n', {"10.20.0.0/16", "10.21.0.0/16"}),
        ('allowed_ips = "10.20.7.9/16"', {"10.20.0.0/16"}),  # host bits
        ('allowed_ips = ["10.20.0.0/33", "10.2.0.0/16"]', {"10.2.0.0/16"}),
        ('allowed_ips = ["0.0.0.0/0", "::/0"]', set()),
        ("# allowed_ips = ['10.20.0.0/16']\nx = 1 1", set()),
        ('endpoint = "192.0.2.1:51821" x', set()),
        ('allowed_ips = ["10.20.0.0/16"]\nallowed_ips = ["10.21.0.0/16"]\n',
         {"10.20.0.0/16", "10.21.0.0/16"}),
        ('allowed_ips = ["10.20\u200b.0.0/16"] x', {"10.20.0.0/16"}),
    ],
)  # fmt: skip
def test_prefixes_of_a_peer(text: str, allowed: set[str]) -> None:
    found = salvage_peer(decoded_leniently(text.encode()))
    assert {str(each) for each in found.allowed} == allowed
    assert found.protect == ()


@pytest.mark.parametrize("broken", ["", "x = 1 1\n"])
def test_protect_is_told_from_allowed_ips(broken: str) -> None:
    text = f'{broken}tunnel = "b"\nprotect = ["10.9.0.0/16"]\nallowed_ips = ["10.20.0.0/16"]\n'
    found = salvage_peer(text)
    assert found.tunnel == "b"
    assert [str(each) for each in found.protect] == ["10.9.0.0/16"]
    assert [str(each) for each in found.allowed] == ["10.20.0.0/16"]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252"]
)
def test_in_any_encoding(encoding: str) -> None:
    data = 'name = "Zürich"\nallowed_ips = ["10.20.0.0/16"]\n'.encode(encoding)
    assert [str(each) for each in salvage_peer(decoded_leniently(data)).allowed] == ["10.20.0.0/16"]


@given(st.binary())
def test_nothing_makes_it_fail(data: bytes) -> None:
    text = decoded_leniently(data)
    salvage_peer(text)
    salvage_endpoints(text)
    salvage_tables(text)
    assert salvage_path(text, "state_dir", Path("/x"))


def test_what_is_no_file_is_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "loop", "missing", "."):
        assert read_leniently(tmp_path / name) == ""
    assert read_leniently(Path("a\0b")) == ""


def test_paths_and_endpoints() -> None:
    for text in ('[node]\nstate_dir = "/srv/x"\n', "[node\n state_dir='/srv/x' # y\n"):
        assert salvage_path(text, "state_dir", Path("/d")) == Path("/srv/x")
    assert salvage_path('[node]\nstate_dir = "srv"\n', "state_dir", Path("/d")) == Path("/d")
    text = 'endpoint = "192.0.2.1:1"\nwireguard_endpoint = "[2001:db8::1]:2"\n'
    for more in ("", "x = 1 1\n"):
        assert [str(e) for e in salvage_endpoints(text + more)] == ["192.0.2.1", "2001:db8::1"]
    assert salvage_endpoints('endpoint = "a.example:1"\n') == ()
