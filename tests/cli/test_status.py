"""`vpnctl status` and `vpnctl events` against a server that answers as the daemon does."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import IO, cast

import pytest

from cli.client import Client, Wakeups
from cli.links import link_lines, trouble_first
from tests.cli.conftest import PROGRAM, Vpnctl
from tests.cli.fake_daemon import FakeDaemon, error, key, link
from vpnd.api import SCHEMA, ConfigurationStatus, Event
from vpnd.clock import boottime
from vpnd.link_record import LinkRecord, LinkRecords

STAMP = "2020-01-02T03:04:05Z"


def test_table_tells_state_keys_and_traffic_of_each_link(
    vpnctl: Vpnctl, daemon: FakeDaemon
) -> None:
    waiting = link("ams1", key_installed=key("feedbeef", 3.0, in_force=False))
    daemon.links = [waiting, link("par1", "degraded"), link("lon1", "exchanging")]
    ended = vpnctl("status")
    assert ended.code == 0
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    assert lines[:3] == [
        "fra1, vpnd 0.1.0, up 2 h 1 min", "3 links: 1 exchanging, 1 degraded, 1 active", ""
    ]  # fmt: skip
    assert re.split("  +", lines[3]) == [
        "peer", "state", "key id", "key age", "suite",
        "handshake", "received", "sent", "endpoint",
    ]  # fmt: skip
    assert re.split("  +", lines[4])[:4] == ["lon1", "exchanging", "–", "–"]
    assert re.split("  +", lines[6]) == [
        "ams1", "active", "0badc0de → feedbeef", "1 min 1 s", "1",
        "12 s ago", "2.0 KiB", "1.5 KiB", "192.0.2.7:51820",
    ]  # fmt: skip
    assert not [line for line in lines if line.startswith("ams1 active")]
    assert re.search(
        r"^lon1 exchanging for \d+ d \d+ h: the reason for exchanging$", ended.stdout, re.M
    )


def test_keys_of_which_one_is_in_force_are_named(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    either = {"key_ids": ["0badc0de", "feedbeef"], "until": "2020-01-02T03:04:05Z"}
    newest = key("feedbeef", 3.0, in_force=False)
    daemon.links = [link("ams1", key_in_force=None, key_installed=newest, keys_alive=either)]
    shown = vpnctl("status").stdout
    assert re.search(r"^ams1 +active +0badc0de or feedbeef  3 s ", shown, re.M)
    assert (
        "\nams1 sessions of 2 keys may be alive until 03:04:05 UTC: 0badc0de, feedbeef\n" in shown
    )
    daemon.links[0]["key_installed"] = key("cafecafe", 3.0, in_force=False)
    daemon.links[0]["keys_alive"] = {"key_ids": either["key_ids"], "until": None}  # type: ignore[typeddict-item]
    shown = vpnctl("status", "ams1").stdout
    assert "0badc0de or feedbeef → cafecafe" in shown
    assert "may be alive up to the next exchange" in shown


def test_table_in_a_pipe_has_no_colours_and_a_line_for_each_link(
    vpnctl: Vpnctl, daemon: FakeDaemon
) -> None:
    daemon.links = [link(f"a-rather-long-name-of-a-peer-{number}") for number in range(30)]
    ended = vpnctl("status", COLUMNS="40", FORCE_COLOR="1")
    assert "\x1b" not in ended.stdout
    assert len(re.findall(r"^a-rather-long-name-of-a-peer-\d+ ", ended.stdout, re.M)) == 30


def test_key_sources_have_a_column_where_there_are_any(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    mixed = link("ams1", external_keys={"mode": "require", "mixed": ["kme-fra", "file"]})
    daemon.links = [mixed, link("par1")]
    table = vpnctl("status").stdout
    assert "keys from" in table
    assert "kme-fra, file" in table


def on_a_terminal(vpnctl: Vpnctl, columns: int, *arguments: str) -> str:
    """What vpnctl prints on a terminal of that width."""
    command = f"stty cols {columns}; {PROGRAM} {' '.join(arguments)}"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        env={**vpnctl.environment, "TERM": "xterm"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    return done.stdout.replace("\r\n", "\n")


def test_a_terminal_gets_colours(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1"), link("par1", "degraded")]
    wide = on_a_terminal(vpnctl, 200, "status")
    assert re.search(r"^ams1 .*\x1b\[32mactive.*192\.0\.2\.7:51820", wide, re.M)
    vpnctl.environment["NO_COLOR"] = "1"
    assert "\x1b" not in on_a_terminal(vpnctl, 200, "status")


@pytest.mark.parametrize("columns", [100, 80, 60, 40, 20])
def test_a_narrow_terminal_gets_fewer_columns_and_a_line_for_each_link(
    vpnctl: Vpnctl, daemon: FakeDaemon, columns: int
) -> None:
    renewed = link("par1", key_installed=key("feedbeef", 3.0, in_force=False), adopted=True)
    daemon.links = [link("a-rather-long-name-of-a-gateway"), renewed]
    vpnctl.environment["NO_COLOR"] = "1"
    heading, table = on_a_terminal(vpnctl, columns, "status").split("\n\n")
    assert heading.splitlines()[1] == "2 links: 2 active"
    heads, *rows = table.splitlines()
    assert max(map(len, (heads, *rows))) <= columns
    assert [row.split()[1] for row in rows] == ["active", "active"]
    assert ("key id" in heads) == (columns >= 80)
    one = on_a_terminal(vpnctl, columns, "status", "par1").splitlines()
    assert len(one) == 2


def test_all_that_is_known_of_a_link_is_in_peer_show_on_any_terminal(
    vpnctl: Vpnctl, daemon: FakeDaemon
) -> None:
    daemon.links = [link("par1", "degraded")]
    narrow = on_a_terminal(vpnctl, 60, "peer", "show", "par1")
    assert re.search(r"^peer +par1\nstate +.*degraded.*\nkey id +0badc0de\n", narrow, re.M)
    assert re.search(r"^endpoint +192\.0\.2\.7:51820$", narrow, re.M)


def test_trouble_comes_first_and_is_counted(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    over = {
        "since": STAMP, "until": STAMP, "over_limit": True, "extended_seconds": 0, "reason": "away"
    }  # fmt: skip
    daemon.links = [
        link("a"),
        link("b", "degraded"),
        link("c", "down"),
        link("d", external_keys={"mode": "prefer", "mixed": [], "fallback": over}),
        link("e", "closed"),
        link("f", "a state of the future"),
        link("g", warnings=["a prefix is missing"]),
    ]
    lines = vpnctl("status").stdout.splitlines()
    assert "".join(line[0] for line in lines[4:11]) == "defcbga"
    assert lines[1] == (
        "7 links: 1 closed, 1 a state of the future, 1 down, 1 degraded, 3 active, "
        "1 over the limit of a fallback"
    )
    assert [each["peer"] for each in vpnctl("status", "--json").document["links"]] == list(
        "abcdefg"
    )


def test_a_thousand_links_take_no_time() -> None:
    links = [link(f"peer{number}") for number in range(1000)]
    begun = time.process_time()
    assert len(link_lines(trouble_first(links))) == 1001
    assert time.process_time() - begun < 0.5


class Terminal:
    """vpnctl on a terminal of its own, whose size can be changed."""

    def __init__(self, vpnctl: Vpnctl, lines: int, columns: int, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.resize(lines, columns)
        self.process = subprocess.Popen(
            [PROGRAM, *arguments],
            env={**vpnctl.environment, "TERM": "xterm", "NO_COLOR": "1"},
            stdin=slave, stdout=slave, stderr=slave, cwd=vpnctl.home, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self._raw = b""

    def resize(self, lines: int, columns: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def screen(self, wanted: Callable[[list[str]], bool]) -> list[str]:
        """The first whole screen that is as wanted, as its lines."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            *screens, rest = self._raw.split(b"\x1b[J")
            for screen in screens:
                shown = screen.decode().rpartition("\x1b[H")[2].replace("\x1b[K", "")
                lines = shown.replace("\r\n", "\n").rstrip("\n").split("\n")
                if wanted(lines):
                    return lines
            self._raw = rest
            if select.select([self._master], [], [], 1)[0]:
                self._raw += os.read(self._master, 65536)
        raise AssertionError("no such screen")

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            while os.read(self._master, 65536):
                pass
        except OSError:
            os.close(self._master)
        return self.process.wait(30)


def test_watch_keeps_its_heading_and_counts_what_does_not_fit(
    vpnctl: Vpnctl, daemon: FakeDaemon
) -> None:
    daemon.links = [link(f"peer{number:02}") for number in range(30)]
    daemon.links[20] = link("peer20", "down")
    terminal = Terminal(vpnctl, 12, 80, "status", "--watch")
    small = terminal.screen(lambda lines: True)
    assert len(small) < 12
    assert small[0].startswith("fra1, vpnd")
    assert small[1] == "30 links: 1 down, 29 active"
    assert small[4].startswith("peer20")
    shown = sum(line.startswith("peer") and not line.startswith("peer20 down") for line in small)
    assert f"… {30 - (shown - 1)} more" in small  # without the heads
    assert small[-1].startswith("peer20 down for ")
    terminal.resize(60, 80)
    large = terminal.screen(lambda lines: len(lines) > 12)
    assert sum(line.startswith("peer") for line in large) == 1 + 30 + 1
    assert not [line for line in large if line.startswith("…")]
    terminal.resize(12, 40)
    narrow = terminal.screen(lambda lines: len(lines) < 12)
    assert max(map(len, narrow)) <= 40
    moved = vpnctl.socket.rename(vpnctl.home / "elsewhere.sock")
    away = terminal.screen(lambda lines: "not running" in lines[0])
    assert away[1].startswith("fra1, vpnd")
    assert any(line.startswith("peer20") for line in away)
    moved.rename(vpnctl.socket)
    terminal.screen(lambda lines: lines[0].startswith("fra1, vpnd"))
    assert terminal.end() == 0


def test_watch_goes_on_while_the_daemon_starts(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1")]
    with vpnctl.start("status", "ams1", "--watch") as process:
        lines_of(process.stdout, 1)
        daemon.refuses = (503, error("unavailable", "vpnd is starting"))
        while "vpnd is starting; trying again" not in lines_of(process.stdout, 1)[0]:
            pass
        daemon.refuses = None
        while not lines_of(process.stdout, 1)[0].startswith("ams1"):
            pass
        assert end(process)[0] == 0


def test_nothing_that_a_peer_sent_reaches_the_terminal_raw(
    vpnctl: Vpnctl, daemon: FakeDaemon
) -> None:
    daemon.links = [link("ams1", "down", reason="refused: \x1b[2J\x07evil\r\nams1 active")]
    ended = vpnctl("status")
    assert "\x1b" not in ended.stdout
    assert "\x07" not in ended.stdout
    assert "refused: \\x1b[2J\\x07evil ams1 active" in ended.stdout


def test_without_peers_it_says_how_to_add_one(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    ended = vpnctl("status")
    assert ended.code == 0
    assert "vpnctl peer add" in ended.stdout


@pytest.mark.parametrize(
    ("state", "code", "strict"),
    [
        ("active", 0, 0),
        ("degraded", 0, 4),
        ("installed", 4, 4),
        ("exchanging", 4, 4),
        ("down", 4, 4),
        ("closed", 4, 4),
        ("a state of the future", 4, 4),
    ],
)
def test_exit_code_says_whether_a_link_is_protected(
    vpnctl: Vpnctl, daemon: FakeDaemon, state: str, code: int, strict: int
) -> None:
    daemon.links = [link("ams1", state), link("par1")]
    assert vpnctl("status", "ams1", "--json").code == code
    assert vpnctl("status", "ams1", "--strict", "--json").code == strict


def test_a_whole_node_is_judged_only_when_asked(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1"), link("par1")]
    assert vpnctl("status", "--strict").code == 0
    daemon.links = [link("ams1"), link("par1", "degraded")]
    assert vpnctl("status").code == 0
    assert vpnctl("status", "--strict").code == 4


def test_json_is_the_daemons_own_document(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1"), link("par1", "closed")]
    whole = vpnctl("status", "--json").document
    assert whole["schema"] == SCHEMA
    assert whole["links"] == daemon.links
    one = vpnctl("status", "par1", "--json")
    assert one.document == daemon.links[1]
    assert one.code == 4


def test_another_schema_is_refused(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.schema = SCHEMA + 1
    vpnctl("status", "--json").assert_refused(1)


def test_unknown_peer_is_corrected(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("amsterdam"), link("paris")]
    ended = vpnctl("status", "amstrdam")
    ended.assert_refused(2)
    assert ended.errors == ["there is no peer 'amstrdam'"]
    assert ended.hints == ["did you mean amsterdam?"]
    assert vpnctl("status", "zzz").hints == ["the peers here: amsterdam, paris"]
    assert daemon.requests[0][1] == "/v1/links/amstrdam"


def test_a_name_cannot_reach_another_path(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    vpnctl("status", "../status?x").assert_refused(2)
    assert daemon.requests[0][1] == "/v1/links/..%2Fstatus%3Fx"


def test_the_daemons_refusal_is_told_in_full(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    details = [
        {"file": "/etc/vpnd/vpnd.toml", "line": 3, "key": "node.name", "reason": "no", "hint": "h"},
        {"reason": "and another"},
    ]
    body = error("unavailable", "not now", "try again", details)  # type: ignore[arg-type]
    daemon.refuses = (503, body)
    ended = vpnctl("status")
    ended.assert_refused(1)
    assert ended.errors == ["not now", "/etc/vpnd/vpnd.toml:3: node.name: no", "and another"]
    assert ended.hints == ["try again", "h"]


def lines_of(stream: IO[str] | None, count: int) -> list[str]:
    assert stream is not None
    return [stream.readline() for _ in range(count)]


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """As Ctrl-C does; the exit code and what was on stderr."""
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    return process.returncode, stderr


def test_watch_shows_again_until_interrupted(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1", "exchanging")]
    with vpnctl.start("status", "ams1", "--watch", "--json") as process:
        (first,) = lines_of(process.stdout, 1)
        assert json.loads(first)["state"] == "exchanging"
        daemon.links = [link("ams1")]
        while json.loads(*lines_of(process.stdout, 1))["state"] != "active":
            pass
        assert end(process) == (0, "")


def test_watch_of_a_table_needs_no_terminal(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1")]
    with vpnctl.start("status", "--watch") as process:
        text = "".join(lines_of(process.stdout, 12))
        assert text.count("fra1, vpnd 0.1.0") == 2
        assert "\x1b" not in text
        assert end(process) == (0, "")


def test_watch_outlives_the_daemon(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1")]
    with vpnctl.start("status", "ams1", "--watch") as process:
        lines_of(process.stdout, 1)
        moved = vpnctl.socket.rename(vpnctl.home / "elsewhere.sock")
        while "trying again" not in lines_of(process.stdout, 1)[0]:
            pass
        moved.rename(vpnctl.socket)
        while not lines_of(process.stdout, 1)[0].startswith("ams1"):
            pass
        assert end(process)[0] == 0


EVENTS: list[Event] = [
    {"schema": SCHEMA, "at": STAMP, "event": "state_changed", "peer": "ams1", "state": "active",
     "reason": "a key is in force", "key_id": "0badc0de", "fields": {"took": 0.2}},
    {"schema": SCHEMA, "at": STAMP, "event": "key_installed", "peer": "par1"},
    {"schema": SCHEMA, "at": STAMP, "event": "tunnel_lost", "tunnel": "backbone"},
]  # fmt: skip


def test_events_are_followed(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.tell(*EVENTS)
    with vpnctl.start("events") as process:
        assert lines_of(process.stdout, 3) == [
            f"{STAMP}  ams1  state_changed  active  key id=0badc0de  took=0.2: a key is in force\n",
            f"{STAMP}  par1  key_installed\n",
            f"{STAMP}  backbone  tunnel_lost\n",
        ]
        assert end(process) == (0, "")


def test_events_of_one_peer_as_json_lines(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("par1")]
    daemon.tell(*EVENTS)
    with vpnctl.start("events", "par1", "--json") as process:
        assert json.loads(*lines_of(process.stdout, 1)) == EVENTS[1]
        assert end(process) == (0, "")


def test_events_of_the_past_are_shown_and_that_is_all(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.tell(*EVENTS)
    done = vpnctl("events", "--last", "3", "--since", "2026-01-31T12:00:00+01:00")
    assert done.code == 0
    assert len(done.stdout.splitlines()) == 3
    (asked,) = daemon.asked_events
    assert asked == {"last": "3", "since": "2026-01-31T11:00:00.000Z", "follow": "false"}


def test_events_of_the_past_and_on(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.tell(*EVENTS[:1])
    before = datetime.now(tz=UTC)
    with vpnctl.start("events", "--since", "10min", "-f") as process:
        lines_of(process.stdout, 1)
        daemon.tell(EVENTS[1])
        lines_of(process.stdout, 1)
        assert end(process) == (0, "")
    (asked,) = daemon.asked_events
    assert asked.keys() == {"since"}
    ago = before - datetime.fromisoformat(asked["since"])
    assert timedelta(minutes=8) < ago <= timedelta(minutes=10, seconds=1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("--since", "yesterday"), "'yesterday' is no time"),
        (("--since", "25:00"), "'25:00' is no time"),
        (("--since", "2999-01-01"), "'2999-01-01' lies ahead"),
        (("--last", "0"), "--last"),
        (("--last", "many"), "'many' is not a whole number"),
    ],
)
def test_no_such_past(
    vpnctl: Vpnctl, daemon: FakeDaemon, wrong: tuple[str, str], words: str
) -> None:
    done = vpnctl("events", *wrong)
    done.assert_refused(2)
    assert words in done.stderr
    assert daemon.asked_events == []


def test_events_say_when_the_daemon_ends_them(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.end_events()
    vpnctl("events").assert_refused(3)


def test_a_reader_that_has_enough_is_no_error(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    daemon.links = [link("ams1")]
    with vpnctl.start("status", "--watch", "--json") as process:
        lines_of(process.stdout, 1)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(30) == 1


def test_a_wait_ends_with_the_next_event(vpnctl: Vpnctl, daemon: FakeDaemon) -> None:
    """Of the three waits each may last a minute; only an event lets the test go on."""
    with Wakeups(Client(str(vpnctl.socket))) as wakeups:
        for event in EVENTS:
            daemon.tell(event)
            wakeups.wait(60)


def test_without_the_daemon_it_says_how_long_the_links_run_on(vpnctl: Vpnctl) -> None:
    vpnctl.config.parent.mkdir()
    vpnctl.config.write_text(f'[node]\nname = "fra1"\nruntime_dir = "{vpnctl.home}"\n')
    records = LinkRecords(vpnctl.home)
    record = LinkRecord(
        tunnel="backbone",
        identity="",
        wireguard_key="00" * 32,
        key_id="0badc0de",
        installed_at=0.0,
        expires_at=boottime() + 330,
        stamp_before="",
        replaces=False,
        in_force_key_id="",
        in_force_installed_at=0.0,
        in_force_since=0.0,
    )
    records.store("ams1", record)
    records.store("lon1", replace(record, expires_at=boottime() - 1))
    ended = vpnctl("status")
    ended.assert_refused(3)
    assert re.fullmatch(
        r"ams1: runs on without the daemon, for 5 min \d+ s at most", ended.hints[0]
    )
    assert not any("lon1" in hint for hint in ended.hints)


def configuration(state: str, **more: object) -> ConfigurationStatus:
    values: dict[str, object] = {
        "state": state, "errors": [], "error_count": 0, "main_is_last_good": False, "held": [],
        "restart": [], "at": STAMP, **more,
    }  # fmt: skip
    return cast(ConfigurationStatus, values)


def test_what_is_wrong_on_disk_is_told_before_anything_else(
    vpnctl: Vpnctl, daemon: FakeDaemon
) -> None:
    daemon.links = [link("lon1")]
    daemon.configuration = configuration("current")
    sound = vpnctl("status", "--strict")
    assert sound.code == 0
    assert sound.stdout.startswith("fra1, vpnd ")
    file = "/etc/vpnd/peers.d/ams1.toml"
    daemon.configuration = configuration(
        "errors",
        errors=[{"file": file, "line": 3, "key": "keepalve", "reason": "unknown key", "hint": "?"}],
        error_count=12,
        held=[
            {"peer": "ams1", "file": file, "reason": "x", "guarded": ["10.20.0.0/16", "fd00::/48"]}
        ],
        restart=["ams1 would not run"],
    )
    ended = vpnctl("status")
    assert ended.code == 0
    assert ended.stdout.splitlines()[:7] == [
        "what is on disk is not what runs: 12 errors",
        f"  {file}:3: keepalve: unknown key (?)",
        "  … 11 more: vpnctl check",
        "  not running: ams1; guarded: 10.20.0.0/16, fd00::/48",
        "  at a restart: ams1 would not run",
        "",
        "fra1, vpnd 0.1.0, up 2 h 1 min",
    ]
    assert vpnctl("status", "--strict").code == 4
    assert vpnctl("status", "--json").document["configuration"] == daemon.configuration
    # A change that nobody has reloaded yet is no error
    daemon.configuration = configuration("differs", restart=["peer ams1 would be added"])
    ended = vpnctl("status", "--strict")
    assert ended.code == 0
    assert ended.stdout.startswith("what is on disk is not what runs: vpnctl reload --dry-run\n")
    daemon.configuration = configuration("current", main_is_last_good=True)
    ended = vpnctl("status", "--strict")
    assert ended.code == 4
    assert "the last good vpnd.toml" in ended.stdout
