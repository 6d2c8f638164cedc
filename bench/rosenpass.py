"""Rosenpass, as `make bench-peers` built it: keys, and how it is started."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROGRAM: Final = Path(__file__).resolve().parent.parent / ".setup/rosenpass/bin/rosenpass"
PUBLIC_KEY_LENGTH: Final = 524_160
"""Of Classic McEliece 460896."""
PORT: Final = 9999


@dataclass(frozen=True, slots=True)
class Keys:
    """The files of a key pair."""

    public: Path
    secret: Path

    @classmethod
    def make(cls, folder: Path, name: str) -> Keys:
        """A key pair in a folder. Raises CalledProcessError."""
        keys = cls(folder / f"{name}.pub", folder / f"{name}.sec")
        subprocess.run(
            [PROGRAM, "gen-keys", "--public-key", keys.public, "--secret-key", keys.secret],
            check=True,
            capture_output=True,
        )
        return keys


def stranger(folder: Path, name: str) -> Path:
    """A file as long as a public key: enough for a peer that is never spoken to."""
    path = folder / f"{name}.pub"
    path.write_bytes(os.urandom(PUBLIC_KEY_LENGTH))
    return path


def version() -> str:
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def daemon(keys: Keys, listen: str, *peers: list[str]) -> list[str]:
    """The command line of a daemon; each of `peers` is what `peer` makes."""
    own = ["public-key", str(keys.public), "secret-key", str(keys.secret), "listen", listen]
    return [str(PROGRAM), "exchange", *own, *(word for peer in peers for word in peer)]


def peer(public: Path, outfile: Path, endpoint: str | None = None) -> list[str]:
    """A peer of a daemon; without an endpoint it comes to us. Its keys go into a file."""
    to = [] if endpoint is None else ["endpoint", endpoint]
    return ["peer", "public-key", str(public), *to, "outfile", str(outfile)]
