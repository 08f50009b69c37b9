"""Waking a thread that waits for sockets."""

from __future__ import annotations

import select
from contextlib import closing

from dexcom2mqtt.waker import Waker


def is_awake(waker: Waker) -> bool:
    return bool(select.select([waker], [], [], 0)[0])


def test_a_call_ends_one_wait() -> None:
    """However often it is called, one wait ends early, and after ``clear`` the next one does not."""
    with closing(Waker()) as waker:
        assert not is_awake(waker)
        for _ in range(3):
            waker.wake()
        assert is_awake(waker)
        waker.clear()
        assert not is_awake(waker)
        waker.clear()  # it does not block


def test_nobody_has_to_listen() -> None:
    """A thread that never waits, or that has ended, does not block those who call."""
    with closing(Waker()) as waker:
        for _ in range(100_000):
            waker.wake()
        assert is_awake(waker)
    waker.wake()
