"""The names of all topics, and the patterns of valid names. Pure.

It owns no payload: those are up to ``messages``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

ACCOUNT_KEY: Final = "(?!bridge$)[a-z0-9]+(_[a-z0-9]+)*"
"""The pattern of an account's key, which is its level in the topics."""

TOPIC: Final = "[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*"
"""The pattern of ``base_topic`` and of a discovery prefix; Home Assistant accepts no other characters."""

STATE_KEYS: Final = (
    "value",
    "unit",
    "mg_dl",
    "mmol_l",
    "out_of_range",
    "trend",
    "trend_number",
    "direction",
    "arrow",
    "description",
    "delta",
    "range",
    "measurement_timestamp",
    "date",
)
"""The keys of ``state``, each with a topic of its own."""

RETAINED: Final = ("availability", "state", "history", "status", "statistics", "days", *STATE_KEYS)
"""The retained topics of an account."""


ALONE: Final = "bridge"
"""The level of a process's messages about itself, if it serves all accounts."""


class Topics(NamedTuple):
    """The topics below one ``base_topic``."""

    base: str
    bridge: str = ALONE
    """The level of this process's messages about itself; with several processes it has a number."""

    @property
    def bridge_state(self) -> str:
        """``online`` or ``offline``: whether the daemon is connected and alive."""
        return self.state_of(self.bridge)

    @property
    def bridge_info(self) -> str:
        """Facts about the running daemon."""
        return self.info_of(self.bridge)

    def state_of(self, bridge: str) -> str:
        """Return the topic of a process's state."""
        return f"{self.base}/{bridge}/state"

    def info_of(self, bridge: str) -> str:
        """Return the topic of the facts about a process."""
        return f"{self.base}/{bridge}/info"

    @property
    def claims(self) -> str:
        """The topic on which several processes agree who serves an account."""
        return f"{self.base}/bridge/claims"

    def sync(self, client_id: str) -> str:
        """Return the topic of the probe that ends the read-back: it arrives after all retained messages."""
        return f"{self.base}/bridge/sync/{client_id}"

    def of(self, account: str, leaf: str) -> str:
        """Return the topic of one account."""
        return f"{self.base}/{account}/{leaf}"

    def split(self, topic: str) -> tuple[str, str]:
        """Return the account and the leaf of an account's topic; two empty texts for any other topic."""
        levels = topic.removeprefix(f"{self.base}/").split("/")
        ours = len(levels) == 2 and topic.startswith(f"{self.base}/")  # noqa: PLR2004  # the account and the leaf
        return (levels[0], levels[1]) if ours else ("", "")
