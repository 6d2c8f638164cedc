"""What is on disk beside what runs, as status, log and events tell it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kex.identity import Fingerprint, Identity
from tests.vpnd.config_files import Site
from vpnd import disk_watch
from vpnd.config import Config
from vpnd.disk_watch import DiskWatch
from vpnd.event_feed import EventFeed
from vpnd.identity_store import create_identity, system_suite
from vpnd.journal import Journal
from vpnd.last_good import write_last_good
from vpnd.start_config import last_good_of, read_start


class Daemon:
    """As far as its files go: it runs what it has read at its start."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self.site = Site(folder)
        self.site.peers["ber1"] = {
            "identity": Fingerprint.of(1, b"ber1").text(),
            "allowed_ips": ["10.30.0.0/16"],
        }
        self.site.write()
        create_identity(self.site.state_dir, Identity.generate(system_suite(1)))
        self.journal = Journal(EventFeed())
        self.restart()

    def restart(self) -> None:
        start = read_start(self.site.path)
        assert start.config is not None
        self.config: Config = start.config
        write_last_good(self.site.state_dir, last_good_of(self.config, start.last_good))
        self.watch = DiskWatch(lambda: self.config, self.journal)
        self.watch.tell_start(start.problems)

    @property
    def ber1(self) -> Path:
        return self.site.peer_path("ber1")


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path)


async def test_an_edit_that_nobody_has_loaded(daemon: Daemon) -> None:
    assert (await daemon.watch.look())["state"] == "current"
    daemon.site.peers["ber1"]["keepalive"] = 9
    daemon.site.write()
    found = await daemon.watch.look()
    assert found["state"] == "differs"
    assert found["restart"] == ["peer ber1 would be changed (keepalive)"]
    assert not found["errors"]
    assert not daemon.journal.counters["configuration_wrong"]
    daemon.restart()
    assert (await daemon.watch.look())["state"] == "current"


async def test_a_mistake_is_told_at_once_and_once_in_the_log(daemon: Daemon) -> None:
    daemon.ber1.chmod(0o664)  # no byte of it has changed
    for _ in range(3):
        found = await daemon.watch.look()
        assert found["state"] == "errors"
        assert found["errors"][0]["file"] == str(daemon.ber1)
        assert found["restart"][0].startswith("ber1 would not run, ")
        assert not found["held"]  # it runs, still
    assert daemon.journal.counters["configuration_wrong"] == 1
    daemon.restart()
    found = await daemon.watch.look()
    assert [(held["peer"], held["guarded"]) for held in found["held"]] == [
        ("ber1", ["10.30.0.0/16"])
    ]
    daemon.ber1.chmod(0o644)
    found = await daemon.watch.look()
    assert found["state"] == "differs"
    assert found["restart"] == ["peer ber1 would be added"]
    assert daemon.journal.counters["configuration_good"] == 1


@pytest.mark.parametrize("what", ["vpnd.toml", "folder", "identity"])
async def test_whatever_a_start_reads_is_looked_at(daemon: Daemon, what: str) -> None:
    assert (await daemon.watch.look())["state"] == "current"
    match what:
        case "vpnd.toml":
            text = f'[node\nstate_dir = "{daemon.site.state_dir}"\n'
            daemon.site.write_text(daemon.site.path, text)
        case "folder":
            daemon.site.peers_dir.rename(daemon.site.folder / "aside")
        case "identity":
            (daemon.site.state_dir / "identity.key").chmod(0o644)
    found = await daemon.watch.look()
    assert found["state"] == "errors"
    would = {
        "vpnd.toml": "the last good one would run",
        "folder": "ams1 would not run",
        "identity": "vpnd would not start: no identity can be used",
    }
    assert any(would[what] in text for text in found["restart"])


async def test_nothing_is_read_again_without_a_change(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not for what the daemon itself has written: with a thousand peers that takes long."""
    await daemon.watch.look()
    read = []

    def counted(path: Path) -> object:
        read.append(path)
        return read_start(path)

    monkeypatch.setattr(disk_watch, "read_start", counted)
    await daemon.watch.look()
    daemon.config = daemon.config.without_peer("ber1")
    daemon.ber1.unlink()
    daemon.watch.own_change(daemon.config, daemon.ber1)
    assert (await daemon.watch.look())["state"] == "current"
    assert not read
    # What somebody else did at the same time is not taken for the daemon's own
    daemon.site.peer_path("ams1").chmod(0o666)
    daemon.config = replace(daemon.config)
    daemon.watch.own_change(daemon.config, daemon.ber1)
    assert (await daemon.watch.look())["state"] == "errors"
    assert read


async def test_a_link_to_nowhere_is_not_the_same_as_no_file(daemon: Daemon) -> None:
    daemon.ber1.unlink()
    daemon.ber1.symlink_to("/nonexistent")
    assert (await daemon.watch.look())["state"] == "errors"
    daemon.ber1.unlink()
    daemon.ber1.symlink_to(daemon.ber1.name)  # to itself
    assert "symbolic links" in (await daemon.watch.look())["errors"][0]["reason"]


async def test_a_state_directory_that_is_gone_is_an_error(daemon: Daemon) -> None:
    daemon.site.state_dir.rename(daemon.site.state_dir.with_name("elsewhere"))
    found = await daemon.watch.look()
    assert found["state"] == "errors"
    assert [each["reason"] for each in found["errors"]] == ["has no identity any more"]
    assert found["restart"][0].startswith("vpnd would not start")
