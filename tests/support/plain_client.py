"""A client of the simulated Share service that sends the plainest requests, and a clock for both."""

from __future__ import annotations

import re
from typing import Any, Self

import requests

from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare
from tests.support.processes import BUSY

NOON = 1_745_064_000.0  # 2025-04-19 12:00:00 UTC
APPLICATION_ID = "d89443d2-327c-4a6f-89e5-496bbb0317db"
JAPANESE_ID = "d8665ade-9673-4e27-9ff6-92db4ce13d13"
ZERO = "00000000-0000-0000-0000-000000000000"
ANNA = SimulatedAccount("anna@example.com", "p@$$w0rd", "99999999-9999-9999-9999-999999999999", seed=1)
BEN = SimulatedAccount("+11234567890", "other", seed=2, zone_offset_min=330)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> float:
        return self.time


class Client:
    """Sends plain requests to the service; its connection must be closed."""

    def __init__(self, share: SimulatedShare, account: SimulatedAccount = ANNA) -> None:
        self.share = share
        self.account = account
        self.http = requests.Session()
        self.session_id = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def post(self, path: str, fields: object = None, **params: object) -> requests.Response:
        url = f"{self.share.base_url}/{path}"
        query = {name: str(value) for name, value in params.items()}
        return self.http.post(url, json=fields or {}, params=query, timeout=5 * BUSY)

    def authenticate(self, **changed: object) -> requests.Response:
        return self.post(
            "General/AuthenticatePublisherAccount", self.credentials("accountName", self.account.username, changed)
        )

    def login(self, **changed: object) -> requests.Response:
        answer = self.post(
            "General/LoginPublisherAccountById", self.credentials("accountId", self.account.account_id, changed)
        )
        if answer.status_code == 200 and answer.text:
            self.session_id = answer.json()
        return answer

    def credentials(self, key: str, user: str, changed: dict[str, object]) -> dict[str, object]:
        return {key: user, "password": self.account.password, "applicationId": APPLICATION_ID, **changed}

    def read(self, minutes: object = 1440, count: object = 288, session_id: str = "") -> requests.Response:
        return self.post(
            "Publisher/ReadPublisherLatestGlucoseValues",
            sessionId=session_id or self.session_id,
            minutes=minutes,
            maxCount=count,
        )

    def readings(self, minutes: object = 1440, count: object = 288) -> list[dict[str, Any]]:
        answer = self.read(minutes, count).json()
        assert isinstance(answer, list)
        return answer

    def times(self) -> list[int]:
        """Return WT of all readings, in Unix milliseconds."""
        return [wt(reading) for reading in self.readings()]


def wt(reading: dict[str, Any]) -> int:
    found = re.fullmatch(r"Date\((\d+)\)", reading["WT"])
    assert found
    return int(found[1])


def refused(answer: requests.Response) -> tuple[str, str]:
    """Return Code and Message of one of Share's errors, which all have the same form."""
    assert answer.status_code == 500
    error = answer.json()
    assert list(error) == ["Code", "Message", "SubCode", "TypeName"]
    assert error["TypeName"] == "FaultException"
    return error["Code"], error["Message"]
