"""Check with a folder of accounts and with several processes: whose accounts it tries, and what a broken file costs."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.shards import shard_of
from dexcom2mqtt.topics import Topics
from tests.support.checking import ANNA, BEN, Bench, failed, steps
from tests.support.processes import Mosquitto, Subscriber, retained, write_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def place(bench: Bench, tmp_path: Path) -> Path:
    """Return a folder that holds Anna's and Ben's accounts, and leave none in the configuration."""
    place = tmp_path / "accounts"
    place.mkdir()
    for key, who in (("anna", ANNA), ("ben", BEN)):
        write_config(place / f"{key}.yaml", bench.account(who))
    bench.accounts = {}
    return place


def sharded(place: Path, key: str) -> tuple[int, dict[str, Any]]:
    """Return the index of two that serves an account, and the sections that say so; the other serves the other."""
    count = next(count for count in range(2, 99) if shard_of("anna", count) != shard_of("ben", count))
    index = shard_of(key, count)
    return index, {"accounts_dir": str(place), "shard": {"index": index, "count": count}}


def test_accounts_of_a_folder(bench: Bench, mosquitto: Mosquitto, place: Path) -> None:
    """They are tried like any other."""
    done = bench.check(mosquitto.port, {"accounts_dir": str(place)})
    assert (done.returncode, done.stderr) == (0, "")
    assert steps(done.stdout)[0] == ("ok", "configuration: Valid. Accounts: anna, ben.")
    assert bench.share.count(call="read") == 2


@pytest.mark.parametrize("key", ["anna", "ben"])
def test_only_the_accounts_of_the_own_shard_are_tried(
    bench: Bench, mosquitto: Mosquitto, place: Path, key: str
) -> None:
    """One line says how many it serves; nothing is asked or written for the others, and the client id has the index."""
    index, sections = sharded(place, key)
    other = "ben" if key == "anna" else "anna"
    count = sections["shard"]["count"]
    done = bench.check(mosquitto.port, sections)
    assert (done.returncode, done.stderr) == (0, "")
    said = steps(done.stdout)
    assert said[0] == ("ok", f"configuration: Valid. Shard {index} of {count} serves 1 of 2 accounts.")
    assert ("ok", f"broker: Publishing to dexcom2mqtt/bridge-{index}/# is allowed.") in said
    assert ("ok", "broker: Publishing to dexcom2mqtt/bridge/claims is allowed.") in said
    assert ("ok", f"broker: Publishing to dexcom2mqtt/{key}/# is allowed.") in said
    assert not [words for _, words in said if other in words]
    assert [request.call for request in bench.share.requests] == ["authenticate", "login", "read"]
    assert f" as dexcom2mqtt-{index}-check " in mosquitto.log()
    assert retained(mosquitto.port) == {}


def test_only_the_own_shards_daemon_counts(bench: Bench, mosquitto: Mosquitto, place: Path) -> None:
    """Another shard that is online is none of this one's business."""
    index, sections = sharded(place, "anna")
    with Subscriber(mosquitto.port) as witness:
        for name in ("bridge", f"bridge-{index + 1}"):
            witness.client.publish(f"dexcom2mqtt/{name}/state", "online", qos=1, retain=True)
            witness.wait_for(f"dexcom2mqtt/{name}/state")
        assert "A daemon is online" not in bench.check(mosquitto.port, sections).stdout
        witness.client.publish(f"dexcom2mqtt/bridge-{index}/state", "online", qos=1, retain=True)
        witness.wait_for(f"dexcom2mqtt/bridge-{index}/state")
    assert ("note", "broker: A daemon is online below dexcom2mqtt.") in steps(
        bench.check(mosquitto.port, sections).stdout
    )


def test_a_shard_may_be_without_accounts(bench: Bench, mosquitto: Mosquitto) -> None:
    """With fewer accounts than processes, some have nothing to do."""
    shard = {"index": 1 - shard_of("anna", 2), "count": 2}
    done = bench.check(mosquitto.port, {"shard": shard})
    assert done.returncode == 0
    assert f"Shard {shard['index']} of 2 serves 0 of 1 accounts." in done.stdout
    assert "It accepts messages as large as a day's history" in done.stdout
    assert bench.share.requests == []


def test_only_the_own_accounts_have_discovery(bench: Bench, start_mosquitto: Callable[..., Mosquitto]) -> None:
    """A process without accounts does not need a broker that accepts a message as large as that of another's."""
    broker = start_mosquitto("allow_anonymous true", "message_size_limit 2000")
    for index, what in ((shard_of("anna", 2), "a discovery message"), (1 - shard_of("anna", 2), "a day's history")):
        (why,) = failed(bench.check(broker.port, {"shard": {"index": index, "count": 2}}).stdout)
        assert why.endswith(f"bytes, the size of {what}.")


@pytest.mark.parametrize(
    ("owner", "state", "said"),
    [
        ("bridge-7", "online", True),
        ("bridge", "online", True),
        ("bridge-7", "offline", False),
        (None, "online", False),
    ],
)
def test_accounts_that_another_process_still_serves(
    bench: Bench, mosquitto: Mosquitto, place: Path, owner: str | None, state: str, *, said: bool
) -> None:
    """After a change of the number, a note names the process that has not released them, and what moves them."""
    _, sections = sharded(place, "anna")
    topics = Topics("dexcom2mqtt", owner or "bridge-7")
    status = status_message(topics, "anna", Status(), released=owner is None)
    with Subscriber(mosquitto.port) as witness:
        for topic, payload in ((topics.bridge_state, state), (status.topic, status.payload)):
            witness.client.publish(topic, payload, qos=1, retain=True)
            witness.wait_for(topic)
    done = bench.check(mosquitto.port, sections)
    assert done.returncode == 0
    words = f"broker: {owner} still serves 1 of this process's accounts."
    assert (("note", words) in steps(done.stdout)) is said
    assert ("still serves" in done.stdout) is said
    assert ("1. They move once it has restarted with the current shard.count, or has stopped." in done.stdout) is said


def test_broken_files_end_with_78(bench: Bench, mosquitto: Mosquitto, place: Path) -> None:
    """Each is a failed step that names it; everything else is tried all the same."""
    write_config(place / "ben.yaml", bench.account(BEN, region="usa"))
    broken = place / "zoe.yaml"
    broken.write_text(f"username: z\npassword: '{BEN.password}\n")
    broken.chmod(0o600)
    done = bench.check(mosquitto.port, {"accounts_dir": str(place)})
    assert done.returncode == 78
    assert done.stderr == "dexcom2mqtt: 2 steps failed; see above for what to do\n"
    ben, zoe = failed(done.stdout)
    assert ben.startswith("configuration: accounts.ben.region: found 'usa'; allowed: us, ous, jp (")
    assert zoe == f"configuration: {broken}, line 2, column 11: a quote is opened here and never closed"
    said = steps(done.stdout)
    assert ("ok", "configuration: The rest is valid. Accounts: anna.") in said
    assert [words for _, words in said if words.startswith("anna: Sharing is on.")]
    assert [words for _, words in said if words.startswith("broker: Publishing to dexcom2mqtt/anna/# is allowed.")]


def test_a_folder_without_a_good_file_ends_with_78(bench: Bench, place: Path) -> None:
    """Nothing is tried, and standard error names every broken file."""
    for key in ("anna", "ben"):
        (place / f"{key}.yaml").write_text("{")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        done = bench.check(nobody.getsockname()[1], {"accounts_dir": str(place), "accounts": {}})
    assert (done.returncode, done.stdout) == (78, "")
    first, *problems = done.stderr.splitlines()
    assert first == "dexcom2mqtt: the configuration cannot be used:"
    assert [problem.split(",")[0].split(": ")[0] for problem in problems] == [
        "  accounts_dir",
        f"  {place}/anna.yaml",
        f"  {place}/ben.yaml",
    ]
