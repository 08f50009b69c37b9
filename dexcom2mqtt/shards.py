"""Which of several processes serves which account. Pure.

``shard.count`` processes share one configuration. Each works out by itself who serves an account, by rendezvous
hashing: if one process is added or removed, only the accounts that it gets or had move. The way to compute it must
never change, because after an update all accounts would move.
"""

from __future__ import annotations

import hashlib


def shard_of(key: str, count: int) -> int:
    """Return the index, from 0, of the process that serves an account."""
    return max(range(count), key=lambda index: _weight(key, index))


def bridge_name(index: int, count: int) -> str:
    """Return the topic level of a process's messages about itself."""
    return "bridge" if count == 1 else f"bridge-{index}"


def _weight(key: str, index: int) -> bytes:
    """Return the account's weight at an index, as 8 bytes that compare like a big-endian number."""
    return hashlib.sha256(f"{index}/{key}".encode()).digest()[:8]
