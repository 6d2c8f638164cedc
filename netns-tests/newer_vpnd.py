"""vpnd as the next minor version of the protocol could be; started in place of `vpnd`.

docs/protocol.md §9: within version 1 a later minor version may add keys to the payloads, and
nothing else. This one says that it is of the minor version after this one, and adds a key that
this one does not know: so a daemon of this version at the other end is older by one.
"""

from __future__ import annotations

import sys
from typing import Any

from kex import payload
from vpnd.__main__ import main

_fields = payload._announcement_fields


def _later_fields(announcement: payload.Announcement) -> dict[str, Any]:
    later = {"minor": payload.MINOR_VERSION + 1, "later": [1, "what nobody knows yet"]}
    return {**_fields(announcement), **later}


if __name__ == "__main__":
    payload._announcement_fields = _later_fields
    print(f"newer_vpnd: minor version {payload.MINOR_VERSION + 1}", file=sys.stderr)
    main()
