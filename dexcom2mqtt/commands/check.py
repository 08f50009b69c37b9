"""The command that tries everything once and says what works, what fails, and how to fix it.

Most people run it first. It signs in only once per account, because repeated sign-ins with wrong credentials lock the
account, and it leaves nothing at the broker. The advice about followers comes from pydexcom's FAQ.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Literal

from dexcom2mqtt import threads, version
from dexcom2mqtt.account import verdict
from dexcom2mqtt.account.rationed import client_of
from dexcom2mqtt.account.verdict import Found
from dexcom2mqtt.clock import day, system_time
from dexcom2mqtt.commands.rejection import causes_of_rejection
from dexcom2mqtt.messages import status
from dexcom2mqtt.messages.history import TOLERANCE, history_message
from dexcom2mqtt.messages.homeassistant import discovery_messages
from dexcom2mqtt.messages.message import Message, cleared
from dexcom2mqtt.messages.ownership import owner_of
from dexcom2mqtt.messages.state import summary
from dexcom2mqtt.mqtt import dialling, tls_files
from dexcom2mqtt.mqtt.visit import Visit
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.share import CredentialsRejectedError, LockedOutError, ShareError, UnavailableError
from dexcom2mqtt.web import listening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Account, Settings, Web
    from dexcom2mqtt.share import Batch, ShareClient
    from dexcom2mqtt.topics import Topics

_THREADS: Final = 4
"""The daemon's threads that belong to no account: broker, heart, health, end."""
_THREADS_OF_WEB: Final = 3
"""The page's threads: one listens, two answer."""
_CLOCKS_AGREE: Final = 30.0
_CERTIFICATE_ENDS: Final = 30 * 86400.0
_GONE: Final = 60.0
"""Seconds after which MQTT 5 drops what is left at the broker if the command is killed."""
_NO_READINGS: Final = (
    "In the Dexcom app of the person who wears the sensor, sharing must be on and have at least one follower.",
    "Use that person's credentials. A follower can also sign in, but has no readings.",
    "The sensor may be warming up, or the phone may have been off or offline for a day: check the app.",
    "Share has readings from G4 to G7 and ONE+. Stelo has no sharing.",
)
_PHONE_CLOCK: Final = (
    "The clock of the phone that uploads the readings was set by hand: set its date and time to automatic.",
    "If you have just corrected it, the daemon shows the next reading, even if earlier ones have later times.",
    "If the phone's clock is right, Share's clock is currently wrong. Check again in an hour.",
)
_OLD_READINGS: Final = (
    "The phone is off or offline, or the Dexcom app is not running on it.",
    "The sensor is warming up or has ended: check the app. Readings will then resume by themselves.",
    "Sharing was switched off in the app.",
    "The phone's clock is behind, which makes new readings look old: set it to automatic.",
)
_LOCKED_OUT: Final = (
    "Stop the daemon and wait 20 minutes before the next check: every sign-in by any program restarts the wait.",
    "Correct the credentials, including in other programs that sign in with an old password.",
)
_DENIED: Final = (
    "The broker's access control list must let this daemon's user read and write there: see examples/mosquitto/acl."
)
_BURST: Final = 20
_RETAIN: Final = "Allow retained messages (in Mosquitto: retain_available)."
_QUOTA: Final = "Allow this client 20 messages per second. Until then the daemon sends more slowly."
_SIZE: Final = (
    "Allow larger messages (in Mosquitto: max_packet_size and message_size_limit). Until then the daemon keeps a "
    "shorter history there and leaves out what cannot be shortened."
)
_NO_WILDCARDS: Final = (
    "It sends no retained messages for wildcard subscriptions. The daemon does not need them; programs that subscribe "
    "with wildcards see a value only when the next reading arrives."
)
_MOVES: Final = "They move once it has restarted with the current shard.count, or has stopped."
_NO_PLACE: Final = (
    "Another program uses the port (`sudo ss -ltnp` shows which): choose a different web.port.",
    "This machine has no such address: `ip address` lists the ones it has, and 0.0.0.0 means all of them.",
    "Ports below 1024 need privileges that the daemon does not have.",
)
_MAYBE_READING: Final = "If only reading is denied there, that is harmless; MQTT 3.1.1 does not say whether it is."


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried, and its outcome. ``subject`` is an account's key, or a part such as the broker."""

    subject: str
    text: str
    verdict: Literal["ok", "note", "failed"] = "ok"
    remedies: tuple[str, ...] = ()
    """Possible causes and what to do, the most likely first."""


def check(settings: Settings, clock: Clock) -> Iterator[Step]:
    """Try everything once, and yield each step as soon as it is done. Raises TlsFileError and VariableError."""
    if settings.mqtt.tls is not None:
        tls_files.tls_context(settings.mqtt.tls)  # fails before any sign-in
    accounts = settings.own_accounts
    clients = {key: client_of(account, clock) for key, account in accounts.items()}  # so does a wrong variable
    yield from _configuration(settings)
    yield from _check_threads(len(accounts) + _THREADS + (_THREADS_OF_WEB if settings.web else 0))
    for proxy in dict.fromkeys(client.proxy for client in clients.values() if client.proxy):
        yield Step("configuration", f"Share is reached through the proxy {proxy}, which is set in the environment.")
    for key, account in accounts.items():
        yield from _check_account(key, account, clients[key], settings.stale_after_seconds)
    if settings.web is not None:
        yield _check_web(settings.web)
    try:
        yield from _check_broker(settings, clock)
    except dialling.BrokerError as error:
        yield Step("broker", _sentence(str(error)), "failed", error.causes)


def _configuration(settings: Settings) -> Iterator[Step]:
    """Report each file of ``accounts_dir`` that cannot be used; the rest is valid, or check would not have begun."""
    for problem in settings.broken_files:
        yield Step("configuration", problem, "failed")
    valid = "The rest is valid." if settings.broken_files else "Valid."
    shard, own, every = settings.shard, len(settings.own_accounts), len(settings.accounts)
    if shard.count == 1:
        yield Step("configuration", f"{valid} Accounts: {', '.join(settings.accounts)}.")
    else:
        yield Step("configuration", f"{valid} Shard {shard.index} of {shard.count} serves {own} of {every} accounts.")


def _check_threads(needed: int) -> Iterator[Step]:
    if (started := threads.startable(needed)) < needed:
        text = f"This machine lets the daemon start only {started} of the {needed} threads it needs."
        yield Step("machine", text, "failed", threads.REMEDIES)


# --- an account --------------------------------------------------------------------------------------------


def _check_account(key: str, account: Account, client: ShareClient, stale_after: float) -> Iterator[Step]:
    try:
        client.sign_in()
        yield Step(key, f"Signed in to {client.host}, region {account.region}.")
        batch = client.fetch(renew=False)
        yield _newest(key, account, client, batch, stale_after)
        yield from _oddities(key, batch)
    except ShareError as error:
        yield Step(key, *_failed(error, account))
    if client.time.known:
        yield _clocks(key, client)


def _failed(error: ShareError, account: Account) -> tuple[str, Literal["failed"], tuple[str, ...]]:
    if isinstance(error, CredentialsRejectedError):
        return _sentence(str(error)), "failed", tuple(causes_of_rejection(account))
    if isinstance(error, LockedOutError):
        return _sentence(str(error)), "failed", _LOCKED_OUT
    wrong_clock = isinstance(error, UnavailableError) and error.wrong_clock
    today = (f"This machine thinks that today is {day(system_time())}.",) if wrong_clock else ()
    return verdict.of_error(error).message, "failed", today


def _newest(key: str, account: Account, client: ShareClient, batch: Batch, stale_after: float) -> Step:
    newest = batch.readings[-1] if batch.readings else None
    age = 0.0 if newest is None else (client.time.now() or system_time()) - newest.date / 1000
    ahead = -age if age < -TOLERANCE else None
    found = Found(newest=newest, current=newest is not None and age < stale_after, ahead=ahead)
    judged = verdict.of_batch(batch, found)
    if newest is None and judged.message == status.REMEDIES["no_readings"]:
        return Step(key, "Share has no reading from the last 24 hours.", "failed", _NO_READINGS)
    if newest is None or ahead is not None:
        return Step(key, judged.message, "failed", () if ahead is None else _PHONE_CLOCK)
    facts = (
        f"{summary(newest, account.unit)}, {_span(age)} old; Share has {len(batch.readings)} from the last 24 hours."
    )
    if judged.share == "ok":
        return Step(key, f"Sharing is on. The newest reading is {facts}")
    why = _OLD_READINGS if judged.share == "no_readings" else (judged.message,)
    return Step(key, f"No reading is current. The newest is {facts}", "failed", why)


def _oddities(key: str, batch: Batch) -> Iterator[Step]:
    for words, count in ((status.MALFORMED, batch.malformed), (status.DRIFTED, batch.drifted)):
        if count:
            yield Step(key, words.format(count), "note")


def _clocks(key: str, client: ShareClient) -> Step:
    ahead = system_time() - (client.time.now() or 0.0)
    if abs(ahead) < _CLOCKS_AGREE:
        return Step(key, "This machine's clock agrees with Share's.")
    direction = "ahead of" if ahead > 0 else "behind"
    return Step(
        key,
        f"This machine's clock is {_span(abs(ahead))} {direction} Share's. The daemon uses Share's, but encrypted "
        "connections and other programs need a correct clock.",
        "note",
        ("Make sure this machine can reach a time server: `timedatectl` shows whether its clock is synchronized.",),
    )


# --- the page ----------------------------------------------------------------------------------------------


def _check_web(web: Web) -> Step:
    place = f"{web.host} port {web.port}"
    try:
        listening.close(listening.listen(web.host, web.port))
    except OSError as error:
        if listening.serves(web.host, web.port):
            return Step("web", f"A running daemon serves the page at {place}.")
        return Step("web", f"The page cannot be served at {place}: {listening.why(error)}.", "failed", _NO_PLACE)
    return Step("web", f"The page can be served at {place}.")


# --- the broker --------------------------------------------------------------------------------------------


def _check_broker(settings: Settings, clock: Clock) -> Iterator[Step]:
    mqtt = settings.mqtt
    yield Step("broker", f"{mqtt.host} port {mqtt.port} accepts connections at {dialling.reach(mqtt)}.")
    if mqtt.tls is not None:
        yield _certificate(dialling.certificate(mqtt, mqtt.tls))
    with Visit(settings.connection, clock, "check") as visit:
        who = "us without a user name" if mqtt.username is None else "our user name and password"
        yield Step("broker", f"It speaks MQTT {visit.protocol} and accepts {who}.")
        if not visit.keeps_retained:
            yield Step(
                "broker",
                "It keeps no retained messages, so programs that connect later get no value.",
                "failed",
                (_RETAIN,),
            )
            return
        yield from _check_sizes(settings, visit)
        visit.mend()
        yield from _check_topics(settings, visit, clock)


def _certificate(shown: dialling.Certificate | None) -> Step:
    if shown is None:
        return Step("broker", "Its certificate is not verified: mqtt.tls.verify is false.", "note")
    left = shown.until - system_time()
    text = f"Its certificate ({shown.subject}) was issued by {shown.issuer} and is valid until {day(shown.until)}."
    return Step("broker", text, "ok" if left > _CERTIFICATE_ENDS else "note")


def _check_topics(settings: Settings, visit: Visit, clock: Clock) -> Iterator[Step]:
    topics, home_assistant = settings.topics, settings.home_assistant
    probe = _probe(settings)
    leftover = f"{probe}-retained"
    try:
        visit.publish([Message(leftover, "check", clock.now() + _GONE)])
        kept = leftover in visit.retained([leftover], probe)
        wildcards = not kept or leftover in visit.retained([topics.sync("+")], probe)
    finally:
        visit.publish([cleared(leftover)])
    yield _written(topics.of("bridge", "#"), allowed=kept)
    if not wildcards:
        yield Step("broker", _NO_WILDCARDS, "note")
    if settings.shard.count > 1:
        yield _writable(topics.of(topics.bridge, "#"), cleared(topics.of(topics.bridge, "check")), visit)
        # Daemons ignore it, because it is not a claim.
        yield _writable(topics.claims, Message(topics.claims, "check", retain=False), visit)
    for key in settings.own_accounts:
        yield _writable(topics.of(key, "#"), cleared(topics.of(key, "check")), visit)
    if home_assistant.discovery:
        yield from _check_home_assistant(settings, visit, probe)
    if visit.retained([topics.bridge_state], probe).get(topics.bridge_state) == b"online":
        yield Step("broker", f"A daemon is online below {topics.base}.", "note")
    if settings.shard.count > 1 and settings.own_accounts:
        yield from _served_by_others(settings, visit, probe)


def _served_by_others(settings: Settings, visit: Visit, probe: str) -> Iterator[Step]:
    """Name the other processes that still serve accounts of this one, as after a change of their number."""
    topics = settings.topics
    statuses = {key: topics.of(key, "status") for key in settings.own_accounts}
    found = visit.retained(list(statuses.values()), probe)
    owners = Counter(owner_of(key, found.get(topic)) for key, topic in statuses.items())
    others = {topics.state_of(owner): owner for owner in owners if owner not in {None, topics.bridge}}
    online = visit.retained(list(others), probe) if others else {}
    for topic, owner in sorted(others.items()):
        if online.get(topic) == b"online":
            text = f"{owner} still serves {owners[owner]} of this process's accounts."
            yield Step("broker", text, "note", (_MOVES,))


def _check_sizes(settings: Settings, visit: Visit) -> Iterator[Step]:
    """Send as much at once as the daemon will, and as large: many brokers allow less, and 3.1.1 drops it silently."""
    topics, where = settings.topics, _probe(settings)
    if not all(visit.try_out(Message(where, "check", retain=False))):
        return  # publishing is not allowed at all, which another step reports
    if visit.publish([Message(where, str(number), retain=False) for number in range(_BURST)], tries=1):
        yield Step(
            "broker",
            f"It refuses some of {_BURST} messages sent at once, as many as a reading needs.",
            "note",
            (_QUOTA,),
        )
    sizes = {"a day's history": _history_bytes(topics)}
    if settings.home_assistant.discovery and settings.own_accounts:
        discovery = discovery_messages(settings, topics, version(), settings.own_accounts)
        sizes["a discovery message"] = max(len(message.payload.encode()) for message in discovery)
    for what, size in sorted(sizes.items(), key=itemgetter(1)):
        try:
            if size > visit.most_bytes(where) or not all(visit.try_out(Message(where, "x" * size, retain=False))):
                yield Step("broker", f"It refuses a message of {size} bytes, the size of {what}.", "failed", (_SIZE,))
                return
        except dialling.BrokerError:
            yield Step(
                "broker",
                f"It closes the connection at a message of {size} bytes, the size of {what}.",
                "failed",
                (_SIZE,),
            )
            return
    yield Step("broker", f"It accepts messages as large as {what}: {size} bytes.")


def _probe(settings: Settings) -> str:
    """Return the topic of the messages that this command sends to itself."""
    return settings.topics.sync(f"{settings.connection.client_id}-check")


def _history_bytes(topics: Topics) -> int:
    day = [
        Reading(mg_dl=100, direction="FortyFiveDown", date=10**12 + 300_000 * n, offset_min=-100) for n in range(288)
    ]
    return len(history_message(topics, "a", "0" * 8, day).payload)


def _check_home_assistant(settings: Settings, visit: Visit, probe: str) -> Iterator[Step]:
    prefix, status_topic = settings.home_assistant.discovery_prefix, settings.home_assistant.status_topic
    # Home Assistant reads an empty message as the removal of a device that it does not have, and ignores it.
    device = f"{prefix}/device/{settings.mqtt.base_topic.replace('/', '_')}-check/config"
    accepted, came_back = visit.try_out(cleared(device))
    # The daemon need not read there, but only MQTT 5 says whether it may write.
    maybe_harmless = () if visit.protocol == "5" else (_MAYBE_READING,)
    yield _written(f"{prefix}/device/+/config", *maybe_harmless, allowed=accepted and (came_back or not maybe_harmless))
    birth = visit.retained([status_topic], probe).get(status_topic)
    if birth == b"online":
        yield Step("broker", f"Home Assistant is online, according to {status_topic}.")
    else:
        yield Step(
            "broker",
            f"No status message from Home Assistant on {status_topic} yet. That is normal: by default it is not "
            "retained. Home Assistant finds the accounts when it connects.",
            "note",
        )


def _writable(shown: str, message: Message, visit: Visit) -> Step:
    return _written(shown, allowed=all(visit.try_out(message)))


def _written(topic: str, *more: str, allowed: bool) -> Step:
    if allowed:
        return Step("broker", f"Publishing to {topic} is allowed.")
    return Step("broker", f"Publishing to {topic} is not allowed.", "failed", (_DENIED, *more))


# --- text -------------------------------------------------------------------------------------------------


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('?') else '.'}"


def _span(seconds: float) -> str:
    """Return a rough duration: ``40 s``, ``12 min``, ``5 h``, ``3 days``."""
    for unit, size, until in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{max(seconds, 0) / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
