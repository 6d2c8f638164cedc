"""Two key managers on loopback, without a lab: for tests of a client, and to try one by hand.

async with open_pair(folder) as pair:
    await pair.near.kme.fault("slow", "enc_keys", seconds=20)
    print(pair.near.kme.urls(), pair.near.ca, pair.near.certificate, pair.near.key)
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from vpnd_lab.kme.certificates import VALID_DAYS, Authority, CertificateKind
from vpnd_lab.kme.config import KmeConfig
from vpnd_lab.kme.handle import KeyManagerHandle
from vpnd_lab.kme.pool import LinkSettings, Network

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class End:
    """One end: a key manager, and the first of its applications with its certificate."""

    kme: KeyManagerHandle
    sae: str
    folder: Path
    authority: Authority

    @property
    def ca(self) -> Path:
        """The CA's certificate."""
        return self.folder / "ca.pem"

    @property
    def certificate(self) -> Path:
        """The application's certificate."""
        return self.folder / f"{self.sae}.pem"

    @property
    def key(self) -> Path:
        """The application's private key, mode 0600."""
        return self.folder / f"{self.sae}.key"

    def renew(self, kind: CertificateKind = "good", *, days: float = VALID_DAYS) -> None:
        """Put a new certificate in the place of the application's, right or wrong."""
        self.authority.client(self.sae, kind=kind, days=days).write(self.certificate, self.key)

    def key_source(self, name: str) -> str:
        """The end's table for vpnd.toml, as source `name`."""
        values = {
            "type": "qkd",
            "urls": self.kme.urls("etsi"),
            "sae": self.sae,
            "ca": str(self.ca),
            "certificate": str(self.certificate),
            "key": str(self.key),
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        return "\n".join([f"[key_sources.{name}]", *lines, ""])


@dataclass(frozen=True, slots=True)
class Pair:
    """Both ends, and what they share."""

    near: End
    far: End
    authority: Authority
    network: Network

    @property
    def ends(self) -> tuple[End, End]:
        """near, far."""
        return self.near, self.far


@contextlib.asynccontextmanager
async def open_pair(
    folder: Path,
    *,
    settings: LinkSettings | None = None,
    near: Sequence[str] = ("sae-a",),
    far: Sequence[str] = ("sae-b",),
    key_size: int = 256,
) -> AsyncIterator[Pair]:
    """Run two key managers, kme-a and kme-b, while the block runs; they end with this process.

    `near` and `far` are the SAE IDs at each. Certificates, the pool and the logs are in `folder`.
    Raises LabError, OSError.
    """
    authority = make_folder(folder)
    homes = {**dict.fromkeys(near, "kme-a"), **dict.fromkeys(far, "kme-b")}
    # The folder may have a long path; that of a socket may not.
    with (
        tempfile.TemporaryDirectory(prefix="vpnd-lab-kme-") as sockets,
        Network(folder / "network.sqlite", settings) as network,
    ):
        ends = []
        for name, saes in (("kme-a", near), ("kme-b", far)):
            config = KmeConfig(
                name=name,
                network=str(folder / "network.sqlite"),
                authority=str(authority.folder),
                control=str(Path(sockets) / f"{name}.sock"),
                names=[f"{name}.example", name, "localhost", _LOOPBACK],
                homes=homes,
                etsi=[(_LOOPBACK, 0)],
                skip=[(_LOOPBACK, 0)],
                key_size=key_size,
            )
            ends.append(make_end(folder / name, config, saes, authority))
        try:
            async with trio.open_nursery() as nursery:
                for end in ends:
                    nursery.start_soon(end.kme.start)
            yield Pair(ends[0], ends[1], authority, network)
        except Exception as error:
            for end in ends:
                if words := end.kme.last_words():
                    error.add_note(f"stderr of {end.kme.name}:\n{words}")
            raise
        finally:
            with trio.CancelScope(shield=True):
                for end in ends:
                    if end.kme.process is not None and end.kme.process.alive():
                        await end.kme.kill()


def make_folder(folder: Path) -> Authority:
    """The folder of a pair, and the CA in it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    return Authority.create(folder / "ca")


def make_end(folder: Path, config: KmeConfig, saes: Sequence[str], authority: Authority) -> End:
    """One end's folder, with the certificates of all its applications. Raises OSError."""
    folder.mkdir(exist_ok=True)
    config.write(folder / "kme.json")
    (folder / "ca.pem").write_bytes(authority.ca_file.read_bytes())
    for sae in saes:
        authority.client(sae).write(folder / f"{sae}.pem", folder / f"{sae}.key")
    handle = KeyManagerHandle(folder / "kme.json", log=folder / "stderr", standalone=True)
    return End(handle, saes[0], folder, authority)
