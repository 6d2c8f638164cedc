"""A real daemon with many links on one QKD source: `python key_crowd.py LINKS PLAIN SECONDS`.

To be run by `unshare` in namespaces of its own. All links but the first PLAIN take keys from one
key manager, which is killed for SECONDS, and then started again. Prints a line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from bench import hub
from bench.far_ends import PORT
from bench.process import cpu_of, memory_of
from kex.identity import Identity
from vpnd.identity_store import create_identity, system_suite
from vpnd_lab.control import NotAnswering, ask
from vpnd_lab.kme.pair import Pair, open_pair
from vpnd_lab.kme.pool import LinkSettings
from vpnd_lab.programs import program

FOLDER: Final = hub.FOLDER
ENDS: Final = Path(__file__).with_name("key_crowd_ends.py")
UP_SECONDS: Final = 240.0
HEAL_SECONDS: Final = 180.0
POOL: Final = 10**9
"""Bits: as good as never empty."""


def _configure(links: int, plain: int, pair: Pair) -> subprocess.Popen[str]:
    identity = Identity.generate(system_suite(1))
    (FOLDER / "peers.d").mkdir(parents=True)
    create_identity(FOLDER / "state", identity)
    (FOLDER / "hub.pub").write_bytes(identity.public_key)
    (FOLDER / "vpnd.toml").write_text(hub.CONFIG + "\n" + pair.near.key_source("kme"))
    certificates = FOLDER / "saes"
    certificates.mkdir()
    (certificates / "ca.pem").write_bytes(pair.far.ca.read_bytes())
    for number in range(plain, links):
        issued = pair.authority.client(f"sae-{number}")
        issued.write(certificates / f"sae-{number}.pem", certificates / f"sae-{number}.key")
    (url,) = pair.far.kme.urls("etsi")
    told = {"url": url, "folder": str(certificates), "plain": plain}
    (FOLDER / "source.json").write_text(json.dumps(told))
    ends = subprocess.Popen(
        [sys.executable, str(ENDS), str(hub.HUB_PORT), str(links), str(FOLDER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if ends.stdout is None or not ends.stdout.readline():
        raise SystemExit("the far ends did not start")
    for number, (host, fingerprint) in enumerate(json.loads((FOLDER / "ends.json").read_text())):
        table = (
            ""
            if number < plain
            else (f'[external_keys]\nmode = "require"\nsource = "kme"\npeer_sae = "sae-{number}"\n')
        )
        (FOLDER / "peers.d" / f"end{number:04}.toml").write_text(
            f'identity = "{fingerprint}"\nendpoint = "{host}:{PORT}"\n'
            f'allowed_ips = ["10.{1 + (number >> 8)}.{number & 255}.0/24"]\n{table}'
        )
    return ends


def _start_daemon() -> subprocess.Popen[bytes]:
    argv = [program("vpnd"), "--config", str(FOLDER / "vpnd.toml")]
    with (FOLDER / "log").open("wb") as log:
        return subprocess.Popen(argv, stdout=log, stderr=log)


async def _status() -> Any:
    return await trio.to_thread.run_sync(hub._status)


async def _rekey(name: str) -> None:
    path = f"/v1/peers/{name}/rekey"
    await trio.to_thread.run_sync(partial(ask, hub.SOCKET, "POST", path))


def _keys(status: Any) -> dict[str, str]:
    return {
        link["peer"]: (link["key_installed"] or {"key_id": ""})["key_id"]
        for link in status["links"]
    }


async def _wait_new(names: list[str], before: dict[str, str], seconds: float) -> float:
    """Until all these have a new key; how long that took. Ends with what is missing."""
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        try:
            now = _keys(await _status())
        except NotAnswering:
            now = {}
        missing = [name for name in names if now.get(name, "") in ("", before.get(name, ""))]
        if not missing:
            return time.monotonic() - began
        await trio.sleep(1)
    said = (FOLDER / "log").read_text()[-3000:]
    raise SystemExit(
        f"{len(missing)} links without a new key in {seconds:g} s: {missing[:5]}\n{said}"
    )


async def _outage(pid: int, seconds: float) -> dict[str, list[float]]:
    """CPU (share of a core), memory (bytes) and connections tried in vain (a second) in each
    quarter of the outage: the key manager of the far ends is there, so those are the daemon's."""
    used: dict[str, list[float]] = {"cpu": [], "memory": [], "tried": []}
    for _ in range(4):
        cpu, tried, began = cpu_of(pid), _tried_in_vain(), time.monotonic()
        await trio.sleep(seconds / 4)
        took = time.monotonic() - began
        used["cpu"].append((cpu_of(pid) - cpu) / took)
        used["memory"].append(memory_of(pid))
        used["tried"].append((_tried_in_vain() - tried) / took)
    return used


def _tried_in_vain() -> int:
    """TCP connections that were refused in this network namespace (RFC 4022, tcpAttemptFails)."""
    lines = Path("/proc/net/snmp").read_text("ascii").splitlines()
    names, numbers = (line.split()[1:] for line in lines if line.startswith("Tcp:"))
    return int(dict(zip(names, numbers, strict=True))["AttemptFails"])


def _most_in_a_second(times: list[float]) -> int:
    return max((sum(at <= each < at + 1 for each in times) for at in times), default=0)


async def run(links: int, plain: int, seconds: float) -> None:
    hub._private_host()
    FOLDER.mkdir()
    saes = [f"sae-{number}" for number in range(plain, links)]
    async with open_pair(
        FOLDER / "kme", settings=LinkSettings(pool=POOL), near=["sae-hub"], far=saes
    ) as pair:
        ends = await trio.to_thread.run_sync(_configure, links, plain, pair)
        daemon = _start_daemon()
        names = [f"end{number:04}" for number in range(links)]
        measured: dict[str, Any] = {"up": await _wait_new(names, {}, UP_SECONDS)}
        await pair.near.kme.kill()
        before = _keys(await _status())
        for name in names:
            await _rekey(name)
        measured["plain_renewed"] = await _wait_new(names[:plain], before, 30)
        # Keys that were fetched ahead, or had when it was killed, are used meanwhile
        await trio.sleep(seconds / 4)
        before = _keys(await _status())
        measured |= await _outage(daemon.pid, seconds)
        during = _keys(await _status())
        measured["kept"] = sum(during[name] == before[name] for name in names[plain:])
        measured["without"] = [
            link["peer"]
            for link in (await _status())["links"]
            if link["peer"] in names[plain:] and not link["external_keys"]["installed"]
        ]
        await pair.near.kme.start()
        calls = await pair.near.kme.calls()
        last = max((call["number"] for call in calls), default=0)
        measured["healed"] = await _wait_new(names[plain:], during, HEAL_SECONDS)
        calls = await pair.near.kme.calls(after=last)
        measured["calls"] = Counter(call["kind"] for call in calls)
        measured["most_in_a_second"] = _most_in_a_second([call["at"] for call in calls])
        measured["states"] = Counter(link["state"] for link in (await _status())["links"])
        daemon.terminate()
        measured["exit"] = await trio.to_thread.run_sync(daemon.wait)
        await trio.to_thread.run_sync(ends.communicate, "")
    print(json.dumps(measured))


if __name__ == "__main__":
    trio.run(run, int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
