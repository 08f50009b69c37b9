"""The settings: every key with its kind, default and description, one line each, and the rules between keys.

Must not know what a setting is used for. The classes check nothing when called; ``loading.build`` and
``loading.load`` do.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import MISSING, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from dexcom2mqtt.config import values as v
from dexcom2mqtt.config.values import LOCAL, Kind, LogLevel, Protocol, Region, Secret, Statistics, Unit, safe
from dexcom2mqtt.shards import bridge_name, shard_of
from dexcom2mqtt.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from dexcom2mqtt.config.problems import Place

_SHARD_KEEPALIVE = 60
"""The longest keepalive of one of several processes, in seconds."""


class Key(NamedTuple):
    """A key: a single value, a section, or a section below each key that the user chooses."""

    description: str
    """Mentions a default that depends on other keys."""
    default: object
    """``MISSING`` if it must be given."""
    kind: Kind[Any] | None = None
    section: type[Section] | None = None
    each: Kind[str] | None = None
    """What a key that the user chooses may be."""
    switch: bool = False
    """Whether true stands for the section with all defaults."""

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING


def _key(kind: Kind[Any], default: object, description: str) -> Any:  # noqa: ANN401  # the field declares its type
    return field(default=default, metadata={"key": Key(description, default, kind)})


def _section(section: type[Section], default: object, description: str, *, switch: bool = False) -> Any:  # noqa: ANN401
    return field(default=default, metadata={"key": Key(description, default, section=section, switch=switch)})


def _each(kind: Kind[str], section: type[Section], description: str) -> Any:  # noqa: ANN401  # the field declares its type
    return field(default_factory=dict, metadata={"key": Key(description, {}, section=section, each=kind)})


@dataclass(frozen=True, kw_only=True)
class Section:
    """A group of keys. Immutable."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object], valid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield the keys that do not fit the others, each with what is allowed there.

        ``given`` has what was written, ``valid`` the value of each key that is valid by itself.
        """
        del given, valid
        yield from ()


def keys_of(section: type[Section]) -> Mapping[str, Key]:
    """Return the keys of a section, in their order."""
    known = {each.name: each.metadata.get("key") for each in dataclasses.fields(section)}
    return {name: key for name, key in known.items() if key is not None}


def _is_local(host: str) -> bool:
    return re.fullmatch(f"{LOCAL}|::1", host.lower()) is not None


def _given(key: str, given: Mapping[str, object]) -> bool:
    return given.get(key) is not None


def _invalid(key: str, given: Mapping[str, object], valid: Mapping[str, Any]) -> bool:
    return _given(key, given) and key not in valid


@dataclass(frozen=True, kw_only=True)
class Ranges(Section):
    """The limits of low and high: in mg/dL, whatever the account's unit."""

    very_low: int = _key(v.GLUCOSE, 54, "mg/dL; a reading below it is very low")
    low: int = _key(v.GLUCOSE, 70, "mg/dL; a reading below it is low")
    high: int = _key(v.GLUCOSE, 180, "mg/dL; a reading above it is high")
    very_high: int = _key(v.GLUCOSE, 250, "mg/dL; a reading above it is very high")

    @classmethod
    def conflicts(cls, given: Mapping[str, object], valid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield each limit that is not above the one before."""
        lower, lowest = "", 0
        for key, known in keys_of(cls).items():
            if _invalid(key, given, valid):
                continue
            value = valid.get(key, known.default)
            if value > lowest:
                lower, lowest = key, value
            else:
                yield key, f"more than {lowest}, the value of {lower}"


@dataclass(frozen=True, kw_only=True)
class Account(Section):
    """One person whose readings Dexcom Share has."""

    name: str = _key(v.TEXT, "", "display name; default: the key, capitalized")
    account_id: Secret | None = _key(v.ACCOUNT_ID, None, "UUID of the account, instead of username")
    username: Secret | None = _key(v.USER, None, "user name, email or phone number, such as +11234567890")
    password: Secret = _key(v.PASSWORD, MISSING, "password of the person who wears the sensor, not a follower's")
    region: Region = _key(v.REGION, "us", "us, ous (outside the United States) or jp (Japan)")
    unit: Unit = _key(v.UNIT, "mg/dL", "unit of the readings")
    ranges: Ranges = _section(Ranges, Ranges(), "limits in mg/dL, ascending")
    share_url: str | None = _key(v.SHARE_URL, None, "base URL to use instead of the region's")

    @classmethod
    def conflicts(cls, given: Mapping[str, object], valid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield username unless exactly one of username and account_id is given."""
        both_or_neither = _given("username", given) == _given("account_id", given)
        if both_or_neither and not _invalid("username", given, valid):
            yield "username", "either username or account_id, not both"

    @property
    def user(self) -> Secret:
        """The user name or the account id, as written."""
        return self.username or self.account_id or Secret("")

    @property
    def person(self) -> tuple[str, str]:
        """What two accounts have in common if they are the same person. It contains the user name."""
        return self.region, self.user.get_secret_value().casefold()

    def named(self, key: str) -> Account:
        """Return this account, named after its key unless it has a name."""
        return self if self.name else replace(self, name=key.replace("_", " ").capitalize())


def same_person(first: str, second: str) -> str:
    """Return what is wrong if two accounts are the same person."""
    return f"{safe(first)} and {safe(second)} are the same person; keep only one"


@dataclass(frozen=True, kw_only=True)
class Tls(Section):
    """An encrypted connection to the broker; without keys it trusts the system's authorities."""

    ca_file: Path | None = _key(v.FILE, None, "PEM file of the authority to trust; default: the system's")
    cert_file: Path | None = _key(v.FILE, None, "PEM file of the client's certificate")
    key_file: Path | None = _key(v.FILE, None, "PEM file of the client's private key")
    verify: bool = _key(v.SWITCH, default=True, description="whether to verify the broker's certificate")

    @classmethod
    def conflicts(cls, given: Mapping[str, object], valid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield key_file if only one of the pair is given."""
        half = _given("key_file", given) != _given("cert_file", given)
        if half and not _invalid("key_file", given, valid):
            yield "key_file", "cert_file and key_file together, or neither"


@dataclass(frozen=True, kw_only=True)
class Mqtt(Section):
    """The broker and how to connect to it."""

    host: str = _key(v.HOST, "localhost", "host name or address of the broker, without port")
    tls: Tls | None = _section(Tls, None, "encryption; true trusts the system's authorities", switch=True)
    port: int = _key(v.PORT, 0, "port of the broker; default: 1883, or 8883 with tls")
    username: Secret | None = _key(v.USER, None, "user name at the broker")
    password: Secret | None = _key(v.MQTT_PASSWORD, None, "password at the broker")
    protocol: Protocol = _key(v.PROTOCOL, "auto", "MQTT version; auto: 5, or 3.1.1 if 5 is refused")
    base_topic: str = _key(v.TOPIC_NAME, v.BASE_TOPIC, "topic below which everything is published")
    client_id: str = _key(v.CLIENT_ID, "", 'name of this program at the broker; default: base_topic with "_" for "/"')
    keepalive: int = _key(v.SECONDS, 60, "seconds (5 to 65535) between keepalive messages")

    def __post_init__(self) -> None:
        """Fill in the defaults that depend on other keys."""
        object.__setattr__(self, "port", self.port or (8883 if self.tls else 1883))
        object.__setattr__(self, "client_id", v.client_id_of(self.base_topic, self.client_id))

    @property
    def place(self) -> str:
        """The broker's address, as host:port."""
        return f"{self.host}:{self.port}"

    @classmethod
    def conflicts(cls, given: Mapping[str, object], valid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a password without a user name."""
        if valid.get("password") is not None and not _given("username", given):
            yield "password", "a password only together with mqtt.username"


@dataclass(frozen=True, kw_only=True)
class HomeAssistant(Section):
    """How Home Assistant learns about the accounts."""

    discovery: bool = _key(v.SWITCH, default=True, description="whether the accounts appear there automatically")
    discovery_prefix: str = _key(v.TOPIC_NAME, "homeassistant", "topic below which it looks for devices")
    status_topic: str = _key(v.ANY_TOPIC, "homeassistant/status", "topic on which it announces its start")


@dataclass(frozen=True, kw_only=True)
class Web(Section):
    """The page and the API for Nightscout clients."""

    host: str = _key(
        v.ADDRESS, "127.0.0.1", "address to listen on; 0.0.0.0: all of them, which includes the home network"
    )
    port: int = _key(v.WEB_PORT, 8017, "port to listen on")
    token: Secret | None = _key(v.TOKEN, None, "secret that readers must send; only /health needs none")


@dataclass(frozen=True, kw_only=True)
class Shard(Section):
    """Which part of the accounts this process serves, if several processes share one configuration."""

    index: int = _key(v.SHARD_INDEX, 0, "number of this process; the first is 0")
    count: int = _key(v.SHARD_COUNT, 1, "how many processes share the accounts; 1: no others")

    @classmethod
    def conflicts(cls, given: Mapping[str, object], valid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield an index that is not less than the count."""
        if any(_invalid(key, given, valid) for key in keys_of(cls)):
            return
        if allowed := v.shard_conflict(valid.get("index", 0), valid.get("count", 1)):
            yield "index", allowed


@dataclass(frozen=True, kw_only=True)
class Settings(Section):
    """The whole configuration, complete and consistent."""

    accounts: Mapping[str, Account] = _each(
        v.ACCOUNT, Account, "the accounts; each key is the id in topics and entities"
    )
    mqtt: Mqtt = _section(Mqtt, Mqtt(), "the broker")
    home_assistant: HomeAssistant = _section(HomeAssistant, HomeAssistant(), "Home Assistant")
    statistics: Statistics = _key(
        v.STATISTICS, "90d", "how far back they go: 90d, 24h (no daily counts at the broker), or off"
    )
    web: Web | None = _section(Web, None, "the page and Nightscout's API; true: for this machine only", switch=True)
    shard: Shard = _section(Shard, Shard(), "which of several processes this is; a single one needs no such section")
    accounts_dir: Path | None = _key(
        v.FOLDER, None, "folder of further accounts: one file each, KEY.yaml, with that account's keys"
    )
    stale_after: int = _key(v.MINUTES, 15, "minutes (10 to 60) for which a reading is current")
    log_level: LogLevel = _key(v.LOG_LEVEL, "info", "least severe level that is logged")
    source_warnings: tuple[str, ...] = field(default=(), compare=False)
    """Warnings about the sources. This is not a key."""
    broken: tuple[str, ...] = field(default=(), compare=False)
    """The keys of accounts that are missing here because their files cannot be used. This is not a key."""
    broken_files: tuple[str, ...] = field(default=(), compare=False)
    """What is wrong in ``accounts_dir``, a text for each file. This is not a key."""
    reread: Callable[[], Settings] | None = field(default=None, compare=False, repr=False)
    """Looks at ``accounts_dir`` again, which costs little; None without one. Raises ConfigError. This is not a key.

    It returns the same settings as the last time if nothing changed. They may have no account at all.
    """

    def __post_init__(self) -> None:
        """Name each account without a name after its key."""
        object.__setattr__(self, "accounts", {key: account.named(key) for key, account in self.accounts.items()})

    @classmethod
    def conflicts(cls, given: Mapping[str, object], valid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield accounts if there are none, and for each two that are the same person; each may itself be invalid."""
        del valid
        accounts = given.get("accounts")
        if (accounts is None or accounts == {}) and not _given("accounts_dir", given):
            example = "\n  anna:\n    username: anna@example.com\n    password: 'her password at Dexcom'"
            yield "accounts", f"at least one account; for example, below accounts:{example}"
        known: dict[tuple[str, str], str] = {}
        for key, account in accounts.items() if isinstance(accounts, dict) else ():
            written = account if isinstance(account, dict) else {}
            user = written.get("username") or written.get("account_id")
            region = str(written.get("region") or keys_of(Account)["region"].default)
            if isinstance(user, str) and (first := known.setdefault((region, user.casefold()), key)) != key:
                yield "accounts", same_person(first, key)

    @cached_property
    def own_accounts(self) -> Mapping[str, Account]:
        """The accounts that this process serves; ``accounts`` has those of all processes."""
        index, count = self.shard.index, self.shard.count
        if count == 1:
            return self.accounts
        return {key: account for key, account in self.accounts.items() if shard_of(key, count) == index}

    @cached_property
    def connection(self) -> Mqtt:
        """The broker as this process connects to it: each of several has a client id of its own.

        Its keepalive is at most a minute. If a process freezes, the others take its accounts once its ``online`` has
        expired, after 180 s; by then the broker must have ended its connection, which takes 1.5 times the keepalive.
        """
        if self.shard.count == 1:
            return self.mqtt
        client_id = v.sharded(self.mqtt.client_id, self.shard.index, self.shard.count)
        return replace(self.mqtt, client_id=client_id, keepalive=min(self.mqtt.keepalive, _SHARD_KEEPALIVE))

    @property
    def topics(self) -> Topics:
        """The topics, with those of this process about itself."""
        return Topics(self.mqtt.base_topic, bridge_name(self.shard.index, self.shard.count))

    @property
    def stale_after_seconds(self) -> int:
        """How long a reading is current, in seconds."""
        return self.stale_after * 60

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about what works but is unsafe, each with its remedy; never a secret."""
        open_line = (
            "mqtt: the broker is on another machine and tls is not set, so the messages can be read on the way; "
            "if the broker offers TLS, write tls: true below mqtt:"
        )
        open_page = (
            "web: the page can be opened from other machines, and no token is set, so anyone on the network can read "
            "the glucose; to restrict access, write token: and a secret of your choice below web:"
        )
        broker = [] if _is_local(self.mqtt.host) or self.mqtt.tls else [open_line]
        page = [] if self.web is None or _is_local(self.web.host) or self.web.token else [open_page]
        return (*self.source_warnings, *broker, *page)


def is_section(place: Place) -> bool:
    """Return whether a place holds keys rather than a single value."""
    key = _key_at(place)
    return key is not None and key.section is not None


def is_switch(place: Place) -> bool:
    """Return whether true may stand for the keys there."""
    key = _key_at(place)
    return key is not None and key.switch


def _key_at(place: Place) -> Key | None:
    """Return the key at a place, or None if no key has that place; the place () is the whole configuration."""
    key: Key | None = Key("the whole configuration", {}, section=Settings)
    for name in place:
        if key is None or key.section is None:
            return None
        key = key._replace(each=None) if key.each else keys_of(key.section).get(name)
    return key
