"""What becomes of records: where the log cannot be written, and how they look where it can."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from vpnd.log_writer import QUEUE_BYTES, LogWriter

RECORDS = """
import sys
from vpnd.event_feed import EventFeed
from vpnd.journal import Journal, configure_logging

writer = configure_logging("info", *sys.argv[2:])
journal = Journal(EventFeed(), writer)
for number in range(int(sys.argv[1])):  # of as many links: none repeats itself
    journal.record("key_installed", peer=f"ams{number or ''}", key_id="0badc0de")
print("done", journal.counters["key_installed"], flush=True)
if sys.stdin.readline():  # the reader has come back
    writer.flush(60)
    journal.record("key_installed", peer="ams", key_id="later")
    writer.flush(60)
print("lost", journal.unwritten, flush=True)
"""
MANY = 20_000
"""Records: more than a pipe and the queue hold."""


def recording(
    stderr: int | None, *arguments: str, closed: bool = False, **environment: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RECORDS, *arguments]
    if closed:
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ | environment,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_what_was_lost_is_told() -> None:
    read, write = os.pipe()
    flags = fcntl.fcntl(write, fcntl.F_GETFL)
    with recording(write, str(MANY)) as process:
        assert line(process) == f"done {MANY}\n"
        # It may be anybody's: a daemon that made it non-blocking would break the others
        assert fcntl.fcntl(write, fcntl.F_GETFL) == flags
        os.close(write)
        with open(read, encoding="utf-8") as log:
            assert process.stdin is not None
            process.stdin.write("on\n")
            process.stdin.close()
            records = [json.loads(each) for each in log]
        lost = int(line(process).split()[1])
        assert process.wait(60) == 0
    told = [record for record in records if record["event"] == "log_dropped"]
    assert lost > 0
    assert [record["dropped"] for record in told] == [lost]
    assert len(records) == MANY + 1 - lost + 1
    # Where the gap is: before what came once there was room again
    assert records[-1]["key_id"] == "later"
    assert records[-2]["event"] == "log_dropped"


def test_a_pipe_that_nobody_reads_does_not_keep_the_program_from_ending() -> None:
    read, write = os.pipe()
    with recording(write, str(MANY)) as process:
        os.close(write)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
    os.close(read)


@pytest.mark.parametrize("where", ["full disk", "no reader", "closed"])
def test_a_log_that_cannot_be_written_stops_nobody(where: str) -> None:
    stderr = None
    if where == "full disk":
        stderr = os.open("/dev/full", os.O_WRONLY)
    elif where == "no reader":
        read, stderr = os.pipe()
        os.close(read)
    with recording(stderr, "3", closed=where == "closed") as process:
        if stderr is not None:
            os.close(stderr)
        assert line(process) == "done 3\n"
        assert process.stdin is not None
        process.stdin.write("on\n")
        process.stdin.close()
        assert line(process) == "lost 4\n"
        assert process.wait(60) == 0


def test_a_gap_in_a_log_that_could_not_be_written_is_told_where_it_goes_on() -> None:
    read, write = os.pipe()
    spare = os.dup(write)
    lines: Callable[[int], str] = "lost {}\n".format
    writer = LogWriter(spare, tell_dropped=lines)
    writer.write("one\n")
    assert writer.flush(60)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, spare)
    writer.write("two\n")
    writer.write("three\n")
    assert writer.flush(60)
    os.dup2(write, spare)
    writer.write("four\n")
    assert writer.flush(60)
    for each in (write, spare, full):
        os.close(each)
    with open(read, encoding="utf-8") as log:
        assert log.read() == "one\nlost 2\nfour\n"
    assert writer.dropped == 2


def test_a_queue_never_grows_beyond_its_bound() -> None:
    read, write = os.pipe()
    writer = LogWriter(write, tell_dropped="lost {}\n".format)
    began = time.monotonic()
    record = "x" * (QUEUE_BYTES // 4 - 1) + "\n"
    for _ in range(20):
        writer.write(record)
    # One may be in the thread's hands
    assert 20 - 5 <= writer.dropped <= 20 - 4
    assert not writer.flush(0.1)
    assert time.monotonic() - began < 60
    with open(read, "rb") as log:
        got = b""
        # In one piece or in several: the thread may have made room for one record in between
        while sum(map(int, re.findall(rb"lost (\d+)\n", got))) < writer.dropped:
            got += log.read1()
    os.close(write)


def in_the_journal(*arguments: str) -> list[str]:
    """What a process writes to the stream that JOURNAL_STREAM names."""
    ours, theirs = socket.socketpair()
    stream = os.fstat(theirs.fileno())
    with recording(
        theirs.fileno(), "1", *arguments, JOURNAL_STREAM=f"{stream.st_dev}:{stream.st_ino}"
    ) as process:
        theirs.close()
        with ours, ours.makefile(encoding="utf-8") as log:
            process.communicate("on\n", timeout=60)
            return list(log)


def test_the_journal_gets_a_line_for_people_with_its_priority() -> None:
    assert in_the_journal() == [
        "<6>key_installed ams (key_id=0badc0de)\n",
        "<6>key_installed ams (key_id=later)\n",
    ]


def test_the_journal_gets_json_where_that_is_configured() -> None:
    first, _ = in_the_journal("json")
    assert first.startswith("<6>{")
    assert json.loads(first[3:]).items() >= {"event": "key_installed", "peer": "ams"}.items()
    assert next(iter(json.loads(first[3:]))) == "event"


FAILING = """
from vpnd.event_feed import EventFeed
from vpnd.journal import Journal, configure_logging

configure_logging("info")
journal = Journal(EventFeed())
journal.record("tunnel_lost", level="error", tunnel="backbone", reason="gone\\nfor good")
journal.record("warning", level="warning", reason="a file")
try:
    raise ValueError("no good")
except ValueError as error:
    journal.record("internal_error", level="error", exc_info=error)
raise RuntimeError("crash")
"""


def test_every_line_has_the_priority_of_its_level() -> None:
    ours, theirs = socket.socketpair()
    stream = os.fstat(theirs.fileno())
    process = subprocess.Popen(
        [sys.executable, "-c", FAILING],
        stderr=theirs.fileno(),
        env=os.environ | {"JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}"},
    )
    theirs.close()
    with ours, ours.makefile(encoding="utf-8") as log:
        lines = list(log)
    assert process.wait(60) == 1
    assert lines[0] == "<3>tunnel_lost backbone: gone\\nfor good\n"
    assert lines[1] == "<4>warning: a file\n"
    assert lines[2] == "<3>internal_error\n"
    assert all(line.startswith("<3>") for line in lines[2:])
    assert "<3>ValueError: no good\n" in lines
    assert lines[-1] == "<3>RuntimeError: crash\n"


def test_another_journal_stream_than_stderr_is_none() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RECORDS, "1"],
        input="",
        capture_output=True,
        text=True,
        env=os.environ | {"JOURNAL_STREAM": "1:1"},
        timeout=60,
        check=True,
    )
    assert json.loads(done.stderr)["event"] == "key_installed"


def test_text_in_a_file_has_time_and_level() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RECORDS, "1", "text"],
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT[\d:.]+Z info    key_installed ams \(key_id=0badc0de\)\n", done.stderr
    )
