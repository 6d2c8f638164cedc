"""Whether this host lets the daemon put interfaces into other network namespaces.

Apart from `tun`, which does it: a command line that checks a configuration loads no netlink.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

HELPER_SOCKET: Final = Path("/run/vpnd-nsfd.sock")
"""Where vpnd-nsfd listens (`tun.namespace`)."""
_CAP_SYS_ADMIN: Final = 21


def namespaces_fault() -> tuple[str, str] | None:
    """Why this process has no way into other namespaces, and what to do; None where it has one."""
    if HELPER_SOCKET.is_socket() or _has_capability(_CAP_SYS_ADMIN):
        return None
    return (
        "is out of reach: without CAP_SYS_ADMIN, vpnd asks vpnd-nsfd for it, and nobody listens at "
        f"{HELPER_SOCKET}",
        "systemctl enable --now vpnd-nsfd.socket (`make install` installs it), or take netns out",
    )


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False
