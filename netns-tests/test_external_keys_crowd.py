"""Many links on one QKD source whose key manager is away for a while.

    far end 127.1.0.1 ─┐                                     kme-b
    far end 127.1.0.2 ─┤── loopback ── vpnd 127.0.0.1 ── kme-a (killed, and started again)
          …            ┘

Links without QKD renew meanwhile, the others keep their keys; the daemon's CPU and memory stay
flat; and all is healed by itself, with a bounded rate of calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from bench.links import OF_ITS_OWN

pytestmark = pytest.mark.netns

SCRIPT = Path(__file__).with_name("key_crowd.py")
ROOT = SCRIPT.parent.parent
MOST_IN_A_SECOND = 80
"""Calls of the daemon: 16 of each kind side by side, each of some milliseconds."""
MOST_TRIED = 5.0
"""Connections a second while it is away: one call at a time finds out whether it is back."""
FLAT_MEMORY = 1.15


def _run(links: int, plain: int, seconds: float) -> Any:
    done = subprocess.run(
        [*OF_ITS_OWN, sys.executable, str(SCRIPT), str(links), str(plain), str(seconds)],
        check=False,
        capture_output=True,
        text=True,
        timeout=1800,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


async def _check(links: int, plain: int, seconds: float) -> None:
    measured = await trio.to_thread.run_sync(_run, links, plain, seconds)
    print(json.dumps(measured))
    qkd = links - plain
    assert measured["without"] == []  # no key without one of the key manager's
    # All, but for what a key that was fetched ahead is used for later
    assert measured["kept"] >= 0.9 * qkd
    assert measured["memory"][-1] < FLAT_MEMORY * measured["memory"][0]
    # No busier at the end of the outage than at its beginning
    assert measured["cpu"][-1] < 1.5 * measured["cpu"][0] + 0.05
    assert max(measured["tried"]) < MOST_TRIED
    assert measured["calls"].get("enc_keys", 0) + measured["calls"].get("dec_keys", 0) >= qkd
    assert sum(measured["calls"].values()) < 6 * qkd
    assert measured["most_in_a_second"] <= MOST_IN_A_SECOND
    assert sum(measured["states"].get(state, 0) for state in ("active", "installed")) == links
    assert measured["exit"] == 0


async def test_20_links_on_a_key_manager_that_is_away_for_a_minute() -> None:
    await _check(20, 4, 60)


@pytest.mark.long
async def test_200_links_on_a_key_manager_that_is_away() -> None:
    """Ten minutes in operation; what repeats there does so every 30 s, so four show it."""
    await _check(200, 20, 240)
