"""What the past left at the broker: accounts that this process served before, and processes that should be gone.

Of several processes, only the first one clears what a process with a higher index left, once that is offline.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.daemon.round import Wanted, a_moment
from dexcom2mqtt.messages.bridge import Info, parse_info
from dexcom2mqtt.messages.message import ForeignError, cleared
from dexcom2mqtt.messages.ownership import BRIDGE, owner_of, was_shared
from dexcom2mqtt.messages.state import unavailable
from dexcom2mqtt.topics import ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dexcom2mqtt.daemon.ownership import Ownership
    from dexcom2mqtt.daemon.reloading import Reloading
    from dexcom2mqtt.daemon.serving import Serving
    from dexcom2mqtt.messages.message import Message
    from dexcom2mqtt.mqtt.link import BrokerLink

_log = logging.getLogger(__name__)

_NAME: Final = re.compile(f"(?!{ALONE}$){BRIDGE}")


class Former:
    """Reads what was left before the start, clears what nobody needs, and tells ``ownership`` what to take.

    ``once`` publishes messages, see ``Serving``.
    """

    def __init__(
        self,
        reloading: Reloading,
        serving: Serving,
        ownership: Ownership,
        once: Callable[[Iterable[Message]], None],
    ) -> None:
        self._reloading = reloading
        self._topics = reloading.settings.topics
        self._serving = serving
        self._ownership = ownership
        self._once = once
        self._before: tuple[str, ...] = ()  # the accounts that this process served before
        self._statuses: dict[str, bytes] = {}
        self._looks = False  # whether it looks for processes
        self._infos: dict[str, Info] = {}  # of the processes that should no longer exist, by name
        self.watched: Mapping[str, str] = {}
        """The states of those that are still online, by topic; replaced as a whole."""

    def read_back(self, found: Mapping[str, bytes]) -> Info | None:
        """Return the earlier ``bridge/info`` of this process; None if not found, and an empty one if it is not ours.

        If this process is alone, clear the accounts that were removed, and discovery if it was switched off.
        """
        info = _read_info(found.get(self._topics.bridge_info))
        self._before = info.accounts if info else ()
        statuses = {key: found.get(self._topics.of(key, "status")) for key in self._reloading.settings.own_accounts}
        self._statuses = {key: status for key, status in statuses.items() if status}
        for key in self._before if self._topics.bridge == ALONE else ():
            self._serving.leave(key, found, removed=not self._is_configured(key))
            if key in self._reloading.settings.broken:  # its old value would become current
                self._once([unavailable(self._topics, key)])
        return info

    def owner(self, key: str) -> str | None:
        """Return which process serves an account, as far as ``read_back`` found it."""
        return owner_of(key, self._statuses.get(key))

    def begin(self, link: BrokerLink) -> None:
        """Begin to take accounts, and to look for processes that should no longer exist."""
        alone, own = self._topics.bridge == ALONE, self._reloading.settings.own_accounts
        wanted = {key: Wanted("serve", account) for key, account in own.items()}
        if not alone:
            wanted = {key: self._leave(key) for key in self._before if key not in own} | wanted
        self._looks = was_shared(self._statuses) if alone else self._reloading.settings.shard.index == 0
        self._statuses = {}
        self.connected(link)
        self._ownership.begin(wanted)

    def connected(self, link: BrokerLink) -> None:
        """Look for processes that should no longer exist, until that is done; for any thread."""
        if self._looks:
            link.read_back((self._topics.info_of("+"),), lambda found: self._find(found, link), a_moment)

    def heard(self, topic: str, payload: bytes) -> bool:
        """Take a message if it is the state of such a process, and return whether it is; for any thread."""
        if topic not in self.watched:
            return False
        if payload != b"online":
            name = self.watched[topic]
            self.watched = {other: each for other, each in self.watched.items() if other != topic}
            self._clear(name)
        return True

    def _find(self, found: Mapping[str, bytes], link: BrokerLink) -> None:
        """Find the processes that should no longer exist, and look whether they do."""
        least = 0 if self._topics.bridge == ALONE else self._reloading.settings.shard.count
        for topic, payload in found.items():
            name = topic.split("/")[-2]
            if _NAME.fullmatch(name) and int(name.partition("-")[2]) >= least:
                self._infos[name] = _read_info(payload) or Info()
        states = {self._topics.state_of(name): name for name in self._infos}
        self._looks = bool(states)
        if states:
            link.read_back(tuple(states), lambda found: self._look(states, found), a_moment)

    def _look(self, states: Mapping[str, str], found: Mapping[str, bytes]) -> None:
        self._looks = False
        self.watched = {topic: name for topic, name in states.items() if found.get(topic) == b"online"}
        for topic, name in states.items():
            if topic not in self.watched:
                self._clear(name)

    def _clear(self, name: str) -> None:
        """Clear what a process said about itself, and the accounts that it served if nobody is configured to do so."""
        self._once([cleared(self._topics.state_of(name)), cleared(self._topics.info_of(name))])
        for key in self._infos.pop(name, Info()).accounts:
            if not self._is_configured(key):
                self._ownership.want(key, Wanted("clear"))

    def _leave(self, key: str) -> Wanted:
        return Wanted("release" if self._is_configured(key) else "clear")

    def _is_configured(self, key: str) -> bool:
        settings = self._reloading.settings
        return key in settings.accounts or key in settings.broken


def _read_info(payload: bytes | None) -> Info | None:
    try:
        return parse_info(payload) if payload else None
    except ForeignError as why:
        _log.warning("ignoring the retained bridge/info: %s", why)
        return Info()
