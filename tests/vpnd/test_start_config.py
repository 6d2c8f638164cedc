"""What a start runs and guards, whatever is wrong on disk."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from types import MappingProxyType

import pytest

from kex.identity import Fingerprint
from tests.vpnd.config_files import Site
from vpnd.config import load_config
from vpnd.config_errors import ConfigErrors
from vpnd.last_good import last_good_path, read_last_good, write_last_good
from vpnd.start_config import Start, last_good_of, read_start

BER1 = Fingerprint.of(1, b"ber1").text()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Two peers, ams1 and ber1, and no identity of its own."""
    tmp_path.chmod(0o755)
    site = Site(tmp_path)
    site.peers["ams1"]["allowed_ips"] = ["10.20.0.0/16", "fd00:20::/48"]
    site.peers["ber1"] = {"identity": BER1, "allowed_ips": ["10.30.0.0/16"]}
    site.state_dir.mkdir(mode=0o700)
    site.write()
    return site


def start(site: Site) -> Start:
    return read_start(site.path, with_identities=False)


def ran(site: Site) -> None:
    """The configuration as it is on disk has run."""
    found = start(site)
    assert found.config is not None
    assert not found.problems
    write_last_good(site.state_dir, last_good_of(found.config, found.last_good))


def guarded(found: Start) -> set[str]:
    return {str(prefix) for parts in found.guards.values() for e in parts for prefix in e.prefixes}


ALL = {"10.20.0.0/16", "fd00:20::/48", "10.30.0.0/16"}


def _typing_error(site: Site) -> None:
    file = site.peer_path("ber1")
    file.write_text(file.read_text().replace('identity"', "idendity"))


def _no_toml(site: Site) -> None:
    site.write_text(site.peer_path("ber1"), 'identity = “x”\nallowed_ips = ["10.30.0.0/16"\n')


def _utf_16(site: Site) -> None:
    site.peer_path("ber1").write_bytes('allowed_ips = ["10.30.0.0/16"]\n'.encode("utf-16"))


def _binary(site: Site) -> None:
    site.peer_path("ber1").write_bytes(b'\xff\xfe\xfaallowed_ips = ["10.30.0.0/16"]\x00\n')


def _mode(site: Site) -> None:
    site.peer_path("ber1").chmod(0o664)


def _wrong_prefix(site: Site) -> None:
    file = site.peer_path("ber1")
    site.write_text(file, f'identity = "{BER1}"\nallowed_ips = ["10.30.0.1/16"]\n')


def _wrong_type(site: Site) -> None:
    site.write_text(site.peer_path("ber1"), 'identity = 1\nallowed_ips = "10.30.0.0/16"\n')


def _wrong_key(site: Site) -> None:
    file = site.peer_path("ber1")
    site.write_text(file, f'identity = "{BER1}"\nalowed_ips = ["10.30.0.0/16"]\n')


def _unknown_tunnel(site: Site) -> None:
    file = site.peer_path("ber1")
    site.write_text(
        file, f'identity = "{BER1}"\ntunnel = "other"\nallowed_ips = ["10.30.0.0/16"]\n'
    )


def _two_tunnels(site: Site) -> None:
    site.main["tunnels"]["second"] = {"interface": "wg1", "listen_port": 51830}
    site.write_text(site.path, "")
    site.write()


def _same_prefix(site: Site) -> None:
    file = site.peer_path("ber1")
    site.write_text(file, f'identity = "{BER1}"\nallowed_ips = ["10.30.0.0/16", "10.20.0.0/16"]\n')


FAULTS: list[Callable[[Site], None]] = [
    _typing_error, _no_toml, _utf_16, _binary, _mode, _wrong_prefix, _wrong_type, _wrong_key,
    _unknown_tunnel, _two_tunnels, _same_prefix,
]  # fmt: skip


@pytest.mark.parametrize("before", [True, False], ids=["ran before", "first start"])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_bad_file_stops_its_own_link_alone(
    site: Site, fault: Callable[[Site], None], before: bool
) -> None:
    if before:
        ran(site)
    fault(site)
    found = start(site)
    assert found.config is not None
    assert list(found.config.held) == ["ber1"] or (
        # Neither ran before: nobody can say which one is meant
        fault is _same_prefix and not before and set(found.config.held) == {"ams1", "ber1"}
    )
    assert set(found.config.peers) | set(found.config.held) == {"ams1", "ber1"}
    assert found.problems
    assert any(problem.file == site.peer_path("ber1") for problem in found.problems)
    assert guarded(found) >= ALL
    assert not found.stale
    with pytest.raises(ConfigErrors):
        load_config(site.path, with_identities=False)
    # What had run is kept until a change is applied
    kept = last_good_of(found.config, found.last_good)
    assert set(kept.peers) >= ({"ams1", "ber1"} if before else set(found.config.peers))


@pytest.mark.parametrize("spoil", ["garbage", "missing", "unreadable", "mode", "semantics"])
def test_with_a_bad_vpnd_toml_the_last_good_one_runs(site: Site, spoil: str) -> None:
    site.peers["ams1"]["tunnel"] = "backbone"
    site.write()
    ran(site)
    text = site.path.read_text()
    match spoil:
        case "garbage":
            # No state_dir can be read out of it but by its line
            site.write_text(site.path, f'[node\nstate_dir = "{site.state_dir}"\n')
        case "missing" | "unreadable":
            site.path.unlink()
            if spoil == "unreadable":
                site.path.mkdir()
        case "mode":
            site.path.chmod(0o666)
        case "semantics":
            site.write_text(site.path, text.replace("51820", "51821"))
    if spoil in ("missing", "unreadable"):
        # Nobody can say where the state is; in the usual place there is none of this one
        assert start(site).config is None
        assert guarded(start(site)) == ALL
        return
    found = start(site)
    assert found.config is not None
    assert found.config.main_is_last_good
    assert set(found.config.peers) == {"ams1", "ber1"}
    assert found.config.tunnels["backbone"].listen_port == 51820
    assert guarded(found) == ALL
    assert found.problems
    assert last_good_of(found.config, found.last_good) == found.last_good


def test_with_a_bad_vpnd_toml_and_none_before_there_are_guards_alone(site: Site) -> None:
    site.write_text(site.path, "[node\n")
    found = start(site)
    assert found.config is None
    assert guarded(found) == ALL


@pytest.mark.parametrize("how", ["missing", "empty", "another", "unreadable", "a file"])
def test_a_folder_of_peers_that_is_gone_is_an_error(site: Site, how: str) -> None:
    ran(site)
    aside = site.folder / "aside"
    site.peers_dir.rename(aside)
    if how == "empty":  # a mount point without its file system
        site.peers_dir.mkdir(mode=0o755)
    elif how == "another":
        site.peers_dir.symlink_to(site.folder / "nowhere")
    elif how == "unreadable":
        site.peers_dir.symlink_to(site.peers_dir)
    elif how == "a file":
        site.peers_dir.touch(mode=0o644)
    found = start(site)
    assert found.config is not None
    assert set(found.config.held) == {"ams1", "ber1"}
    assert guarded(found) == ALL
    assert any(problem.file == site.peers_dir for problem in found.problems)
    # … also at the next start, and at the one after it
    write_last_good(site.state_dir, last_good_of(found.config, found.last_good))
    assert set(start(site).guards) == {"ams1", "ber1"}
    if not site.peers_dir.is_dir():
        site.peers_dir.unlink(missing_ok=True)
    elif how == "empty":
        site.peers_dir.rmdir()
    aside.rename(site.peers_dir)
    again = start(site)
    assert again.config is not None
    assert not again.problems
    assert set(again.config.peers) == {"ams1", "ber1"}


def test_one_file_that_is_gone_is_a_removal_and_all_at_once_are_none(site: Site) -> None:
    ran(site)
    site.peer_path("ber1").unlink()
    found = start(site)
    assert not found.problems
    assert "ber1" in found.stale  # guarded until the daemon runs without it
    assert guarded(found) == ALL
    ran(site)
    assert guarded(start(site)) == ALL - {"10.30.0.0/16"}
    site.peer_path("ams1").unlink()  # the last one, by itself
    assert not start(site).problems
    site.write()
    ran(site)
    for name in ("ams1", "ber1"):
        site.peer_path(name).unlink()
    (problem,) = start(site).problems
    assert "--remove-all-peers" in problem.hint


def test_a_removal_beside_an_error_is_not_applied(site: Site) -> None:
    ran(site)
    site.peer_path("ams1").unlink()
    _mode(site)
    found = start(site)
    assert found.config is not None
    assert set(found.config.held) == {"ams1", "ber1"}
    assert guarded(found) == ALL


def test_in_a_folder_that_others_can_write_to_what_is_as_before_runs(site: Site) -> None:
    ran(site)
    site.peers_dir.chmod(0o777)
    found = start(site)
    assert found.config is not None
    assert set(found.config.peers) == {"ams1", "ber1"}
    assert found.problems
    site.peers["ber1"]["keepalive"] = 9
    site.peers["mad1"] = {
        "identity": Fingerprint.of(1, b"mad1").text(),
        "allowed_ips": ["10.40.0.0/16"],
    }
    site.write()
    found = start(site)
    assert found.config is not None
    assert set(found.config.peers) == {"ams1"}
    assert guarded(found) == ALL | {"10.40.0.0/16"}


def test_of_two_that_contradict_each_other_the_one_that_ran_before_runs(site: Site) -> None:
    ran(site)
    site.peers["aaa1"] = {  # read before the other
        "identity": Fingerprint.of(1, b"aaa1").text(),
        "allowed_ips": ["10.20.0.0/16"],
    }
    site.write()
    found = start(site)
    assert found.config is not None
    assert list(found.config.held) == ["aaa1"]
    assert "ams1" in found.config.held["aaa1"].reason


def test_a_damaged_last_good_set_is_told_and_nothing_else_suffers(site: Site) -> None:
    ran(site)
    path = last_good_path(site.state_dir)
    whole = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    for text in ("", "{", "[]", '{"version": 1, "peers": []}', whole[:-20], "nul\0" * 9):
        path.write_text(text)
        found = start(site)
        assert found.config is not None
        assert set(found.config.peers) == {"ams1", "ber1"}
        assert guarded(found) == ALL
    path.write_text(json.dumps(json.loads(whole) | {"version": 99}))
    _binary(site)
    found = start(site)
    assert found.notes
    assert found.config is not None
    assert guarded(found) == ALL
    path.chmod(0o666)
    assert "mode 0666" in str(start(site).notes[0])
    # Another configuration's is not ours
    assert read_last_good(site.state_dir, Path("/elsewhere/vpnd.toml"))[0].peers == {}


def test_guards_of_a_bad_file_do_not_cut_a_good_link_off(site: Site) -> None:
    site.peers["ams1"]["endpoint"] = "192.0.2.7:51821"
    site.peers["ber1"]["allowed_ips"] = ["128.0.0.0/1", "0.0.0.0/0", "10.30.0.0/16"]
    site.write()
    _mode(site)
    assert guarded(start(site)) == ALL


def test_where_a_bad_file_is_guarded(site: Site) -> None:
    """In its tunnel's table; where it was before, if that is not known; else in all tables."""
    site.main["tunnels"]["second"] = {"interface": "wg1", "listen_port": 51830, "table": 77}
    site.peers["ams1"]["tunnel"] = "backbone"
    site.peers["ber1"]["tunnel"] = "second"
    site.write()
    ran(site)

    def tables() -> set[int | None]:
        return {each.place.table for each in start(site).guards["ber1"]}

    assert tables() == {77}
    _mode(site)
    assert tables() == {77}
    site.write_text(site.peer_path("ber1"), 'allowed_ips = ["10.30.0.0/16"]\n')
    assert tables() == {77}  # it was there
    site.write_text(site.peer_path("cph1"), 'allowed_ips = ["10.50.0.0/16"]\n')
    assert {e.place.table for e in start(site).guards["cph1"]} == {None, 77}
    del site.main["tunnels"]["second"]
    site.write()
    assert 77 in tables()


def test_while_a_folder_is_replaced(site: Site) -> None:
    """A configuration management that writes a new folder and moves it into the place."""
    ran(site)
    found = start(site)
    assert found.config is not None
    new = site.folder / "new"
    new.mkdir(mode=0o755)
    for file in site.peers_dir.iterdir():
        (new / file.name).write_bytes(file.read_bytes())
        (new / file.name).chmod(0o644)
    site.peers_dir.rename(site.folder / "old")
    # Just now: between the two steps
    assert set(start(site).guards) == {"ams1", "ber1"}
    with pytest.raises(ConfigErrors):
        load_config(site.path, with_identities=True)
    new.rename(site.peers_dir)
    assert not start(site).problems


def test_a_reload_never_takes_a_folder_that_is_being_replaced_for_fewer_peers(site: Site) -> None:
    ran(site)
    other, aside = site.folder / "other", site.folder / "aside"
    shutil.copytree(site.peers_dir, other)
    other.chmod(0o755)
    done = threading.Event()

    def replace_again_and_again() -> None:
        while not done.is_set():
            site.peers_dir.rename(aside)
            other.rename(site.peers_dir)
            aside.rename(other)

    thread = threading.Thread(target=replace_again_and_again)
    thread.start()
    try:
        outcomes = set()
        for _ in range(60):
            try:
                outcomes.add(frozenset(load_config(site.path).peers))
            except ConfigErrors:
                outcomes.add(frozenset({"refused"}))
            found = start(site)
            assert guarded(found) == ALL
            assert found.config is not None
            assert set(found.config.peers) | set(found.config.held) == {"ams1", "ber1"}
    finally:
        done.set()
        thread.join()
    assert outcomes <= {frozenset({"ams1", "ber1"}), frozenset({"refused"})}


def test_as_an_ordinary_user_nothing_of_the_state_is_needed(site: Site) -> None:
    ran(site)
    if os.geteuid() == 0:
        last_good_path(site.state_dir).unlink()
    assert set(load_config(site.path).peers) == {"ams1", "ber1"}


def test_entries_leave_with_what_is_applied(site: Site) -> None:
    ran(site)
    found = start(site)
    assert found.config is not None
    less = last_good_of(found.config.without_peer("ber1"), found.last_good)
    assert set(less.peers) == {"ams1"}
    assert less.peers["ams1"].guards[0].prefixes == (
        ip_network("10.20.0.0/16"),
        ip_network("fd00:20::/48"),
    )
    held = replace(found.config, peers=MappingProxyType({}))
    assert not last_good_of(held, found.last_good).peers
