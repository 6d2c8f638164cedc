"""Which interfaces of earlier runs are known, and which of them are left over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tun import TunnelSpec
from vpnd.tunnel_record import TunnelRecords

SPEC = TunnelSpec(interface="wg0", tunnel_name="backbone", listen_port=51820)


def test_what_is_wanted_as_it_is_is_not_left_over(tmp_path: Path) -> None:
    records = TunnelRecords(tmp_path)
    records.store(SPEC)
    assert records.left_over({"backbone": SPEC}) == []
    assert records.left_over({"backbone": replace(SPEC, listen_port=1, mtu=1280)}) == []
    assert (tmp_path / "tunnels" / "backbone.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"core": replace(SPEC, tunnel_name="core")},
        {"backbone": replace(SPEC, interface="wg1")},
        {"backbone": replace(SPEC, netns="blue")},
    ],
)
def test_what_is_gone_or_elsewhere_is_left_over(
    tmp_path: Path, wanted: dict[str, TunnelSpec]
) -> None:
    TunnelRecords(tmp_path).store(replace(SPEC, table=100, mtu=1280))
    records = TunnelRecords(tmp_path)
    assert records.left_over(wanted) == [SPEC]
    records.forget("backbone")
    assert records.left_over(wanted) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"{}",
        b'{"interface": "wg0", "listen_port": 51820}',
        b'{"interface": "wg0", "listen_port": 0, "netns": null}',
        b'{"interface": "wg0", "listen_port": "1", "netns": null}',
        b'{"interface": 5, "listen_port": 51820, "netns": null}',
        b'{"interface": "../x", "listen_port": 51820, "netns": null}',
        b'{"interface": "wg0", "listen_port": 51820, "netns": "../x"}',
        b'{"interface": "wg0", "listen_port": 51820, "netns": null, "more": 1}',
        b"x" * 10000,
    ],
)
def test_what_cannot_be_believed_is_no_record(tmp_path: Path, content: bytes) -> None:
    records = TunnelRecords(tmp_path)
    (tmp_path / "tunnels").mkdir(mode=0o700)
    (tmp_path / "tunnels" / "backbone.json").write_bytes(content)
    assert records.left_over({}) == []
    records.store(SPEC)
    assert records.left_over({}) == [SPEC]


def test_a_record_that_others_can_write_is_none(tmp_path: Path) -> None:
    records = TunnelRecords(tmp_path)
    records.store(SPEC)
    (tmp_path / "tunnels" / "backbone.json").chmod(0o666)
    assert records.left_over({}) == []
