"""A source at each end of the lab's pair of key managers, which are told to misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kex.external import ExternalKey
from tests.lab.kme_caller import Caller, both
from tests.vpnd.keysource.conftest import Told
from vpnd.config_key_sources import QkdSourceConfig, key_source_config
from vpnd.config_source import Source
from vpnd.keysource.base import Correspondent, KeyFetchedAhead, SourceError, SourceFault
from vpnd.keysource.qkd_source import QkdSource

pytestmark = pytest.mark.slow


@dataclass
class End:
    kme: Caller
    far: Correspondent
    told: Told

    def source(self, **more: Any) -> QkdSource:
        self.kme.context()  # writes the application's files
        host, port = self.kme.kme.addresses["etsi"][0]
        values = {
            "type": "qkd",
            "urls": [f"https://{host}:{port}"],
            "sae": self.kme.sae,
            "ca": str(self.kme.authority.ca_file),
            "certificate": str(self.kme.folder / f"{self.kme.sae}.pem"),
            "key": str(self.kme.folder / f"{self.kme.sae}.key"),
        }
        found = key_source_config(values | more, Source(None), ("key_sources", "kme"))
        assert isinstance(found, QkdSourceConfig)
        return QkdSource("kme", found, self.told)


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[tuple[End, End]]:
    async with both(tmp_path) as (near, far):
        yield (
            End(near, Correspondent("b", "sae-b"), Told()),
            End(far, Correspondent("a", "sae-a"), Told()),
        )


async def agree(ends: tuple[End, End], key: ExternalKey) -> None:
    far = ends[1]
    assert key.key is not None
    got = await far.source().retrieve(far.far, key.reference)
    assert got.expose() == key.key.expose()


async def test_a_refusal_in_other_words_is_a_key_that_is_not_there_yet(
    ends: tuple[End, End],
) -> None:
    near, far = ends
    near.kme.kme.network.change(delay=1.0)
    far.kme.fault("other-words")
    await agree(ends, await near.source().obtain(near.far))
    assert far.told.events == []


async def test_a_status_that_counts_nothing_raises_no_alarm(ends: tuple[End, End]) -> None:
    near, _ = ends
    near.kme.fault("counts-nothing")
    source = near.source()
    for _number in range(2):
        await agree(ends, await source.obtain(near.far))
        await source.refresh_status()
    assert near.told.events == []
    assert source.status().stock == []
    assert "is not believed" in source.status().warnings[-1]


async def test_keys_that_are_lost_and_a_fresh_one(ends: tuple[End, End]) -> None:
    near, far = ends
    source = near.source()
    lost = await source.obtain(near.far)
    far.kme.fault("keys-lost", calls=["dec_keys"], times=1)
    with pytest.raises(SourceError) as refused:
        await far.source().retrieve(far.far, lost.reference)
    assert refused.value.fault is SourceFault.UNKNOWN_KEY
    fresh = await source.obtain(near.far, fresh=True)
    assert not isinstance(fresh, KeyFetchedAhead)
    await agree(ends, fresh)
