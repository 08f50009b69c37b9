"""The command that tries everything once, and says what works, what does not, and what to do about it.

It is the first thing that anyone runs. It signs in once for each account, since wrong credentials tried again and
again lock an account, and it leaves nothing at the broker. What it says of followers is from pydexcom's answers to
frequent questions.
"""

from __future__ import annotations

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
from dexcom2mqtt.messages.state import in_words
from dexcom2mqtt.mqtt import dialling, tls_files
from dexcom2mqtt.mqtt.visit import Visit
from dexcom2mqtt.readings import Reading
from dexcom2mqtt.share import CredentialsRejectedError, LockedOutError, ShareError, UnavailableError
from dexcom2mqtt.topics import Topics
from dexcom2mqtt.web import listening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dexcom2mqtt.clock import Clock
    from dexcom2mqtt.config.settings import Account, Settings, Web
    from dexcom2mqtt.share import Batch, ShareClient

_THREADS: Final = 4
"""Those of the daemon that are none of an account: broker, heart, health, end."""
_THREADS_OF_WEB: Final = 3
"""Those of the page: one listens, two answer."""
_CLOCKS_AGREE: Final = 30.0
_CERTIFICATE_ENDS: Final = 30 * 86400.0
_GONE: Final = 60.0
"""Seconds after which MQTT 5 forgets what is left where this is ended in the middle."""
_NO_READINGS: Final = (
    "In the Dexcom app of the person who wears the sensor, sharing has to be on and to have at least one follower.",
    "The credentials have to be those of that person. A follower can sign in, too, but has no readings.",
    "The sensor may be warming up, or the phone may be off or without network for a day: the app tells.",
    "Share has readings of G4 to G7 and ONE+. Stelo has no sharing.",
)
_PHONE_CLOCK: Final = (
    "The clock of the phone that uploads the readings was set by hand: let its date and time be set automatically.",
    "It was set right just now: then the daemon shows the next reading, whatever false times lie ahead of it.",
    "The phone's clock is right: then it is Share's that is wrong now. Check again in an hour.",
)
_OLD_READINGS: Final = (
    "The phone is off or without network, or the Dexcom app does not run there.",
    "The sensor is warming up or has ended: the app tells. Then readings will come by themselves.",
    "Sharing was switched off in the app.",
    "The clock of the phone is behind, so that new readings look old: let it be set automatically.",
)
_LOCKED_OUT: Final = (
    "Wait 20 minutes before the next check, with the daemon stopped: each try of any program begins them anew.",
    "Set the credentials right, also in other programs that sign in with an old password.",
)
_DENIED: Final = (
    "The broker's access control list has to let the user of this daemon read and write there: examples/mosquitto/acl."
)
_BURST: Final = 20
_RETAIN: Final = "Allow retained messages: retain_available, as Mosquitto calls it."
_QUOTA: Final = "Allow this client 20 messages in a second. Until then the daemon sends more slowly."
_SIZE: Final = (
    "Allow larger messages: max_packet_size and message_size_limit, as Mosquitto calls it. Until then the daemon keeps "
    "a shorter history there, and what cannot be shortened is missing."
)
_NO_WILDCARDS: Final = (
    "It hands out nothing retained for subscriptions with wildcards. The daemon needs none; programs that subscribe to "
    "all topics below one see a value only when the next reading comes."
)
_NO_PLACE: Final = (
    "Another program has the port (`sudo ss -ltnp` tells which): choose another one, web.port.",
    "This machine has no such address: `ip address` lists those that it has, and 0.0.0.0 stands for all of them.",
    "Ports below 1024 need rights that the daemon does not have.",
)
_UNTOLD: Final = "It may be reading there that is denied, which does no harm: MQTT 3.1.1 does not tell which."


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried, and what came of it. ``of`` is an account's key, or what else it is about."""

    of: str
    text: str
    verdict: Literal["ok", "note", "failed"] = "ok"
    remedies: tuple[str, ...] = ()
    """What may have led to it and what to do, the most likely first."""


def check(settings: Settings, clock: Clock) -> Iterator[Step]:
    """Try everything once, and yield each step as soon as it is done. Raises TlsFileError and VariableError."""
    if settings.mqtt.tls is not None:
        tls_files.tls_context(settings.mqtt.tls)  # a problem in the configuration costs no sign-in
    clients = {key: client_of(account, clock) for key, account in settings.accounts.items()}  # nor one in a variable
    yield Step("configuration", f"It is good. Accounts: {', '.join(settings.accounts)}.")
    yield from _check_threads(len(settings.accounts) + _THREADS + (_THREADS_OF_WEB if settings.web else 0))
    for proxy in dict.fromkeys(client.proxy for client in clients.values() if client.proxy):
        yield Step("configuration", f"Share is reached through the proxy {proxy}, which the environment names.")
    for key, account in settings.accounts.items():
        yield from _check_account(key, account, clients[key], settings.stale_after_seconds)
    if settings.web is not None:
        yield _check_web(settings.web)
    try:
        yield from _check_broker(settings, clock)
    except dialling.BrokerError as error:
        yield Step("broker", _sentence(str(error)), "failed", error.causes)


def _check_threads(needed: int) -> Iterator[Step]:
    if (started := threads.startable(needed)) < needed:
        text = f"This machine lets the daemon start {started} of the {needed} threads that it needs."
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
    today = (f"This machine takes today for {day(system_time())}.",) if wrong_clock else ()
    return verdict.of_error(error).message, "failed", today


def _newest(key: str, account: Account, client: ShareClient, batch: Batch, stale_after: float) -> Step:
    newest = batch.readings[-1] if batch.readings else None
    age = 0.0 if newest is None else (client.time.now() or system_time()) - newest.date / 1000
    ahead = -age if age < -TOLERANCE else None
    found = Found(newest=newest, fresh=newest is not None and age < stale_after, ahead=ahead)
    told = verdict.of_batch(batch, found)
    if newest is None and told.message == status.REMEDIES["no_readings"]:
        return Step(key, "Share has no reading of the last 24 hours.", "failed", _NO_READINGS)
    if newest is None or ahead is not None:
        return Step(key, told.message, "failed", () if ahead is None else _PHONE_CLOCK)
    facts = f"{in_words(newest, account.unit)}, {_span(age)} old; there are {len(batch.readings)} of the last 24 hours."
    if told.share == "ok":
        return Step(key, f"Sharing is on. The newest reading is {facts}")
    why = _OLD_READINGS if told.share == "no_readings" else (told.message,)
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
        f"This machine's clock is {_span(abs(ahead))} {direction} Share's. The daemon goes by Share's, but encrypted "
        "connections and other programs need a clock that is right.",
        "note",
        ("Let this machine reach a time server: `timedatectl` tells whether it does.",),
    )


# --- the page ----------------------------------------------------------------------------------------------


def _check_web(web: Web) -> Step:
    place = f"{web.host} port {web.port}"
    try:
        listening.close(listening.listen(web.host, web.port))
    except OSError as error:
        if listening.serves(web.host, web.port):
            return Step("web", f"The page is served at {place}, by a daemon that runs.")
        return Step("web", f"The page cannot be served at {place}: {listening.why(error)}.", "failed", _NO_PLACE)
    return Step("web", f"The page can be served at {place}.")


# --- the broker --------------------------------------------------------------------------------------------


def _check_broker(settings: Settings, clock: Clock) -> Iterator[Step]:
    mqtt = settings.mqtt
    yield Step("broker", f"{mqtt.host} port {mqtt.port} takes connections, at {dialling.reach(mqtt)}.")
    if mqtt.tls is not None:
        yield _certificate(dialling.certificate(mqtt, mqtt.tls))
    with Visit(mqtt, clock, "check") as visit:
        whom = "us without a user name" if mqtt.username is None else "our user name and password"
        yield Step("broker", f"It speaks MQTT {visit.protocol} and accepts {whom}.")
        if not visit.keeps_retained:
            yield Step(
                "broker",
                "It keeps no retained messages, and so has no value when a program asks.",
                "failed",
                (_RETAIN,),
            )
            return
        yield from _check_sizes(settings, visit, Topics(settings.mqtt.base_topic))
        visit.mend()
        yield from _check_topics(settings, visit, clock)


def _certificate(shown: dialling.Certificate | None) -> Step:
    if shown is None:
        return Step("broker", "Its certificate is not looked at: mqtt.tls.verify is false.", "note")
    left = shown.until - system_time()
    text = f"Its certificate is {shown.subject}'s, issued by {shown.issuer}, and good until {day(shown.until)}."
    return Step("broker", text, "ok" if left > _CERTIFICATE_ENDS else "note")


def _check_topics(settings: Settings, visit: Visit, clock: Clock) -> Iterator[Step]:
    topics, home_assistant = Topics(settings.mqtt.base_topic), settings.home_assistant
    probe = topics.sync(f"{settings.mqtt.client_id}-check")
    left_there = topics.sync(f"{settings.mqtt.client_id}-check-retained")
    try:
        visit.publish([Message(left_there, "check", clock.now() + _GONE)])
        kept = left_there in visit.retained([left_there], probe)
        wildcards = not kept or left_there in visit.retained([topics.sync("+")], probe)
    finally:
        visit.publish([cleared(left_there)])
    yield _written(topics.of("bridge", "#"), taken=kept)
    if not wildcards:
        yield Step("broker", _NO_WILDCARDS, "note")
    for key in settings.accounts:
        yield _written(topics.of(key, "#"), taken=all(visit.try_out(cleared(topics.of(key, "check")))))
    if home_assistant.discovery:
        yield from _check_home_assistant(settings, visit, probe)
    if visit.retained([topics.bridge_state], probe).get(topics.bridge_state) == b"online":
        yield Step("broker", f"A daemon is online below {topics.base}.", "note")


def _check_sizes(settings: Settings, visit: Visit, topics: Topics) -> Iterator[Step]:
    """Send as much at once as the daemon will, and as large: many brokers allow less, and 3.1.1 drops it in silence."""
    where = topics.sync(f"{settings.mqtt.client_id}-check")
    if not all(visit.try_out(Message(where, "check", retain=False))):
        return  # it is not allowed at all, as another step tells
    if visit.publish([Message(where, str(number), retain=False) for number in range(_BURST)], tries=1):
        yield Step(
            "broker", f"It refuses some of {_BURST} messages at once, as many as a reading is.", "note", (_QUOTA,)
        )
    sizes = {"the history of a day": _history_bytes(topics)}
    if settings.home_assistant.discovery:
        discovery = discovery_messages(settings, topics, version())
        sizes["a discovery"] = max(len(message.payload.encode()) for message in discovery)
    for what, size in sorted(sizes.items(), key=itemgetter(1)):
        try:
            if size > visit.most_bytes(where) or not all(visit.try_out(Message(where, "x" * size, retain=False))):
                yield Step("broker", f"It does not take {size} bytes at once, as {what} has.", "failed", (_SIZE,))
                return
        except dialling.BrokerError:
            yield Step("broker", f"It hangs up when {size} bytes come at once, as {what} has.", "failed", (_SIZE,))
            return
    yield Step("broker", f"It takes messages as large as {what}: {size} bytes.")


def _history_bytes(topics: Topics) -> int:
    day = [
        Reading(mg_dl=100, direction="FortyFiveDown", date=10**12 + 300_000 * n, offset_min=-100) for n in range(288)
    ]
    return len(history_message(topics, "a", "0" * 8, day).payload)


def _check_home_assistant(settings: Settings, visit: Visit, probe: str) -> Iterator[Step]:
    prefix, status_topic = settings.home_assistant.discovery_prefix, settings.home_assistant.status_topic
    # Home Assistant takes an empty message for the removal of a device that it does not have, and says nothing.
    device = f"{prefix}/device/{settings.mqtt.base_topic.replace('/', '_')}-check/config"
    taken, came_back = visit.try_out(cleared(device))
    # The daemon need not read there, but only MQTT 5 tells whether it may write.
    untold = () if visit.protocol == "5" else (_UNTOLD,)
    yield _written(f"{prefix}/device/+/config", *untold, taken=taken and (came_back or not untold))
    word = visit.retained([status_topic], probe).get(status_topic)
    if word == b"online":
        yield Step("broker", f"Home Assistant is there: {status_topic} is online.")
    else:
        yield Step(
            "broker",
            f"Home Assistant has left no word on {status_topic}. By default its birth message is not retained, so it "
            "may be there all the same; what is published will be found when it comes.",
            "note",
        )


def _written(topic: str, *more: str, taken: bool) -> Step:
    if taken:
        return Step("broker", f"Publishing to {topic} is allowed.")
    return Step("broker", f"Publishing to {topic} is not allowed.", "failed", (_DENIED, *more))


# --- words -------------------------------------------------------------------------------------------------


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('?') else '.'}"


def _span(seconds: float) -> str:
    """Say how long something is, roughly: ``40 s``, ``12 min``, ``5 h``, ``3 days``."""
    for unit, size, until in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{max(seconds, 0) / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
