"""What earlier processes left at the broker: which accounts to leave, and which processes should no longer exist."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from dexcom2mqtt.config.loading import build
from dexcom2mqtt.config.settings import Settings
from dexcom2mqtt.daemon.former import Former
from dexcom2mqtt.messages.bridge import bridge_info
from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dexcom2mqtt.daemon.ownership import Ownership
    from dexcom2mqtt.daemon.reloading import Reloading
    from dexcom2mqtt.daemon.round import Wanted
    from dexcom2mqtt.daemon.serving import Serving
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.mqtt.link import BrokerLink

BASE = "dexcom2mqtt"


def info(bridge: str, *accounts: str) -> dict[str, bytes]:
    message = bridge_info(Topics(BASE, bridge), version="1", started_at=None, protocol="5", accounts=accounts)
    return {message.topic: message.payload.encode()}


class Left:
    """A former, and what a broker retains; it stands in for the link, ``Ownership``, ``Serving`` and ``Reloading``."""

    def __init__(self, index: int, count: int, *accounts: str) -> None:
        people = {key: {"username": key, "password": "p"} for key in accounts}
        settings = build(Settings, {"accounts": people, "shard": {"index": index, "count": count}})
        self.settings = settings
        self.sent: list[Message] = []
        me = cast("Any", self)
        self.former = Former(cast("Reloading", me), cast("Serving", me), cast("Ownership", me), self.sent.extend)
        self.retained: dict[str, bytes] = {}
        self.wanted: Mapping[str, Wanted] = {}
        self.more: dict[str, str] = {}
        self.left: dict[str, bool] = {}

    def start(self) -> None:
        self.former.read_back(self.retained)
        self.former.begin(cast("BrokerLink", self))

    def read_back(self, topics: Sequence[str], done: Callable[[Mapping[str, bytes]], None], _: object) -> None:
        wild = f"{BASE}/+/info" in topics
        done(
            {
                topic: payload
                for topic, payload in self.retained.items()
                if topic in topics or (wild and topic.endswith("/info"))
            }
        )

    def begin(self, wanted: Mapping[str, Wanted]) -> None:
        self.wanted = wanted

    def want(self, key: str, wanted: Wanted) -> None:
        self.more[key] = wanted.purpose

    def leave(self, key: str, _: object, *, removed: bool) -> None:
        self.left[key] = removed

    def cleared(self) -> set[str]:
        """Return what was cleared since the last call."""
        sent, self.sent[:] = [*self.sent], []
        return {message.topic for message in sent if not message.payload}

    def purposes(self) -> dict[str, str]:
        return {key: each.purpose for key, each in self.wanted.items()}


def test_accounts_that_moved_are_released_and_removed_ones_cleared() -> None:
    """Of the accounts that this process served before; ``ben`` is still its own, and ``cara`` another one's."""
    left = Left(0, 2, "ben", "cara")
    left.retained = info("bridge-0", "ben", "cara", "gone")
    left.start()
    assert left.purposes() == {"cara": "release", "gone": "clear", "ben": "serve"}
    assert not left.left


def test_the_first_process_clears_what_a_higher_index_left() -> None:
    """At once if that is offline; else once it is. Accounts that nobody is configured to serve are cleared, too."""
    left = Left(0, 2, "ben", "cara")
    left.retained = info("bridge-2", "cara", "gone") | info("bridge-3", "old") | info("bridge-1") | info("bridge")
    left.retained |= {f"{BASE}/bridge-2/state": b"offline", f"{BASE}/bridge-3/state": b"online"}
    left.start()
    assert left.cleared() == {f"{BASE}/bridge-2/{leaf}" for leaf in ("state", "info")}
    assert left.more == {"gone": "clear"}
    assert [*left.former.watched] == [f"{BASE}/bridge-3/state"]
    assert left.former.heard(f"{BASE}/bridge-3/state", b"online")
    assert not left.former.heard(f"{BASE}/bridge-2/state", b"offline")
    assert left.cleared() == set()
    assert left.former.heard(f"{BASE}/bridge-3/state", b"offline")
    assert left.cleared() == {f"{BASE}/bridge-3/{leaf}" for leaf in ("state", "info")}
    assert left.more == {"gone": "clear", "old": "clear"}
    assert not left.former.watched


def test_the_other_processes_clear_nothing() -> None:
    """Otherwise each of them would have to look."""
    left = Left(1, 2, "ben", "cara")
    left.retained = info("bridge-2", "gone") | {f"{BASE}/bridge-2/state": b"offline"}
    left.start()
    assert left.cleared() == set()
    assert not left.more


def test_one_process_alone_looks_only_if_accounts_were_shared() -> None:
    """Families, who have only one process, must not notice anything."""
    for bridge, expected in (("bridge", set()), ("bridge-1", {f"{BASE}/bridge-0/state", f"{BASE}/bridge-0/info"})):
        left = Left(0, 1, "cara")
        status = status_message(Topics(BASE, bridge), "cara", Status(), released=bridge != "bridge")
        left.retained = info("bridge", "cara", "gone") | info("bridge-0", "ben")
        left.retained[status.topic] = status.payload.encode()
        left.start()
        assert left.cleared() == expected
        assert left.left == {"cara": False, "gone": True}
        assert left.purposes() == {"cara": "serve"}


def test_what_is_no_info_is_ignored() -> None:
    """A process with such a name may have left anything; its state is cleared all the same."""
    left = Left(0, 2, "ben")
    left.retained = {f"{BASE}/bridge-7/info": b"[1", f"{BASE}/bridge-0/info": b"{", f"{BASE}/bridge-x/info": b"{}"}
    left.start()
    assert left.cleared() == {f"{BASE}/bridge-7/{leaf}" for leaf in ("state", "info")}
    assert left.purposes() == {"ben": "serve"}


def test_an_account_whose_file_is_broken_has_no_current_value() -> None:
    """Of one process alone: a value from before a crash would become current with the daemon's return."""
    left = Left(0, 1, "ben")
    left.settings = replace(left.settings, broken=("anna",))
    left.retained = info("bridge", "anna", "ben")
    left.start()
    assert [(each.topic, each.payload) for each in left.sent] == [(f"{BASE}/anna/availability", "offline")]
    assert left.left == {"anna": False, "ben": False}
