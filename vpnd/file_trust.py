"""Files that the daemon believes: who owns them and who can change or read them.

A secret file (identities) has mode 0600 and belongs to the daemon's own user. A configuration
file may be readable, and is refused when others than its owner can write it. Root and the user
of the installed daemon are trusted besides the user who asks, so that `vpnctl check` as root
judges as the daemon does.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vpnd.open_folder import names_in, open_file, opened_folder

DAEMON_USER: Final = "vpnd"
"""The user that the packaged daemon runs as."""


class FileFault(Exception):
    """A file or folder that is missing, cannot be used, or must not be believed."""

    def __init__(self, path: Path, reason: str, hint: str = "") -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.hint = hint


class FileMissing(FileFault):
    """There is no such file."""


class FileUnreadable(FileFault):
    """The file is there, and this user may not read it."""


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file's bytes; `fault` says why they must not be believed, None that they may."""

    data: bytes
    fault: FileFault | None


def current_user() -> str:
    """Who runs this program: `nobody (uid 65534)`."""
    return _user(os.geteuid())


def trusted_uids() -> frozenset[int]:
    """Root, the user who runs this program, and the packaged daemon's user."""
    trusted = {0, os.geteuid()}
    with suppress(KeyError):
        trusted.add(pwd.getpwnam(DAEMON_USER).pw_uid)
    return frozenset(trusted)


def read_public(path: Path, *, limit: int) -> CheckedFile:
    """Read at most `limit` bytes of a file that all may read; FileFault where it cannot be read.

    The caller decides about a file that others can write: it may want to name more that is wrong.
    """
    with _opened(path, 0) as (handle, found):
        return CheckedFile(_read(path, handle, limit), _writers(path, found))


def read_secret(path: Path, *, limit: int) -> bytes:
    """Read at most `limit` bytes of a secret file; FileFault unless its owner alone can read it."""
    with _opened(path, os.O_NOFOLLOW) as (handle, found):
        fault = secret_fault(path, found)
        if fault is not None:
            raise fault
        return _read(path, handle, limit)


def secret_fault(path: Path, found: os.stat_result) -> FileFault | None:
    """Why a secret must not lie in such a file."""
    if found.st_uid not in trusted_uids():
        return FileFault(
            path,
            f"belongs to {_user(found.st_uid)}, who can read the secret in it",
            f"chown it to the user that vpnd runs as ({_user(os.geteuid())})",
        )
    if found.st_mode & 0o077:
        return FileFault(
            path,
            f"has mode {stat.S_IMODE(found.st_mode):04o}: others than its owner can get at it",
            f"chmod 600 {path}; if others may have read it, replace what is in it",
        )
    return None


def folder_fault(path: Path, *, sticky_allowed: bool = False) -> FileFault | None:
    """Why the files in a folder cannot be believed; None also for a folder that is missing.

    In a sticky folder such as /tmp others cannot replace a file, but add new ones.
    """
    try:
        with opened_folder(path) as folder:
            found = os.fstat(folder)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return FileFault(path, "is not a folder")
    except (OSError, ValueError) as error:
        return _as_fault(path, error)
    if sticky_allowed and found.st_mode & stat.S_ISVTX:
        return None
    return _writers(path, found)


def folder_files(folder: Path, suffix: str) -> list[Path]:
    """The files with this suffix, in order of their names; none where the folder is missing.

    Hidden files are left out: editors and half-written files.
    """
    try:
        with opened_folder(folder) as opened:
            found = [folder / name for name in names_in(opened) if Path(name).suffix == suffix]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _as_fault(folder, error) from None
    return sorted(path for path in found if not path.name.startswith("."))


def _writers(path: Path, found: os.stat_result) -> FileFault | None:
    if found.st_uid not in trusted_uids():
        return FileFault(
            path,
            f"belongs to {_user(found.st_uid)}, who could change it",
            f"chown it to root or to the user that vpnd runs as ({_user(os.geteuid())})",
        )
    if found.st_mode & 0o022:
        return FileFault(
            path,
            f"has mode {stat.S_IMODE(found.st_mode):04o}: others than its owner can change it",
            f"chmod go-w {path}",
        )
    return None


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[tuple[int, os.stat_result]]:
    """A regular file, open for reading, and what it is: looked at once, through the handle."""
    try:
        # Without O_NONBLOCK a FIFO would hold the daemon up
        handle = open_file(path, os.O_RDONLY | os.O_NONBLOCK | flags)
    except (OSError, ValueError) as error:
        raise _as_fault(path, error) from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise FileFault(path, "is not a regular file")
        yield handle, found
    finally:
        os.close(handle)


def _read(path: Path, handle: int, limit: int) -> bytes:
    try:
        with open(handle, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _as_fault(path, error) from None
    if len(data) > limit:
        raise FileFault(path, f"is longer than {limit} bytes", "is it the right file?")
    return data


def _as_fault(path: Path, error: OSError | ValueError) -> FileFault:
    if isinstance(error, FileNotFoundError):
        return FileMissing(path, "does not exist")
    if isinstance(error, PermissionError):
        return FileUnreadable(
            path,
            f"cannot be read as {current_user()}",
            "run the command as root or as the daemon's user",
        )
    if isinstance(error, OSError):
        return FileFault(path, f"cannot be read: {error.strerror or 'unknown error'}")
    return FileFault(path, "is not a possible file name")


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
