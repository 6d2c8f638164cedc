"""Folders and files by open descriptors, where somebody else may be changing the names meanwhile.

Root works in folders of the daemon's user, who can put a link, a pipe or another file in the place
of any name there, at any moment. So a path is walked one name at a time, each in the folder that
was opened before; a symbolic link is followed only where root or this user alone can have made it;
and what is made, given away or removed there is named in an open folder, or not at all.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS: Final = 40
"""As many as the kernel follows."""
_TRIES: Final = 8
"""For a file that is replaced while it is being opened."""


class UntrustedName(OSError):
    """What stands under a name may be from anywhere: others than root and this user put it."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.ELOOP, reason)


class _Replaced(Exception):
    """Another file stands under this name by now."""


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """A folder, to name files in (O_PATH). Raises OSError; ValueError for an impossible name."""
    with _walked(path) as (above, name):
        folder = os.open(name, _FOLDER, dir_fd=above)
    try:
        yield folder
    finally:
        os.close(folder)


def open_file(path: Path, flags: int) -> int:
    """Open what is there already, with the close-on-exec flag. O_NOFOLLOW: its last name may be no
    symbolic link at all. Raises OSError; ValueError for an impossible name."""
    for _ in range(_TRIES):
        with _walked(path, follow=not flags & os.O_NOFOLLOW) as (above, name):
            handle = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            try:
                _check_hard_links(handle, above, name)
            except _Replaced:
                os.close(handle)
                continue
            except BaseException:
                os.close(handle)
                raise
            return handle
    raise UntrustedName("it is being replaced over and over")


def open_own_folder(folder: int, name: str = ".") -> int:
    """What can be listed and synchronised, of an open folder or one in it. Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=folder)


def names_in(folder: int) -> list[str]:
    """The names in an open folder, in no order. Raises OSError."""
    handle = open_own_folder(folder)
    try:
        return os.listdir(handle)
    finally:
        os.close(handle)


def is_trusted(folder: os.stat_result) -> bool:
    """Whether root and this user alone decide what stands in a folder."""
    return folder.st_uid in _own() and not folder.st_mode & 0o022


def _own() -> tuple[int, int]:
    return 0, os.geteuid()


@contextmanager
def _walked(path: Path, *, follow: bool = True) -> Iterator[tuple[int, str]]:
    """The folder that the last name of a path is in, links resolved, and that name."""
    text = os.fspath(path)
    here = os.open("/" if text.startswith("/") else ".", _FOLDER)
    try:
        todo = _names(text)
        links = 0
        while True:
            name = todo.pop() if todo else "."
            if todo:
                try:
                    here = _moved(here, name)
                    continue
                except NotADirectoryError:
                    target = _link_target(here, name)
                    if target is None:
                        raise
            else:
                target = _link_target(here, name) if follow else None
                if target is None:
                    break
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            todo += _names(target)
            if target.startswith("/"):
                here = _moved(here, "/")
        yield here, name
    finally:
        os.close(here)


def _names(text: str) -> list[str]:
    """The names of a path, the last one first."""
    return [name for name in reversed(text.split("/")) if name not in ("", ".")]


def _moved(here: int, name: str) -> int:
    """The folder `name` in place of `here`, which is closed; where that fails it stays open."""
    there = os.open(name, _FOLDER, dir_fd=here)
    os.close(here)
    return there


def _link_target(folder: int, name: str) -> str | None:
    """What a symbolic link says; None for what is none, or is missing."""
    try:
        # The link itself: what is asked of it below is all of the same one
        link = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(link)
        if not stat.S_ISLNK(found.st_mode):
            return None
        target = os.readlink("", dir_fd=link)
    finally:
        os.close(link)
    above = os.fstat(folder)
    if is_trusted(above):
        return target
    ours = found.st_uid in _own() and found.st_nlink == 1
    sticky = above.st_uid in _own() and above.st_mode & stat.S_ISVTX
    # Where others can move it elsewhere, a relative one means what they want
    if ours and (sticky or target.startswith("/")):
        return target
    raise UntrustedName(f"{name} is a symbolic link that others can change, and is not followed")


def _check_hard_links(handle: int, above: int, name: str) -> None:
    """In a folder of somebody else, a file of a third user may be one from outside, by a second
    name. Raises UntrustedName, or _Replaced."""
    folder, found = os.fstat(above), os.fstat(handle)
    if is_trusted(folder) or found.st_uid == folder.st_uid or stat.S_ISDIR(found.st_mode):
        return
    try:
        # One look at both: the name is still this file's, and it is its only one
        now = os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        raise _Replaced from None
    if not os.path.samestat(now, found):
        raise _Replaced
    if now.st_nlink > 1:
        raise UntrustedName(f"{name} is a hard link to a file of another user, and is not used")
