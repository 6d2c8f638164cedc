"""vpnd on a disk that takes its time; started in place of `vpnd`.

While the file that VPND_TEST_DISK names is there, whoever wants a file of peers.d to be on disk
waits, as where that is busy or about to fail. The runtime folder is kept in memory, and goes on.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from vpnd.__main__ import main

_busy = Path(os.environ["VPND_TEST_DISK"])
_fsync = os.fsync


def _wait_for_disk(descriptor: int) -> None:
    of_peers = "peers.d" in os.readlink(f"/proc/self/fd/{descriptor}")
    if of_peers and _busy.exists():
        print("slow_disk_vpnd: waiting", file=sys.stderr, flush=True)
    while of_peers and _busy.exists():
        time.sleep(0.05)
    _fsync(descriptor)


if __name__ == "__main__":
    # Narrower than the real one, which takes objects with a fileno() as well
    os.fsync = _wait_for_disk  # type: ignore[assignment]
    main()
