"""The published vectors in tests/vectors: where they are, and how to read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent.parent / "vectors"

HYBRID_KEM: list[dict[str, Any]] = json.loads((_FOLDER / "hybrid-kem.json").read_text())
PQIK: list[dict[str, Any]] = json.loads((_FOLDER / "pqik.json").read_text())
