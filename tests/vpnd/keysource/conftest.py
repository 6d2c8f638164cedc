"""A CA, an SAE with its files, a KME of which a test says what it answers, and who listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.vpnd.keysource.authority import Authority
from tests.vpnd.keysource.tls_server import TlsServer
from vpnd.config_key_sources import QkdSourceConfig, SkipSourceConfig, key_source_config
from vpnd.config_source import Source
from vpnd.keysource.base import Correspondent

SPEC_STATUS = {
    # ETSI GS QKD 014 V1.1.1, clause 6.1, its example
    "source_KME_ID": "AAAABBBBCCCCDDDD",
    "target_KME_ID": "EEEEFFFFGGGGHHHH",
    "master_SAE_ID": "IIIIJJJJKKKKLLLL",
    "slave_SAE_ID": "MMMMNNNNOOOOPPPP",
    "key_size": 352,
    "stored_key_count": 25000,
    "max_key_count": 100000,
    "max_key_per_request": 128,
    "max_key_size": 1024,
    "min_key_size": 64,
    "max_SAE_ID_count": 0,
}
OWN_SAE, FAR_SAE = "IIIIJJJJKKKKLLLL", "MMMMNNNNOOOOPPPP"
FAR = Correspondent("ams1", FAR_SAE)

SPEC_KEYS = [
    # Clause 6.3, its example
    {
        "key_ID": "bc490419-7d60-487f-adc1-4ddcc177c139",
        "key": "wHHVxRwDJs3/bXd38GHP3oe4svTuRpZS0yCC7x4Ly+s=",
    },
    {
        "key_ID": "0a782fb5-3434-48fe-aa4d-14f41d46cf92",
        "key": "OeGMPxh1+2RpJpNCYixWHFLYRubpOKCw94FcCI7VdJA=",
    },
    {
        "key_ID": "64a7e9a2-269c-4b2c-832c-5351f3ac5adb",
        "key": "479G1Osfljpmfa5vn24tdzE5zqv5CafkGxYrLCk4384=",
    },
    {
        "key_ID": "550e8400-e29b-41d4-a716-446655440000",
        "key": "csEMV6KkmjgOHSuatMmQ6yHzJjfU3gL62DzdSWH7u0k=",
    },
]


@dataclass
class Told:
    """A SourceListener that keeps what it is told."""

    events: list[dict[str, str]] = field(default_factory=list)

    def source_event(
        self, event: str, source: str, *, level: str, reason: str, code: str, link: str = ""
    ) -> None:
        self.events.append(
            {
                "event": event,
                "source": source,
                "level": level,
                "reason": reason,
                "code": code,
                "link": link,
            }
        )

    @property
    def names(self) -> list[str]:
        return [one["event"] for one in self.events]


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def sae_files(authority: Authority, tmp_path: Path) -> dict[str, str]:
    """What a source needs to show itself."""
    paths = {key: tmp_path / f"sae-{key}.pem" for key in ("ca", "certificate", "key")}
    paths["ca"].write_bytes(authority.pem)
    authority.issue(OWN_SAE).write(paths["certificate"], paths["key"])
    return {key: str(path) for key, path in paths.items()}


MakeServer = Callable[..., TlsServer]


@pytest.fixture
def make_server(authority: Authority, tmp_path: Path) -> MakeServer:
    count = 0

    def make(**changed: Any) -> TlsServer:
        nonlocal count
        count += 1
        folder = tmp_path / f"server{count}"
        folder.mkdir()
        values: dict[str, Any] = {
            "authority": authority,
            "folder": folder,
            "issued": authority.issue("kme1", names=("127.0.0.1", "kme1.example.net")),
        }
        return TlsServer(**(values | changed))

    return make


@pytest.fixture
async def kme(make_server: MakeServer, nursery: trio.Nursery) -> TlsServer:
    server = make_server()
    await server.start(nursery)
    return server


QkdConfig = Callable[..., QkdSourceConfig]


@pytest.fixture
def qkd_config(sae_files: dict[str, str]) -> QkdConfig:
    """A configuration as vpnd.toml would hold it, without the questions of status and prefetch
    unless a test wants them."""

    def make(*servers: TlsServer, **changed: Any) -> QkdSourceConfig:
        values: dict[str, Any] = {
            "type": "qkd",
            "urls": [server.url for server in servers],
            "sae": OWN_SAE,
            "prefetch": False,
            "quirks": ["no-status"],
            **sae_files,
        }
        found = key_source_config(values | changed, Source(None), ("key_sources", "kme"))
        assert isinstance(found, QkdSourceConfig)
        return found

    return make


SkipConfig = Callable[..., SkipSourceConfig]


@pytest.fixture
def skip_config(sae_files: dict[str, str]) -> SkipConfig:
    def make(*servers: TlsServer, **changed: Any) -> SkipSourceConfig:
        values: dict[str, Any] = {
            "type": "skip",
            "urls": [server.url for server in servers],
            "prefetch": False,
            **sae_files,
        }
        found = key_source_config(values | changed, Source(None), ("key_sources", "skip"))
        assert isinstance(found, SkipSourceConfig)
        return found

    return make
