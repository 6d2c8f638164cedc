"""One daemon a state directory: a lock on the directory itself, whatever happens to files in /run.

A cleaner that empties /run takes the control socket and its lock away; the state directory it
leaves alone, and if it did not, there would be no identity to run with. The lock goes with the
process.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vpnd.control_socket import ControlSocketError

_NO_LOCKS: Final = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Of a file system that cannot lock a directory (NFS): the control socket's lock is all then."""


@contextmanager
def state_locked(state_dir: Path) -> Iterator[None]:
    """Hold the lock meanwhile; ControlSocketError where another daemon has it. Without a directory
    there is nothing to lock: the start ends for want of an identity."""
    try:
        handle = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError):
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ControlSocketError(
                f"another vpnd runs with the state directory {state_dir}",
                "stop it first (systemctl stop vpnd), or give this one a state_dir of its own",
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)
