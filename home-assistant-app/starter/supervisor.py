"""Asking Home Assistant's Supervisor for the broker, again and again."""

from __future__ import annotations

import http.client
import json
import logging
import re
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

from starter.form import Broker

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

HOST: Final = "supervisor"
PATH: Final = "/services/mqtt"
SECONDS: Final = 10.0
"""How long one answer may take."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""Seconds between two requests while there is no broker; each pause is twice as long as the one before."""
EVERY: Final = 60.0
"""Seconds between two requests while there is one.

So new credentials or a new address are noticed, whatever the daemon reports meanwhile. The Supervisor is on this
machine, so this costs little.
"""
_MOST_BYTES: Final = 64 * 1024
_LAST_PORT: Final = 65535
_ADDRESS: Final = re.compile(r"[A-Za-z0-9_.:-]{1,255}")


class NoBrokerError(Exception):
    """There is no broker now; the text says why, and what to do."""


def keep_asking(token: str, use: Callable[[Broker], None]) -> NoReturn:
    """Keep asking, and pass on each new broker. Each reason for there being none is logged once."""
    last: Broker | None = None
    told: set[str] = set()
    pause = FIRST_PAUSE
    while True:
        try:
            found = ask(token)
        except NoBrokerError as error:
            # If the daemon has a broker, that may be restarting, so the daemon keeps it.
            if last is None and str(error) not in told:
                told.add(str(error))
                _log.warning("%s; asking again until there is a broker", error)
        else:
            if found != last:
                _log.info("the broker is %s%s", found, ", with new credentials" if _is_same_place(found, last) else "")
                use(found)
            last = found
        time.sleep(EVERY if last else pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _is_same_place(found: Broker, last: Broker | None) -> bool:
    return last is not None and (found.host, found.port) == (last.host, last.port)


def ask(token: str) -> Broker:
    """Ask once. Raises NoBrokerError."""
    # Not urllib: it would send the token to a proxy, or wherever an answer redirects.
    connection = http.client.HTTPConnection(HOST, timeout=SECONDS)
    try:
        connection.request("GET", PATH, headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        status, answer = response.status, response.read(_MOST_BYTES)
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a token that cannot be sent
        raise NoBrokerError(f"the Supervisor does not answer ({_why(error)})") from None
    finally:
        connection.close()
    if status != http.client.OK:
        raise NoBrokerError(_refusal(status))
    try:
        return _broker(json.loads(answer)["data"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise NoBrokerError("the Supervisor's answer about the broker cannot be read; restart Home Assistant") from None


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"within {SECONDS:g} s"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def _refusal(status: int) -> str:
    if status == http.client.BAD_REQUEST:
        return "there is no broker yet: start the app Mosquitto broker, or fill in mqtt on the tab Configuration"
    if status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN}:
        return f"the Supervisor does not let this app ask for the broker ({status}): uninstall and reinstall it"
    return f"the Supervisor cannot name a broker ({status})"


def _broker(data: Any) -> Broker:  # noqa: ANN401  # any JSON value
    """Return the broker in an answer. Raises ValueError, TypeError or KeyError if the answer is malformed."""
    host, port = data["host"], data["port"]
    username, password = data.get("username") or "", data.get("password") or ""
    usable = _ADDRESS.fullmatch(host) and type(port) is int and 0 < port <= _LAST_PORT
    if not usable or not isinstance(username + password, str):
        raise ValueError  # wrong is the answer, not our call
    return Broker(host, port, username, password, tls=data.get("ssl") is True)
