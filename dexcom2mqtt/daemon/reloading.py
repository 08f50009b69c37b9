"""Accounts that are added to the folder of the configuration, changed, or taken out while the daemon runs."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

from dexcom2mqtt.config.problems import ConfigError
from dexcom2mqtt.daemon.round import Wanted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Account, Settings
    from dexcom2mqtt.daemon.ownership import Ownership

_log = logging.getLogger(__name__)

_EVERY: Final = 60.0
"""Real seconds from one look at the folder to the next."""


class Reloading:
    """Looks at the folder once a minute, and when asked. Only ``ask`` may be called by any thread."""

    def __init__(self, settings: Settings, clock: Clock, ownership: Ownership) -> None:
        self.settings = settings
        """The configuration as it is now; replaced as a whole."""
        self._clock = clock
        self._ownership = ownership
        self._known = dict(settings.own_accounts)  # as last handed to ``ownership``
        self._of_folder = frozenset[str]()  # the problems that were logged
        self._of_files = frozenset(settings.broken_files)
        self._next = clock.now() + _EVERY * clock.speed

    def ask(self) -> None:
        """Look at the folder at the next ``tick``."""
        self._next = -math.inf

    def tick(self) -> float:
        """Look at the folder if that is due; return in how many seconds to call again."""
        if self.settings.reread is None:
            return math.inf
        now = self._clock.now()
        if now >= self._next and self._ownership.begun:
            self._next = now + _EVERY * self._clock.speed  # first, so that a question during the look counts
            self._look()
        return self._next - now if self._ownership.begun else math.inf

    def _look(self) -> None:
        before, problems, new = self.settings, list[str](), self.settings
        try:
            new = before.reread() if before.reread else before
            if not new.accounts:
                problems = ["accounts_dir: no file can be used now"]
        except ConfigError as error:
            problems = [*error.problems]
        self._of_folder = _say(self._of_folder, problems, "the accounts stay as they are")
        if problems or new is before:
            return
        self.settings = new
        self._of_files = _say(self._of_files, new.broken_files, "nothing changes for this account")
        for warning in new.source_warnings:
            if warning not in before.source_warnings:
                _log.warning("%s", warning)
        self._hand_over(dict(new.own_accounts))

    def _hand_over(self, own: dict[str, Account]) -> None:
        """Tell ``ownership`` what has changed; an account whose file is broken now goes on as it was."""
        kept = {key: self._known[key] for key in self.settings.broken if key in self._known}
        people = {account.person for account in kept.values()}
        own = kept | {key: account for key, account in own.items() if account.person not in people}
        for key in self._known.keys() - own.keys():
            _log.info("%s: no longer configured", key)
            self._ownership.drop(key)
        for key, account in own.items():
            if account != self._known.get(key):
                _log.info("%s: %s", key, "its configuration has changed" if key in self._known else "newly configured")
                self._ownership.want(key, Wanted("serve", account))
        self._known = own


def _say(before: frozenset[str], problems: Iterable[str], outcome: str) -> frozenset[str]:
    """Log each problem once, for as long as it lasts, and that all are over; return the present ones."""
    now = frozenset(problems)
    for problem in sorted(now - before):
        _log.error("%s; %s", problem, outcome)
    if before and not now:
        _log.info("accounts_dir: everything in it can be used again")
    return now
