"""This node's identities on disk, and what it has learnt of its peers' public keys.

    STATE_DIR/identity.key            the identity called "default"
    STATE_DIR/identity-NAME.key       further ones: another suite, the next one in a rotation
    STATE_DIR/identity.use            the name of the one that comes first; absent: the default one
    STATE_DIR/peer-keys/vpnd1….pub    a peer's public key, under its fingerprint

An identity file is a secret: mode 0600, the daemon's own user, never overwritten. A cached public
key is no secret and not believed either: it is checked against its fingerprint at each reading.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kex.errors import InvalidIdentity
from kex.identity import Fingerprint, Identity
from kex.mlkem import MlKemProvider
from kex.suites import Suite, suite
from vpnd.atomic_file import Owner, make_folder, remove_durably, write_atomically
from vpnd.config_fields import FieldError
from vpnd.config_fields import name as parse_name
from vpnd.file_trust import (
    FileFault,
    FileMissing,
    FileUnreadable,
    folder_fault,
    folder_files,
    read_public,
    read_secret,
)

DEFAULT_IDENTITY: Final = "default"
_MAX_IDENTITY_BYTES: Final = 1024
_MAX_NAME_FILE_BYTES: Final = 256
_MAX_PUBLIC_KEY_BYTES: Final = 16 * 1024
_SECRET_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644
_FOLDER_MODE: Final = 0o700


@dataclass(frozen=True, slots=True)
class StoredIdentities:
    """What was found: the identities that can be used, and the files that cannot."""

    identities: Mapping[str, Identity]
    """By name: the one in use first, then the default one."""
    faults: tuple[FileFault, ...]


def system_suite(number: int, ml_kem: MlKemProvider | None = None) -> Suite:
    """The suite over the system's random generator; ValueError on an unknown number.

    `ml_kem` is OpenSSL's where it is not given.
    """
    return suite(number, random=os.urandom, ml_kem=ml_kem)


def identity_path(state_dir: Path, name: str = DEFAULT_IDENTITY) -> Path:
    """The file of an identity."""
    return state_dir / ("identity.key" if name == DEFAULT_IDENTITY else f"identity-{name}.key")


def load_identities(
    state_dir: Path, *, suite_of: Callable[[int], Suite] = system_suite
) -> StoredIdentities:
    """All identities of this node; none where the folder is missing. Raises nothing.

    An identity's key computes with the ML-KEM of the suite that `suite_of` gives.
    """
    identities: dict[str, Identity] = {}
    faults: list[FileFault] = []
    fault = folder_fault(state_dir)
    if fault is not None:
        faults.append(fault)
    try:
        files = folder_files(state_dir, ".key")
    except FileFault as error:
        return StoredIdentities({}, (*faults, error))
    # "identity.key" sorts behind "identity-…"; the default comes first
    for path in sorted(files, key=lambda path: (path != identity_path(state_dir), path)):
        name = _identity_name(path)
        if name is None:
            continue
        try:
            identities[name] = load_identity(path, suite_of=suite_of)
        except FileFault as error:
            faults.append(error)
    try:
        first = identity_in_use(state_dir)
    except FileFault as error:
        faults.append(error)
        first = None
    if first is not None and first not in identities:
        faults.append(
            FileFault(
                _use_path(state_dir),
                f"names the identity {first}, which is not here",
                "vpnctl id use NAME, with one of those that `vpnctl id` names",
            )
        )
    ordered = sorted(identities, key=lambda name: name != first)
    return StoredIdentities({name: identities[name] for name in ordered}, tuple(faults))


def identity_in_use(state_dir: Path) -> str | None:
    """The name of the identity that comes first; None where nobody has chosen one.

    Raises FileFault.
    """
    path = _use_path(state_dir)
    try:
        content = read_public(path, limit=_MAX_NAME_FILE_BYTES)
    except FileMissing:
        return None
    if content.fault is not None:
        raise content.fault
    try:
        return parse_name(content.data.decode("ascii").strip())
    except (FieldError, UnicodeDecodeError):
        raise FileFault(path, "is not the name of an identity", "vpnctl id use NAME") from None


def use_identity(state_dir: Path, name: str) -> None:
    """Let an identity come first from the next start or reload on. FileFault where there is none
    of that name, or where it cannot be written."""
    stored = load_identities(state_dir)
    if name not in stored.identities:
        _raise_fault_of(stored, state_dir, name)
        raise FileFault(
            identity_path(state_dir, name),
            "there is no such identity, or it cannot be read",
            f"vpnctl id new {name} makes one",
        )
    write_atomically(
        _use_path(state_dir), f"{name}\n".encode("ascii"), mode=_PUBLIC_MODE, replace=True
    )


def remove_identity(state_dir: Path, name: str) -> None:
    """Remove an identity for good. FileFault for the one in use, and on failure."""
    stored = load_identities(state_dir)
    path = identity_path(state_dir, name)
    if name not in stored.identities:
        _raise_fault_of(stored, state_dir, name)
        raise FileFault(path, "there is no such identity", "`vpnctl id` names those that there are")
    if name == next(iter(stored.identities)):
        raise FileFault(path, "is the identity in use", "vpnctl id use NAME, with another one")
    remove_durably(path)


def _raise_fault_of(stored: StoredIdentities, state_dir: Path, name: str) -> None:
    """Why an identity is not among those that can be used, where there is a reason. Where this user
    may not look, nothing can be said of what is there."""
    for fault in stored.faults:
        of_it = fault.path in (state_dir, identity_path(state_dir, name))
        if of_it or isinstance(fault, FileUnreadable):
            raise fault


def _use_path(state_dir: Path) -> Path:
    return state_dir / "identity.use"


def load_identity(path: Path, *, suite_of: Callable[[int], Suite] = system_suite) -> Identity:
    """The identity in a file; FileFault if others can read it, or if it is none."""
    content = read_secret(path, limit=_MAX_IDENTITY_BYTES)
    try:
        return Identity.from_file_text(content.decode("ascii"), suite_of=suite_of)
    except InvalidIdentity as error:
        raise FileFault(path, str(error), error.hint) from None
    except UnicodeDecodeError:
        # Its text would quote the file
        raise FileFault(path, "is not an identity file", "restore it from a backup") from None


def create_identity(
    state_dir: Path,
    identity: Identity,
    name: str = DEFAULT_IDENTITY,
    *,
    owner: Owner | None = None,
) -> Path:
    """Keep a new identity; FileExists, with the old one untouched, if there is one of that name.

    `owner` is whom the file is given to, and the folder where that is made.
    """
    try:
        parse_name(name)
    except FieldError as error:
        raise FileFault(state_dir, f"identity's name: {error.reason}", error.hint) from None
    make_folder(state_dir, mode=_FOLDER_MODE, owner=owner)
    fault = folder_fault(state_dir)
    if fault is not None:
        raise fault
    path = identity_path(state_dir, name)
    write_atomically(
        path, identity.to_file_text().encode(), mode=_SECRET_MODE, replace=False, owner=owner
    )
    return path


class PeerKeyCache:
    """The peers' whole public keys, fetched once over the wire, kept from one start to the next.

    Nothing depends on it but time: a file that is missing or spoiled is fetched anew. `warn`
    gets a sentence about each spoiled file.
    """

    def __init__(self, state_dir: Path, *, warn: Callable[[str], None]) -> None:
        self._folder = state_dir / "peer-keys"
        self._warn = warn

    def load(self, fingerprint: Fingerprint) -> bytes | None:
        """The public key of this fingerprint, verified; None if it has to be fetched."""
        path = self._path(fingerprint)
        try:
            public_key = read_public(path, limit=_MAX_PUBLIC_KEY_BYTES).data
        except FileMissing:
            return None
        except FileFault as fault:
            self._warn(f"{fault}; the peer's public key is fetched again")
            return None
        if Fingerprint.of(fingerprint.suite, public_key) != fingerprint:
            self._warn(f"{path}: not the key of its fingerprint; it is fetched again")
            return None
        return public_key

    def store(self, fingerprint: Fingerprint, public_key: bytes) -> None:
        """Keep a public key; ValueError if it is not this fingerprint's, FileFault on failure."""
        if Fingerprint.of(fingerprint.suite, public_key) != fingerprint:
            raise ValueError("a public key that is not the one of its fingerprint")
        make_folder(self._folder, mode=_FOLDER_MODE)
        write_atomically(self._path(fingerprint), public_key, mode=_PUBLIC_MODE, replace=True)

    def forget(self, fingerprint: Fingerprint) -> None:
        """Remove a public key, if there is one; FileFault on failure."""
        remove_durably(self._path(fingerprint))

    def _path(self, fingerprint: Fingerprint) -> Path:
        return self._folder / f"{fingerprint.text()}.pub"


def _identity_name(path: Path) -> str | None:
    """The name in a file's name; None for a file that is something else."""
    if path.name == "identity.key":
        return DEFAULT_IDENTITY
    prefix, dash, name = path.stem.partition("-")
    if prefix != "identity" or not dash or name == DEFAULT_IDENTITY:
        return None
    with suppress(FieldError):
        return parse_name(name)
    return None
