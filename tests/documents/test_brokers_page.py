"""The page of brokers: it says what the suite of brokers expects of them."""

from __future__ import annotations

import re

from tests.support.documents import rows_of, text_of
from tests.support.real_brokers import KINDS, Kind

NAMES = {
    "mosquitto": "Mosquitto",
    "aedes": "aedes",
    "aedes_late": "aedes",
    "rabbitmq": "RabbitMQ",
    "nats": "NATS",
    "ejabberd": "ejabberd",
}
"""Their names on the page."""


def row_of(kind: Kind) -> list[str]:
    (row,) = [row for row in rows_of(text_of("docs/brokers.md")) if re.match(rf"{NAMES[kind.name]}\b", row[0])]
    return row[1:]


def test_each_broker_of_the_suite_has_its_row() -> None:
    """The page says which MQTT each one speaks, and what happens to retained messages, as the suite expects."""
    for kind in KINDS:
        _, protocol, keeps, wildcards = row_of(kind)
        assert kind.protocol in re.split("[; ]", protocol)
        assert keeps.startswith("yes") is kind.keeps
        assert (wildcards == "yes") is kind.wildcards


def test_the_aedes_on_the_page_is_the_installed_one() -> None:
    """The version on the page is the one that .ci/run pins."""
    (pinned,) = re.findall(r"aedes@([\d.]+)", text_of(".ci/run"))
    (kind,) = [kind for kind in KINDS if kind.name == "aedes"]
    assert row_of(kind)[0] == pinned
