"""Secrets that systemd hands to the daemon's unit (LoadCredential=, SetCredentialEncrypted=).

They lie in a folder of the unit's own, $CREDENTIALS_DIRECTORY, in memory; systemd sees to who can
read them, by an owner, or by an access control list that shows as a mode of the group.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vpnd.config_key_sources import CREDENTIAL
from vpnd.file_trust import FileFault, FileMissing, read_public, read_secret

FOLDER: Final = "CREDENTIALS_DIRECTORY"


class NoCredentials(FileFault):
    """This program was not started by the unit that has them."""


def located(path: Path) -> Path:
    """Where a secret lies: the path itself, or of a credential its file. Raises NoCredentials."""
    text = str(path)
    if not text.startswith(CREDENTIAL):
        return path
    folder = os.environ.get(FOLDER)
    if not folder:
        raise NoCredentials(
            path,
            f"cannot be read: ${FOLDER} is not set",
            "LoadCredential=NAME:FILE in the unit of vpnd; only what systemd starts has it",
        )
    return Path(folder) / text.removeprefix(CREDENTIAL)


def read_credential(path: Path, *, limit: int) -> bytes:
    """A secret from a file of its own, or from a credential. Raises FileFault, with `path`."""
    file = located(path)
    if file == path:
        return read_secret(path, limit=limit)
    try:
        found = read_public(file, limit=limit)
    except FileMissing:
        raise FileMissing(
            path, "is not among the unit's credentials", "LoadCredential=NAME:FILE in its unit"
        ) from None
    except FileFault as fault:
        raise FileFault(path, fault.reason, fault.hint) from None
    if found.fault is not None:
        raise FileFault(path, found.fault.reason, found.fault.hint)
    return found.data
