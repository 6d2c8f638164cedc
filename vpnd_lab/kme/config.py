"""What a key manager is told when it starts: a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vpnd_lab.errors import LabError

Address = tuple[str, int]
"""Host and port; port 0: any free one."""


@dataclass(slots=True)
class KmeConfig:
    """One key manager of a network."""

    name: str
    """KME ID (ETSI), system ID (SKIP)."""
    network: str
    """The file of the quantum network."""
    authority: str
    """The folder of the CA."""
    control: str
    """The control socket."""
    names: list[str]
    """DNS names and IP addresses in its certificate."""
    homes: dict[str, str]
    """The key manager of each application in the network, by SAE ID."""
    etsi: list[Address] = field(default_factory=list)
    skip: list[Address] = field(default_factory=list)
    key_size: int = 256
    """Bits of a key where none are asked for."""

    def write(self, path: Path) -> None:
        """Write the file. Raises OSError."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> KmeConfig:
        """Read the file. Raises LabError."""
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            for api in ("etsi", "skip"):
                document[api] = [(str(host), int(port)) for host, port in document.get(api, [])]
            return cls(**document)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            hint = "it is written by the lab, or by `vpnd-lab-kme pair`"
            raise LabError(f"{path} is not a key manager's file: {error}", hint=hint) from error
