"""Which process serves which account: stable for ever, spread evenly, and with few moves."""

import hashlib
from collections import Counter

import pytest

from dexcom2mqtt.shards import bridge_name, shard_of

KEYS = [f"account_{number}" for number in range(4000)]


@pytest.mark.parametrize(
    ("key", "indexes"),
    [
        ("anna", [0, 1, 1, 1, 4, 4, 4, 4]),
        ("ben", [0, 0, 0, 0, 0, 0, 0, 0]),
        ("anna_marie", [0, 0, 0, 0, 0, 0, 0, 0]),
        ("b2", [0, 1, 2, 2, 2, 2, 2, 2]),
        ("0", [0, 0, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_an_account_stays_where_it_is_for_ever(key: str, indexes: list[int]) -> None:
    """These indexes, for counts from 1 to 8, hold in every version: another result would move accounts in an update."""
    assert [shard_of(key, count) for count in range(1, 9)] == indexes


def test_the_weight_is_as_documented() -> None:
    """The highest weight wins: the first 8 bytes, big endian, of the SHA-256 of index and key in UTF-8."""

    def weight(index: int, key: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{index}/{key}".encode()).digest()[:8], "big")

    for key in KEYS[:200]:
        assert shard_of(key, 7) == max(range(7), key=lambda index: weight(index, key))


def test_one_process_serves_everything() -> None:
    """A count of 1 leaves no choice."""
    assert {shard_of(key, 1) for key in KEYS} == {0}


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10])
def test_accounts_are_spread_evenly(count: int) -> None:
    """Each process gets about the same number of accounts: at most a fifth more or less than its part."""
    served = Counter(shard_of(key, count) for key in KEYS)
    part = len(KEYS) / count
    assert served.keys() == set(range(count))
    assert all(0.8 * part < number < 1.2 * part for number in served.values())


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_one_more_process_moves_few_accounts(count: int) -> None:
    """If a process is added, accounts move only to the new one, and about as many as its part."""
    moved = [key for key in KEYS if shard_of(key, count) != shard_of(key, count + 1)]
    assert {shard_of(key, count + 1) for key in moved} == {count}
    part = len(KEYS) / (count + 1)
    assert 0.8 * part < len(moved) < 1.2 * part


def test_the_bridge_of_one_process_has_no_number() -> None:
    """A single process is the bridge, as ever; one of several has its index."""
    assert [bridge_name(0, 1), bridge_name(0, 2), bridge_name(12, 13)] == ["bridge", "bridge-0", "bridge-12"]
