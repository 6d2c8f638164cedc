"""Writing a file so that a crash leaves the old one or the new one, never a part of either."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from vpnd.file_trust import FileFault


class FileExists(FileFault):
    """A file of that name is there already, and was not to be replaced."""


def write_atomically(path: Path, data: bytes, *, mode: int, replace: bool) -> None:
    """Write `data` to `path` with these permissions, durably; FileFault where it cannot be done.

    With `replace=False` a file that is there already is left alone, and FileExists is raised:
    decided by the file system, so that two writers cannot both win.
    """
    try:
        # The name begins with a dot and does not end in .toml: no reader takes it for the file
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except (OSError, ValueError) as error:
        raise _as_fault(path, error) from None
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if replace:
            os.rename(temporary, path)
        else:
            os.link(temporary, path)
            os.unlink(temporary)
        _sync_folder(path.parent)
    except FileExistsError:
        _discard(temporary)
        raise FileExists(path, "exists already and was left as it is") from None
    except OSError as error:
        _discard(temporary)
        raise _as_fault(path, error) from None
    except BaseException:
        _discard(temporary)
        raise


def make_folder(path: Path, *, mode: int) -> None:
    """Make a folder, and those above it; FileFault. One that is there is left as it is."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _as_fault(path, error) from None


def remove_durably(path: Path) -> None:
    """Remove a file, so that it does not come back after a power failure; absent is fine too."""
    try:
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileFault(path, f"cannot be removed: {error.strerror or 'unknown error'}") from None


def discard_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder that nobody else writes to."""
    with suppress(OSError):  # a few small files; nothing reads them
        for path in folder.glob(".*"):
            path.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(temporary: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(temporary)


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
