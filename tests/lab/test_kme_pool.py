"""The simulated quantum link: what is in the pool, who gets which key, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vpnd_lab.kme.pool import Ends, KeyNotFound, KeyOfOthers, LinkSettings, Network, PoolEmpty

NEAR = Ends("kme-a", "kme-b", "sae-a", "sae-b")
FAR = Ends("kme-b", "kme-a", "sae-a", "sae-b")
HOUR = 3600.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "network.sqlite"


@pytest.fixture
def network(file: Path) -> Iterator[Network]:
    with Network(file, LinkSettings(rate=0, pool=1024)) as opened:
        yield opened


def obtain(network: Network, number: int = 1) -> list[str]:
    return [key.key_id for key in network.obtain(NEAR, number=number, bits=256, api="etsi")]


def test_both_ends_get_the_same_keys_once(network: Network) -> None:
    keys = network.obtain(NEAR, number=2, bits=256, api="etsi")
    ids = [key.key_id for key in keys]
    assert len({key.material for key in keys}) == 2
    assert {len(key.material) for key in keys} == {32}
    assert network.retrieve(FAR, ids, api="etsi") == keys
    with pytest.raises(KeyNotFound):
        network.retrieve(FAR, ids[:1], api="etsi")
    assert network.key_counts() == {"made": 2, "taken": 2}


def test_a_pool_is_empty_when_its_bits_are_used(network: Network) -> None:
    obtain(network, 3)
    with pytest.raises(PoolEmpty):
        obtain(network, 2)
    assert network.stored_bits(NEAR) == network.stored_bits(FAR) == 256
    obtain(network)
    network.change(pool=4096)
    with pytest.raises(PoolEmpty):
        obtain(network)


def test_pairs_have_pools_of_their_own(network: Network) -> None:
    other = Ends("kme-a", "kme-c", "sae-a", "sae-c")
    obtain(network, 4)
    assert network.stored_bits(other) == 1024
    network.introduce(other)
    network.drain(kme="kme-c")
    assert network.stored_bits(other) == 0


def test_a_pool_fills_at_its_rate_up_to_its_size(network: Network) -> None:
    obtain(network, 4)
    network.change(rate=1e12)
    assert network.stored_bits(NEAR) == 1024


def test_a_key_is_known_at_the_far_end_after_the_delay(network: Network) -> None:
    network.change(delay=HOUR)
    (late,) = obtain(network)
    with pytest.raises(KeyNotFound):
        network.retrieve(FAR, [late], api="etsi")
    network.change(delay=0)
    (early,) = obtain(network)
    network.retrieve(FAR, [early], api="etsi")


def test_all_keys_of_a_call_are_delivered_or_none(network: Network) -> None:
    (known,) = obtain(network)
    with pytest.raises(KeyNotFound) as caught:
        network.retrieve(FAR, [known, "unknown"], api="etsi")
    assert caught.value.key_id == "unknown"
    network.retrieve(FAR, [known], api="etsi")


def test_a_key_is_for_its_two_ends_and_its_interface(network: Network) -> None:
    (key,) = obtain(network)
    with pytest.raises(KeyOfOthers):
        network.retrieve(Ends("kme-b", "kme-a", "sae-a", "sae-c"), [key], api="etsi")
    for ends, api in ((NEAR, "etsi"), (FAR, "skip")):
        with pytest.raises(KeyNotFound):
            network.retrieve(ends, [key], api=api)
    network.retrieve(FAR, [key], api="etsi")


def test_errors_of_the_link_show_as_different_keys(network: Network) -> None:
    network.change(error_rate=1)
    (key,) = network.obtain(NEAR, number=1, bits=256, api="etsi")
    (other,) = network.retrieve(FAR, [key.key_id], api="etsi")
    assert (other.key_id, len(other.material)) == (key.key_id, 32)
    assert other.material != key.material


def test_the_pool_outlives_who_opened_it(network: Network, file: Path) -> None:
    (key,) = obtain(network)
    with Network(file, LinkSettings(pool=5)) as again:
        assert again.settings == network.settings
        assert again.stored_bits(NEAR) == 768
        again.retrieve(FAR, [key], api="etsi")


@pytest.mark.parametrize(
    "wrong", [{"rate": -1}, {"error_rate": 1.5}, {"pool": "x"}, {"delay": True}]
)
def test_settings_that_make_no_sense_change_nothing(
    network: Network, wrong: dict[str, float]
) -> None:
    before = network.settings
    with pytest.raises(ValueError, match=next(iter(wrong))):
        network.change(**wrong)
    assert network.settings == before


def test_calls_are_kept_in_order(network: Network) -> None:
    for number in range(3):
        network.record("kme-a", {"at": float(number), "kind": "status"})
    first, *rest = network.calls("kme-a")
    assert network.calls("kme-a", after=first["number"]) == rest
    assert network.calls("kme-b") == []
