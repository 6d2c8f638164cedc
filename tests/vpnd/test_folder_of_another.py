"""What root does in a folder of another user, while that user changes the names in it.

Nothing outside may be given away, changed, removed or read, whatever stands under a name.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from kex.identity import Identity
from tests.vpnd.test_link_record import RECORD
from tun import TunnelSpec
from vpnd.atomic_file import Owner, discard_leftovers, make_folder
from vpnd.config_model import PeerSettings, validate
from vpnd.config_source import Source
from vpnd.external_record import ExternalRecord, ExternalRecords
from vpnd.file_trust import FileFault, folder_fault, folder_files, read_public, read_secret
from vpnd.identity_store import (
    PeerKeyCache,
    create_identity,
    load_identities,
    remove_identity,
    system_suite,
    use_identity,
)
from vpnd.link_record import LinkRecords
from vpnd.peer_file import peer_path, remove_peer_file, restore_peer_file, write_peer_file
from vpnd.tunnel_record import TunnelRecords

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="is root in a folder of another user")

OTHER = 65534
OWNER = Owner(OTHER, OTHER)
TRIES = 40
IDENTITY = Identity.generate(system_suite(1))
FINGERPRINT = IDENTITY.fingerprint
PEER = validate(
    PeerSettings, {"identity": FINGERPRINT.text(), "allowed_ips": ["10.9.0.0/16"]}, Source(None)
)


@contextmanager
def as_other() -> Iterator[None]:
    """This thread's view of files is the other user's; the other threads stay root."""
    libc = ctypes.CDLL(None)
    libc.setfsgid(OTHER)
    libc.setfsuid(OTHER)
    try:
        yield
    finally:
        libc.setfsuid(0)
        libc.setfsgid(0)


@dataclass(frozen=True)
class Place:
    """`home` is the other user's, with a folder `state` in it; `outside` is root's."""

    home: Path
    outside: Path

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def secret(self) -> Path:
        return self.outside / "identity.key"

    def seen_outside(self) -> object:
        """All that the other user must not get changed."""
        found = []
        for path in (self.outside, *sorted(self.outside.rglob("*"))):
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found.append((path, status.st_uid, status.st_gid, status.st_mode, content))
        return found


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    # Of the daemon's own user, whom all believe: nothing is refused for the folder's owner alone
    monkeypatch.setattr("vpnd.file_trust.DAEMON_USER", "nobody")
    with tempfile.TemporaryDirectory(prefix="vpnd-another-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103  # the other user gets at the home in it
        place = Place(Path(folder, "home"), Path(folder, "outside"))
        for path in (place.home, place.state):
            path.mkdir()
            os.chown(path, OTHER, OTHER)
        place.outside.mkdir(mode=0o755)
        (place.outside / "peer-keys").mkdir(mode=0o755)
        # All names that root looks for are there as well
        text = IDENTITY.to_file_text()
        for name, mode in (
            ("identity.key", 0o600),
            ("identity-y.key", 0o600),
            ("identity.use", 0o644),
            ("a.json", 0o600),
        ):
            path = place.outside / name
            path.write_text(text if name.endswith(".key") else " default \n")
            path.chmod(mode)
        (place.outside / "a.toml").write_text("secret = 1\n")
        (place.outside / ".left").write_text("over")
        yield place


def refused(action: Callable[[], object]) -> None:
    with suppress(FileFault):
        action()


# ---- what is there before root comes

Work = Callable[[Path], object]

WRITERS: dict[str, Work] = {
    "new identity": lambda folder: create_identity(folder, IDENTITY, "x", owner=OWNER),
    "first identity": lambda folder: create_identity(folder, IDENTITY, owner=OWNER),
    "use": lambda folder: use_identity(folder, "default"),
    "remove": lambda folder: remove_identity(folder, "y"),
    "new peer": lambda folder: write_peer_file(folder, "b", PEER),
    "changed peer": lambda folder: write_peer_file(folder, "a", PEER, replace=True),
    "restored peer": lambda folder: restore_peer_file(peer_path(folder, "a"), b"# as before\n"),
    "removed peer": lambda folder: remove_peer_file(folder, "a"),
    "leftovers": discard_leftovers,
    "folder": lambda folder: make_folder(folder / "x", mode=0o755, exact=True, owner=OWNER),
    "key cache": lambda folder: PeerKeyCache(folder, warn=lambda _: None).store(
        FINGERPRINT, IDENTITY.public_key
    ),
    "forgotten key": lambda folder: PeerKeyCache(folder, warn=lambda _: None).forget(FINGERPRINT),
}


@pytest.mark.parametrize("work", WRITERS.values(), ids=list(WRITERS))
def test_a_link_in_the_folders_place_leads_nowhere(place: Place, work: Work) -> None:
    with as_other():
        place.state.rmdir()
        place.state.symlink_to(place.outside)
    before = place.seen_outside()
    refused(lambda: work(place.state))
    assert place.seen_outside() == before


@pytest.mark.parametrize("made", ["links", "external", "tunnels"])
def test_records_are_not_written_through_a_link(place: Place, made: str) -> None:
    with as_other():
        (place.state / made).symlink_to(place.outside)
    before = place.seen_outside()
    spec = TunnelSpec(tunnel_name="a", interface="wg-a", listen_port=1)
    refused(lambda: LinkRecords(place.state).store("a", RECORD))
    refused(lambda: LinkRecords(place.state).forget("a"))
    refused(lambda: ExternalRecords(place.state).store("a", ExternalRecord()))
    refused(lambda: ExternalRecords(place.state).forget("a"))
    refused(lambda: TunnelRecords(place.state).store(spec))
    refused(lambda: TunnelRecords(place.state).forget("a"))
    assert TunnelRecords(place.state).left_over({}) == []
    LinkRecords(place.state).discard_leftovers()
    assert LinkRecords(place.state).names() == []
    assert place.seen_outside() == before


def test_what_cannot_be_replaced_is_not_written_over_either(place: Place) -> None:
    """A record that there is no room for beside the old one goes over it, but through no link."""
    long = "a" * 245  # with ".json" a possible name, and none with what a new file has besides
    links = place.state / "links"
    with as_other():
        links.mkdir()
        (links / f"{long}.json").symlink_to(place.outside / "a.json")
    before = place.seen_outside()
    with pytest.raises(FileFault, match="File name too long"):
        LinkRecords(place.state).store(long, RECORD)
    assert place.seen_outside() == before
    own = LinkRecords(place.outside)
    (place.outside / "links").mkdir()
    (place.outside / "links" / f"{long}.json").write_text("before")
    own.store(long, RECORD)
    assert own.load(long) == RECORD


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder", "socket"])
def test_what_is_no_file_of_theirs_is_not_read(place: Place, kind: str) -> None:
    paths = [place.state / name for name in ("identity.key", "identity.use", "a.toml")]
    for path in paths:
        match kind:
            case "link":
                with as_other():
                    path.symlink_to(place.outside / path.name)
            case "hard link":  # as the other user can where fs.protected_hardlinks is 0
                os.link(place.outside / path.name, path)
            case "pipe":
                with as_other():
                    os.mkfifo(path)
            case "folder":
                with as_other():
                    path.mkdir()
            case "socket":
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(str(path))
    stored = load_identities(place.state)
    assert not stored.identities
    assert {fault.path for fault in stored.faults} >= set(paths[:2])
    for path in paths:
        with pytest.raises(FileFault):
            read_public(path, limit=4096)
        with pytest.raises(FileFault):
            read_secret(path, limit=4096)


def test_links_that_root_made_are_followed(place: Place) -> None:
    """In a folder of root's any, in one of somebody else's those that only mean one thing."""
    (place.outside / "relative.toml").symlink_to("a.toml")
    (place.state / "absolute.toml").symlink_to(place.outside / "a.toml")
    (place.state / "relative.toml").symlink_to("../../outside/a.toml")
    (place.outside / "way").symlink_to(place.state)
    for path in (
        place.outside / "relative.toml",
        place.state / "absolute.toml",
        place.outside / "way" / "absolute.toml",
        place.state / ".." / "state" / "absolute.toml",
    ):
        assert read_public(path, limit=100).data == b"secret = 1\n"
    with pytest.raises(FileFault, match="is a symbolic link that others can change"):
        read_public(place.state / "relative.toml", limit=100)
    (place.state / "round.toml").symlink_to(place.state / "round.toml")
    with pytest.raises(FileFault, match="Too many levels"):
        read_public(place.state / "round.toml", limit=100)
    assert folder_files(place.outside / "way", ".toml")
    assert folder_fault(place.outside / "relative.toml") is not None


# ---- what changes while root is at work


@contextmanager
def swapping(swap: Callable[[int], None]) -> Iterator[None]:
    """The other user, who does `swap` as often as there is time."""
    stop = threading.Event()

    def run() -> None:
        with as_other():
            for turn in itertools.count():
                if stop.is_set():
                    return
                with suppress(OSError):
                    swap(turn)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def swap_each_name(place: Place) -> Callable[[int], None]:
    """Moves each file that turns up away, and puts something else in its place."""
    aside = place.home / "aside"

    def swap(turn: int) -> None:
        for name in os.listdir(place.state):
            path = place.state / name
            target = place.outside / ("identity.key" if turn % 2 else "a.json")
            with suppress(OSError):
                path.rename(aside)
                if turn % 5 == 0:
                    path.mkdir()
                elif turn % 5 == 1:
                    os.mkfifo(path)
                else:
                    path.symlink_to(target)

    return swap


def swap_the_folder(place: Place) -> Callable[[int], None]:
    """Puts a link to the folder outside in the folder's place, and back."""
    aside = place.home / "aside"

    def swap(_: int) -> None:
        place.state.rename(aside)
        place.state.symlink_to(place.outside)
        place.state.unlink()
        aside.rename(place.state)

    return swap


SWAPS = {"names": swap_each_name, "folder": swap_the_folder}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=list(SWAPS))
@pytest.mark.parametrize("work", WRITERS.values(), ids=list(WRITERS))
def test_names_that_change_meanwhile(
    place: Place, work: Work, swap: Callable[[Place], Callable[[int], None]]
) -> None:
    before = place.seen_outside()
    with swapping(swap(place)):
        for turn in range(TRIES):
            refused(lambda: work(place.state))
            if turn % 8 == 7:
                with suppress(OSError), as_other():
                    clear(place.state)
    assert place.seen_outside() == before


def clear(folder: Path) -> None:
    for name in os.listdir(folder):
        with suppress(OSError):
            os.unlink(folder / name)
        with suppress(OSError):
            os.rmdir(folder / name)


def test_a_new_identity_is_whole_and_given_away(place: Place) -> None:
    path = create_identity(place.state, IDENTITY, "x", owner=OWNER)
    found = path.lstat()
    assert (found.st_uid, found.st_gid, found.st_nlink) == (OTHER, OTHER, 1)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert os.listdir(place.state) == [path.name]
    with as_other():
        assert path.read_text() == IDENTITY.to_file_text()
    made = place.state / "a" / "b"
    assert make_folder(made, mode=0o750, exact=True, owner=OWNER)
    assert not make_folder(made, mode=0o700, exact=True)
    found = made.lstat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (OTHER, 0o750)
    assert made.parent.lstat().st_uid == 0


WITHOUT_PROC = """
import os, sys
from pathlib import Path
from vpnd.atomic_file import FileExists, write_atomically
assert not os.path.exists("/proc/self")
path = Path(sys.argv[1])
write_atomically(path, b"first", mode=0o640, replace=False)
try:
    write_atomically(path, b"second", mode=0o640, replace=False)
except FileExists:
    print(path.read_text(), oct(path.stat().st_mode), os.listdir(path.parent))
"""


def test_a_new_file_where_there_is_no_proc(tmp_path: Path) -> None:
    """A file without a name gets its name by /proc."""
    script = 'mount -t tmpfs none /proc && exec "$@"'
    python = [sys.executable, "-c", WITHOUT_PROC, str(tmp_path / "file")]
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *python],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "first 0o100640 ['file']\n"
