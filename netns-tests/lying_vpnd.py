"""vpnd that announces the WireGuard public key that its first argument names, in hexadecimal;
started in place of `vpnd`."""

from __future__ import annotations

import sys
from typing import Any

from kex import payload
from vpnd.__main__ import main

_fields = payload._announcement_fields
_key = bytes.fromhex(sys.argv.pop(1))


def _lying_fields(announcement: payload.Announcement) -> dict[str, Any]:
    return {**_fields(announcement), "wg": _key}


if __name__ == "__main__":
    payload._announcement_fields = _lying_fields
    main()
