"""Starting threads, and the words for a system that does not let the daemon start them.

Docker before 20.10.10 answers the call by which newer C libraries start a thread (clone3) with EPERM, which they take
for a final word: https://github.com/moby/moby/issues/42680. Other reasons are limits on processes, which count threads.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

REMEDIES: Final = (
    "In a container: Docker before 20.10.10 does not let it. Update Docker, or add --security-opt seccomp=unconfined.",
    "A limit on processes counts threads as well. Raise it: TasksMax= of systemd, pids_limit of Docker, ulimit -u.",
)
"""What may have led to it and what to do, the most likely first."""


class ThreadError(Exception):
    """The system does not let this process start a thread; the text says what to do."""


def start(name: str, run: Callable[[], None]) -> None:
    """Start a thread that does not keep the process from ending. Raises ThreadError."""
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:
        told = "this system lets the daemon start no more threads, and it needs one for each account and a few more"
        raise ThreadError(f"{told}. {' '.join(REMEDIES)}") from None


def startable(count: int) -> int:
    """Return how many of so many threads the system lets this process start beside those that run."""
    end, started = threading.Event(), list[threading.Thread]()
    try:
        while len(started) < count:
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        pass
    finally:
        end.set()
        for thread in started:
            thread.join()
    return len(started)
