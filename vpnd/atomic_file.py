"""Writing a file so that a crash leaves the old one or the new one, never a part of either.

All of it in open folders (vpnd/open_folder.py): the folder may belong to another user, who must not
be able to turn what root does there to a file elsewhere.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vpnd.file_trust import FileFault
from vpnd.open_folder import UntrustedName, names_in, open_own_folder, opened_folder


class FileExists(FileFault):
    """A file of that name is there already, and was not to be replaced."""


class Owner(NamedTuple):
    """Whom a new file or folder is given to."""

    uid: int
    gid: int


def write_atomically(
    path: Path, data: bytes, *, mode: int, replace: bool, owner: Owner | None = None
) -> None:
    """Write `data` to `path` with these permissions, durably; FileFault where it cannot be done.

    With `replace=False` a file that is there already is left alone, and FileExists is raised:
    decided by the file system, so that two writers cannot both win. What is given to `owner` is
    the new file, before it has a name.
    """
    try:
        with opened_folder(path.parent) as folder:
            if replace:
                with _named(folder, path.name, data, mode, owner) as temporary:
                    os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                _write_new(folder, path.name, data, mode, owner)
            _sync_folder(folder)
    except FileExistsError:
        raise FileExists(path, "exists already and was left as it is") from None
    except (OSError, ValueError) as error:
        raise _as_fault(path, error) from None


def make_folder(
    path: Path, *, mode: int, exact: bool = False, owner: Owner | None = None, hint: str = ""
) -> bool:
    """Make a folder, and those above it; whether it was made. One that is there is left as it is.

    `exact`: with just this mode, whatever the umask. Raises FileFault, with `hint`.
    """
    try:
        missing = _missing(path)
        for index, folder in enumerate(missing):
            last = index == len(missing) - 1
            with opened_folder(folder.parent) as above:
                try:
                    os.mkdir(folder.name, mode if last else 0o777, dir_fd=above)
                except FileExistsError:
                    continue  # by somebody else, meanwhile
                if last:
                    _settle(above, folder.name, mode if exact else None, owner)
                    return True
        with opened_folder(path):
            return False
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and (hint or not isinstance(error, PermissionError)):
            reason = f"cannot be made: {error.strerror or 'unknown error'}"
            raise FileFault(path, reason, hint) from None
        raise _as_fault(path, error) from None


def remove_durably(path: Path) -> None:
    """Remove a file, so that it does not come back after a power failure; absent is fine too."""
    try:
        with opened_folder(path.parent) as folder:
            os.unlink(path.name, dir_fd=folder)
            _sync_folder(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileFault(path, f"cannot be removed: {error.strerror or 'unknown error'}") from None


def discard_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder that nobody else writes to."""
    with suppress(OSError), opened_folder(folder) as opened:  # small files; nothing reads them
        for name in names_in(opened):
            if name.startswith("."):
                os.unlink(name, dir_fd=opened)


def _missing(path: Path) -> list[Path]:
    """The folders that are not there, the topmost first."""
    missing: list[Path] = []
    for folder in (path, *path.parents):
        try:
            with opened_folder(folder):
                break
        except FileNotFoundError:
            missing.insert(0, folder)
    return missing


def _settle(above: int, name: str, mode: int | None, owner: Owner | None) -> None:
    """Mode and owner of a folder that was just made; not of one that was put in its place."""
    if mode is None and owner is None:
        return
    handle = open_own_folder(above, name)
    try:
        if os.fstat(handle).st_uid != os.geteuid() or os.listdir(handle):
            raise UntrustedName("somebody else has put another one in its place")
        if owner is not None:
            os.fchown(handle, *owner)
        if mode is not None:
            os.fchmod(handle, mode)
    finally:
        os.close(handle)


def _write_new(folder: int, name: str, data: bytes, mode: int, owner: Owner | None) -> None:
    """Under a name that nothing has yet: FileExistsError. Raises OSError."""
    try:
        # A file without a name, which it gets once it is whole: nobody can have exchanged it
        handle = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            _fill(handle, data, mode, owner)
            source = f"/proc/self/fd/{handle}"
            os.link(source, name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(handle)
    except FileExistsError:
        raise
    except OSError:
        # Not every file system has such files, nor is /proc everywhere. A fault of another kind
        # is met again
        with _named(folder, name, data, mode, owner) as temporary:
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            os.unlink(temporary, dir_fd=folder)


@contextmanager
def _named(folder: int, name: str, data: bytes, mode: int, owner: Owner | None) -> Iterator[str]:
    """A whole file under a temporary name, which is removed where what follows fails."""
    # It begins with a dot and does not end in .toml: no reader takes it for the file
    temporary = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        try:
            _fill(handle, data, mode, owner)
        finally:
            os.close(handle)
        yield temporary
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def _fill(handle: int, data: bytes, mode: int, owner: Owner | None) -> None:
    with open(handle, "wb", closefd=False) as file:
        file.write(data)
    if owner is not None:
        os.fchown(handle, *owner)
    os.fchmod(handle, mode)
    os.fsync(handle)


def _sync_folder(folder: int) -> None:
    handle = open_own_folder(folder)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _as_fault(path: Path, error: OSError | ValueError) -> FileFault:
    if isinstance(error, FileNotFoundError):
        return FileFault(path, "cannot be written: the folder above it does not exist")
    if isinstance(error, PermissionError):
        return FileFault(
            path,
            "may not be written by this user",
            "the folder above it has to belong to the user that vpnd runs as",
        )
    if isinstance(error, OSError):
        return FileFault(path, f"cannot be written: {error.strerror or 'unknown error'}")
    return FileFault(path, "is not a possible file name")
