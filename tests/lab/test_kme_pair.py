"""vpnd-lab-kme as a program: two on loopback, told by their control addresses, killed and back."""

from __future__ import annotations

import json
import os
import select
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vpnd_lab.control import NotAnswering, Refused
from vpnd_lab.errors import DaemonFailed
from vpnd_lab.kme.pair import Pair, open_pair
from vpnd_lab.kme.pool import Ends, LinkSettings
from vpnd_lab.process import ProcessId

pytestmark = pytest.mark.slow

PROGRAM = Path(sys.executable).with_name("vpnd-lab-kme")
ENDS = Ends("kme-a", "kme-b", "sae-a", "sae-b")


async def test_a_pair_is_told_and_asked(tmp_path: Path) -> None:
    async with open_pair(tmp_path / "pair", settings=LinkSettings(rate=0, pool=2560)) as pair:
        await _settings(pair)
        await _orders(pair)
        await _wrong_orders(pair)
        await _killed_and_back(pair)
        processes = [end.kme.process for end in pair.ends]
    assert not any(process is not None and process.alive() for process in processes)


async def _settings(pair: Pair) -> None:
    table = tomllib.loads(pair.near.key_source("kme"))["key_sources"]["kme"]
    assert table["urls"] == pair.near.kme.urls()
    assert stat.S_IMODE(os.stat(table["key"]).st_mode) == 0o600
    before = pair.near.certificate.read_bytes()
    pair.near.renew("expired")
    assert pair.near.certificate.read_bytes() != before


async def _orders(pair: Pair) -> None:
    kme = pair.near.kme
    await kme.fault("slow", "enc_keys", seconds=20, times=3)
    await kme.certificate("expired")
    await kme.listener("down")
    await kme.network(delay=4)
    await kme.know("sae-a", None)
    state = await kme.state()
    assert [fault["kind"] for fault in state["faults"]] == ["slow"]
    assert (state["certificate"], state["listener"]) == ("expired", "down")
    assert (await pair.far.kme.state())["network"]["delay"] == 4
    assert "sae-a" not in state["saes"]
    await kme.drain()
    assert pair.network.stored_bits(ENDS) == 0
    await kme.reset()
    state = await kme.state()
    assert (state["faults"], state["certificate"], state["listener"]) == ([], "good", "up")
    assert "sae-a" in state["saes"]
    assert await kme.calls() == []


async def _wrong_orders(pair: Pair) -> None:
    kme = pair.near.kme
    before = await kme.state()
    for path, order in (
        ("faults", {"kind": "nonsense"}),
        ("faults", []),
        ("listener", {"state": "sideways"}),
        ("certificate", {"kind": "best"}),
        ("certificate", {"days": -1}),
        ("network", {"rate": -1}),
        ("network", {"speed": 1}),
        ("saes", {"sae": 7}),
        ("nothing", {}),
    ):
        with pytest.raises(Refused, match=r"the key manager kme-a says 40[04]"):
            await kme.ask("POST", f"/v1/{path}", order)
    assert await kme.state() == before


async def _killed_and_back(pair: Pair) -> None:
    kme = pair.far.kme
    await kme.network(pool=4096)
    bits, urls = pair.network.stored_bits(ENDS), kme.urls()
    await kme.kill()
    with pytest.raises(NotAnswering):
        await kme.state()
    with pytest.raises(DaemonFailed, match="does not run"):
        await kme.kill()
    await kme.start()
    assert (kme.urls(), pair.network.stored_bits(ENDS)) == (urls, bits)
    await kme.stop()
    assert not kme.control_socket.exists()


def test_the_program_says_how_to_reach_a_pair(tmp_path: Path) -> None:
    argv = [str(PROGRAM), "pair", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            lines: list[str] = []
            while not lines or "Ctrl-C" not in lines[-1]:
                lines.append(running.stdout.readline())
                assert lines[-1], lines
            tables = "".join(lines).split("# sae-b")
            assert "kme" in tomllib.loads(tables[0])["key_sources"]
            (socket,) = (
                line.split()[-1] for line in tables[0].splitlines() if "control address" in line
            )
            told = subprocess.run(
                [PROGRAM, "tell", socket, "POST", "/v1/faults", '{"kind": "nulls"}'],
                capture_output=True,
                text=True,
                check=True,
            )
            assert json.loads(told.stdout)["kind"] == "nulls"
            state = subprocess.run(
                [PROGRAM, "tell", socket, "GET", "/v1/state"],
                capture_output=True,
                text=True,
                check=True,
            )
            process = ProcessId.of(json.loads(state.stdout)["pid"])
            # Who started it dies without a word: it ends, too
            running.kill()
            _wait_ended(process)
        finally:
            running.kill()


def _wait_ended(process: ProcessId) -> None:
    try:
        fd = process.open_pidfd()
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    ended = poll.poll(30_000)
    os.close(fd)
    assert ended


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"name": 1}'])
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, content: str) -> None:
    file = tmp_path / "kme.json"
    file.write_text(content)
    done = subprocess.run([PROGRAM, "serve", file], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"vpnd-lab-kme: error: {file} is not a key manager's file")


def test_a_control_address_without_anybody_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "tell", tmp_path / "none", "GET", "/v1/state"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no answer on" in done.stderr
