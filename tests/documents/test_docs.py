"""The documents: what they show works unchanged, and what they say is what the code does."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from dexcom2mqtt import readings, share
from dexcom2mqtt.account.statistics import statistics_of
from dexcom2mqtt.clock import iso, parse_iso
from dexcom2mqtt.config import loading
from dexcom2mqtt.config.problems import ConfigError
from dexcom2mqtt.config.settings import Settings, Tls, keys_of
from dexcom2mqtt.demo.share_service import SimulatedAccount, SimulatedShare, accelerated
from dexcom2mqtt.messages import status
from dexcom2mqtt.messages.bridge import SCHEMA_VERSION, bridge_info
from dexcom2mqtt.messages.days import counted, days_message, parse_days
from dexcom2mqtt.messages.history import history_message
from dexcom2mqtt.messages.homeassistant import discovery_topic
from dexcom2mqtt.messages.state import fresh_messages, reading_message, state_of
from dexcom2mqtt.messages.status import Status, status_message
from dexcom2mqtt.mqtt.tls_files import tls_context
from dexcom2mqtt.readings import Reading, parse_record
from dexcom2mqtt.topics import RETAINED, STATE_KEYS, Topics
from tests.documents.test_examples import load as load_strictly
from tests.e2e.test_debian import PYTHON_OF
from tests.support import configuration_page
from tests.support.builders import NOON, account, reading
from tests.support.documents import (
    DOCUMENTS,
    PROBLEM,
    REASONS,
    WITHOUT_FILE,
    Block,
    anchors_of,
    blocks_of,
    codes_in,
    every_block,
    files_of_the_project,
    links_of,
    prose_of,
    rows_of,
    section_of,
    text_of,
    without_blocks,
)
from tests.support.processes import ROOT, eventually, free_port, retained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from tests.support.processes import Mosquitto

BIN: Final = Path(sys.executable).parent
PASSWORD: Final = "correct horse"
PLACEHOLDERS: Final = {"her password at Dexcom": PASSWORD}
"""The placeholders for a password in the documents, and what a reader writes instead."""
PEOPLE: Final = [
    SimulatedAccount("anna@example.com", PASSWORD, seed=1),
    SimulatedAccount("ben@example.com", "his password at Dexcom", seed=2),
    SimulatedAccount("+11234567890", "0123", seed=3),
]
"""The people named in the documents."""

EVERY_BLOCK: Final = [block for document in DOCUMENTS for block in blocks_of(document)]
SHELL: Final = ("sh", "console")


def as_read(block: Block) -> str:
    """Return a block's text after the reader has replaced the placeholders."""
    text = block.text
    for placeholder, own in PLACEHOLDERS.items():
        text = text.replace(placeholder, own)
    return text


# --- every block -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", EVERY_BLOCK, ids=str)
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    """A test below runs or reads each block, or a comment above the block says why not."""
    if block.runs:
        assert block.language in {"yaml", "json", "python", "toml", *SHELL}, (
            f"nothing runs this; give it a reason, as <!-- not run here: … -->, one of {REASONS}"
        )
        known = {"yaml": {"", PROBLEM}, "sh": {"", WITHOUT_FILE}}.get(block.language, {""})
        assert block.note in known, "no comment that a test knows"
    else:
        assert block.reason, f"not one of the reasons {REASONS}"
        name, what = block.reason
        ci = text_of(".ci/run")
        if name == "e2e":
            assert re.search(rf"(?m)^ *part {what} ", ci)
        if name == "test":
            assert (ROOT / what).exists()
        if name == "ci":
            assert [script for script in re.findall(r"(?m)^[\w./]+", block.text) if script not in ci] == []


@pytest.mark.parametrize("block", every_block("yaml"), ids=str)
def test_a_configuration_loads(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration in the documents loads unchanged; other YAML has no key twice."""
    keys = load_strictly(block.text).keys() if block.note != PROBLEM else keys_of(Settings).keys()
    if not keys & keys_of(Settings).keys():
        return
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(as_read(block), encoding="utf-8")
    if block.note == PROBLEM:
        with pytest.raises(ConfigError):
            loading.load(environ={}, secrets=())
    else:
        assert loading.load(environ={}, secrets=()).accounts


@pytest.mark.parametrize("block", every_block("toml"), ids=str)
def test_toml_can_be_read(block: Block) -> None:
    """A block marked as TOML is valid TOML."""
    assert tomllib.loads(block.text)


def payloads() -> dict[str, dict[str, Any]]:
    """Make one payload of each kind in JSON."""
    topics = Topics("dexcom2mqtt")
    state = state_of(reading(), 3, account())
    made = [
        fresh_messages(topics, "anna", state, 1000.0)[0],
        reading_message(topics, "anna", state, backfill=False),
        history_message(topics, "anna", "0123abcd", [reading()]),
        status_message(topics, "anna", Status()),
        bridge_info(topics, version="1", started_at=0.0, protocol="5", accounts=["anna"]),
        days_message(topics, "anna", "0123abcd", counted({}, [reading()], (54, 70, 180, 250))),
    ]
    statistics = statistics_of([reading()], None, account(), NOON, 0)
    return {message.topic.rpartition("/")[2]: json.loads(message.payload) for message in made} | {
        "statistics": statistics
    }


@pytest.mark.parametrize("block", every_block("json"), ids=str)
def test_a_payload_is_as_it_would_be_sent(block: Block) -> None:
    """A JSON block has the keys of one of the payloads, in order; a reading has the right values."""
    shown = json.loads(block.text)
    (kind,) = [kind for kind, payload in payloads().items() if list(payload) == list(shown)]
    if kind in {"state", "reading"}:
        offset = re.search(r"([+-])(\d\d):(\d\d)$", shown["measurement_timestamp"])
        assert offset
        minutes = (int(offset[2]) * 60 + int(offset[3])) * (-1 if offset[1] == "-" else 1)
        taken = Reading(shown["mg_dl"], shown["direction"], shown["date"], minutes)
        state = state_of(taken, shown["delta"], account(shown["unit"]))
        assert state == {key: value for key, value in shown.items() if key != "backfill"}
    if kind == "history":
        assert [list(entry) for entry in shown["readings"]] == [
            list(entry) for entry in payloads()["history"]["readings"]
        ] * len(shown["readings"])
    if kind == "statistics":
        assert list(shown["24h"]) == list(payloads()["statistics"]["24h"])
        assert sum(round(10 * shown["24h"][name]) for name in readings.RANGES) == 1000
        assert shown["24h"]["cv"] == round(100 * shown["24h"]["sd"] / shown["24h"]["mean"], 1)
    if kind == "days":
        assert len(parse_days(block.text.encode(), shown["source"], 2 * NOON)) == len(shown["days"])
    if kind == "status":
        assert (shown["share"], shown["message"]) in status.REMEDIES.items()
        times = [shown[key] for key in ("since", "last_reading_at", "last_success_at", "next_poll_at")]
        assert times == sorted(times)
        assert [iso(parse_iso(time)) for time in times] == times


# --- as a library ------------------------------------------------------------------------------------------


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedShare]:
    """Run a Share service for the people in the documents instead of Dexcom's."""
    with SimulatedShare(PEOPLE, accelerated(1.0)) as running:
        for region in share.BASE_URLS:
            monkeypatch.setitem(share.BASE_URLS, region, running.base_url)
        yield running


@pytest.mark.parametrize("block", every_block("python"), ids=str)
def test_python_examples_run_unchanged(block: Block, service: SimulatedShare) -> None:
    """A Python block runs, asks Share, and prints a reading; only the server is a different one."""
    said = run_python(block)
    assert service.count(call="read", outcome="ok") == 1
    newest = share.ShareClient(username="anna@example.com", password=PASSWORD).latest_reading()
    assert newest
    assert str(newest.mg_dl) in said.split()


@pytest.mark.parametrize("block", every_block("python"), ids=str)
def test_python_catches_errors(block: Block, service: SimulatedShare) -> None:
    """A Python block reports rejected credentials, and a Share service that does not answer."""
    service.close()
    assert "try again later" in run_python(block)
    with SimulatedShare([SimulatedAccount("anna@example.com", "another password")], accelerated(1.0)) as strict:
        share.BASE_URLS["us"] = strict.base_url
        assert "check region, user name and password" in run_python(block)


def run_python(block: Block) -> str:
    """Run it and return what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(as_read(block), str(block), "exec"), {"__name__": "__main__"})  # noqa: S102  # this is the test
    return said.getvalue()


def public_names(module: ModuleType) -> set[str]:
    """Return the public names of a module, or of a package."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    assert module.__file__
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def public_members(thing: object) -> set[str]:
    """Return the public members of an object."""
    return {name for name in dir(thing) if not name.startswith("_")}


def listed(*headings: str) -> list[str]:
    """List the names in the first column of the tables under these headings of the library's page."""
    page = text_of("docs/library.md")
    names = [codes_in(row[0])[0] for heading in headings for row in rows_of(section_of(page, heading))]
    return [re.split(r"[^\w.]", name)[0] for name in names]


def test_the_library_is_documented() -> None:
    """Every public name of the client and of the readings is on the library's page, once, and no other."""
    names = listed("## Errors", "## Other names")
    assert sorted(names) == sorted((public_names(share) | public_names(readings)) - {"ShareClient", "Reading"}), (
        "docs/library.md"
    )


def test_the_client_package_has_every_name_it_exports() -> None:
    """Every name of ``__all__`` can be imported, and hides no module of the package."""
    modules = {path.stem for path in Path(str(share.__file__)).parent.glob("*.py")}
    assert all(hasattr(share, name) for name in share.__all__)
    assert not modules & set(share.__all__)


def test_a_batch_is_documented() -> None:
    """The row on the library's page names everything that a batch holds, and nothing else."""
    (row,) = [row for row in rows_of(section_of(text_of("docs/library.md"), "## Other names")) if row[0] == "`Batch`"]
    assert sorted(codes_in(row[1])) == sorted({"fetch"} | {field.name for field in fields(share.Batch)})


def test_the_client_and_a_reading_are_documented() -> None:
    """Every public property and method of a client and of a reading is on the library's page, once, and no other."""
    client = share.ShareClient(username="anna", password="password")
    assert sorted(listed("## The client")) == sorted(public_members(client))
    assert sorted(listed("## A reading")) == sorted(public_members(reading()))


def test_the_arguments_of_the_client_are_documented() -> None:
    """Every argument of the client is on the library's page."""
    taken = share.ShareClient.__init__.__code__
    arguments = taken.co_varnames[1 : taken.co_argcount + taken.co_kwonlyargcount]
    opening = section_of(text_of("docs/library.md"), "## The client").partition("|")[0]
    assert set(arguments) <= set(codes_in(opening))


def test_every_named_property_exists() -> None:
    """Every replacement for one of pydexcom's names exists here."""
    known = public_members(share.ShareClient) | public_members(Reading) | public_names(share) | public_names(readings)
    for old, new in rows_of(section_of(text_of("docs/library.md"), "## Coming from pydexcom")):
        assert old
        named = [word for code in codes_in(new) for word in re.findall(r"^[\w.]+", code)]
        assert set(named) <= known, new


def test_eight_values_differ_from_pydexcoms() -> None:
    """Conversion by 0.0555, as in pydexcom, gives a different result at as many values as the library's page says."""
    differing = [mg_dl for mg_dl in range(39, 402) if readings.to_mmol_l(mg_dl) != round(mg_dl * 0.0555, 1)]
    assert len(differing) == 8
    assert "another result for eight values" in re.sub(r"\s+", " ", text_of("docs/library.md"))


# --- in a shell --------------------------------------------------------------------------------------------


_CHANGES_THE_MACHINE: Final = re.compile(
    r"(?<![\w.~-])/(bin|boot|etc|home|lib|opt|root|run|srv|sys|usr|var)\b|\b(apt|apt-get|docker|podman|systemctl|pip)\b"
)
"""The tests may run as root: commands that would install, remove or restart something must not run here."""


class World:
    """A folder, a broker and a Share service for the commands of one document.

    The usual names in a document work: `dexcom2mqtt`, `config.yaml`, the broker at its usual port, Dexcom's servers.
    The environment leads them to their places here; `/etc/mosquitto` is in the folder.
    """

    def __init__(self, folder: Path, broker: Mosquitto, service: SimulatedShare) -> None:
        self.folder = folder
        self.broker = broker
        self.service = service
        self.settings: Settings | None = None
        (folder / "mosquitto" / "conf.d").mkdir(parents=True)
        for client in ("mosquitto_sub", "mosquitto_pub"):
            (folder / client).write_text(f"-h 127.0.0.1\n-p {broker.port}\n", encoding="utf-8")
        for name in ("examples", "systemd", "config.example.yaml"):
            (folder / name).symlink_to(ROOT / name)

    @property
    def environ(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("DEXCOM2MQTT_")}
        kept |= {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        if self.settings:
            kept |= {"DEXCOM2MQTT_MQTT__HOST": "127.0.0.1", "DEXCOM2MQTT_MQTT__PORT": str(self.broker.port)}
            # Daemons of other tests have the usual client id, which is visible on the whole machine.
            kept["DEXCOM2MQTT_MQTT__CLIENT_ID"] = f"{self.settings.mqtt.client_id}-{self.folder.name}-{os.getpid()}"
            for key in self.settings.accounts:
                kept[f"DEXCOM2MQTT_ACCOUNTS__{key.upper()}__SHARE_URL"] = self.service.base_url
        return kept

    def configure(self, block: Block) -> None:
        """Save a configuration the way the document says."""
        file = self.folder / "config.yaml"
        file.write_text(as_read(block), encoding="utf-8")
        file.chmod(0o600)
        self.settings = None if block.note == PROBLEM else loading.load(file, environ={}, secrets=())

    def run(self, block: Block) -> None:
        """Run the commands of a block; each must succeed."""
        text = as_read(block).replace("sudo -u mosquitto ", "").replace("sudo ", "")
        text = re.sub("/(etc|var/lib)/mosquitto", f"{self.folder}/mosquitto", text)
        text = text.replace("-o mosquitto -g mosquitto", f"-o {os.getuid()} -g {os.getgid()}")
        assert not _CHANGES_THE_MACHINE.search(text.replace(str(self.folder), "")), f"{block} must not run here"
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        words = re.sub(r"\s+#.*", "", lines[-1])
        if block.note == WITHOUT_FILE:
            (self.folder / "config.yaml").unlink()
        if ready := self._lasting(words):
            script = "\n".join([*lines[:-1], f"exec {words}"])
            self._run_and_end(script, ready)
        else:
            ran = subprocess.run(
                ["sh", "-eu", "-c", text],
                cwd=self.folder,
                env=self.environ,
                capture_output=True,
                text=True,
                timeout=60,
                stdin=subprocess.DEVNULL,
                check=False,
            )
            assert ran.returncode == 0, f"{block}: {ran.stdout}{ran.stderr}"

    def say(self, block: Block) -> None:
        """Run the commands after a `$`, and compare their output with the block."""
        for part in re.split(r"(?m)^\$ ", as_read(block))[1:]:
            command, _, shown = part.partition("\n")
            ran = subprocess.run(
                ["sh", "-c", command],
                cwd=self.folder,
                env=self.environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
                check=False,
            )
            assert ran.stdout == shown, f"{block}: {command}"

    def _lasting(self, command: str) -> Callable[[str], object] | None:
        """Return a check of the output of a command that does not end by itself: whether it works."""
        if command.startswith("mosquitto_sub "):
            return re.compile("^dexcom2mqtt/", re.MULTILINE).search
        if command.startswith("dexcom2mqtt run"):
            assert self.settings
            topics = Topics(self.settings.mqtt.base_topic)
            wanted = [topics.bridge_state, *(topics.of(key, "availability") for key in self.settings.accounts)]
            return lambda _: {retained(self.broker.port).get(topic) for topic in wanted} == {"online"}
        return None

    def _run_and_end(self, script: str, ready: Callable[[str], object]) -> None:
        output = self.folder / "output"
        with output.open("w") as file:
            process = subprocess.Popen(
                ["sh", "-eu", "-c", script], cwd=self.folder, env=self.environ, stdout=file, stderr=subprocess.STDOUT
            )
        try:
            eventually(lambda: ready(output.read_text("utf-8")), 30, why=f"{script}: {output.read_text('utf-8')}")
            process.send_signal(signal.SIGINT)
            assert process.wait(10) in {0, -signal.SIGINT}, output.read_text("utf-8")
        finally:
            process.kill()
            process.wait(10)


@pytest.fixture
def world(tmp_path: Path, mosquitto: Mosquitto, service: SimulatedShare) -> World:
    """Return a world for the commands of one document."""
    if not shutil.which("mosquitto_sub"):
        pytest.skip("mosquitto_sub is not installed; install the package mosquitto-clients to run them")
    return World(tmp_path, mosquitto, service)


@pytest.mark.parametrize("document", sorted({block.document for block in every_block(*SHELL)}))
def test_commands_work(document: str, world: World) -> None:
    """The commands of a document, run in order with its configurations, succeed and print what is shown."""
    for block in blocks_of(document):
        if not block.runs:
            continue
        if block.language == "yaml" and (block.note == PROBLEM or "accounts" in yaml.safe_load(block.text)):
            world.configure(block)
        if block.language == "sh":
            world.run(block)
        if block.language == "console":
            world.say(block)


def test_run_prints_the_lines_in_the_documents(world: World) -> None:
    """With the README's configuration, ``run`` logs the lines shown on the page for troubleshooting."""
    page = section_of(text_of("docs/troubleshooting.md"), "## What run prints")
    (configuration,) = [block for block in blocks_of("README.md") if block.language == "yaml"]
    (shown,) = blocks_of("docs/troubleshooting.md", page)
    world.configure(configuration)
    world._run_and_end("exec dexcom2mqtt run", re.compile("earlier readings").search)  # noqa: SLF001  # of this module

    def shape(line: str) -> str:
        return re.sub(r"[↑↗→↘↓]+", "→", re.sub(r"\d+", "0", re.sub(r"at \S+:\d+", "at …", line)))

    lines = (world.folder / "output").read_text("utf-8").splitlines()
    assert [shape(line) for line in lines[:4]] == [shape(line) for line in shown.text.splitlines()]


def test_the_broker_is_secured_as_shown(world: World, start_mosquitto: Callable[..., Mosquitto]) -> None:
    """The commands on the security page leave a broker that admits only its users."""
    block, _ = [block for block in blocks_of("docs/security.md") if block.language == "sh"]
    world.run(block)
    broker = start_mosquitto(f"include_dir {world.folder}/mosquitto/conf.d")

    def publishes(*login: str) -> bool:
        command = ["mosquitto_pub", "-p", str(broker.port), "-t", "dexcom2mqtt/bridge/state", "-m", "online", *login]
        return subprocess.run(command, env=os.environ, capture_output=True, check=False).returncode == 0

    assert publishes("-u", "dexcom2mqtt", "-P", "a password")
    assert not publishes("-u", "dexcom2mqtt", "-P", "another")
    assert not publishes()


def test_the_broker_is_encrypted_as_shown(world: World, start_mosquitto: Callable[..., Mosquitto]) -> None:
    """The commands on the security page make certificates that a strict Python accepts, for host and address."""
    users, certificates = [block for block in blocks_of("docs/security.md") if block.language == "sh"]
    port = free_port()
    for old, new in (("broker.local", "localhost"), ("192.168.1.2", "127.0.0.1"), ("8883", f"{port} 127.0.0.1")):
        assert old in certificates.text
        certificates = replace(certificates, text=certificates.text.replace(old, new))
    for block in (users, certificates):
        world.run(block)
    start_mosquitto(f"include_dir {world.folder}/mosquitto/conf.d")
    context = tls_context(Tls(ca_file=world.folder / "ca.crt"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for host in ("localhost", "127.0.0.1"):
        with socket.create_connection(("127.0.0.1", port)) as sock, context.wrap_socket(sock, server_hostname=host):
            pass


# --- what they say -----------------------------------------------------------------------------------------


def test_the_keys_of_the_configuration_are_those_of_the_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    """The reference of the configuration is what the schema and the problems say; --write-configuration makes it."""
    monkeypatch.chdir(tmp_path)
    page = configuration_page.PAGE.read_text(encoding="utf-8")
    before, held, after = configuration_page.between(page)
    made = configuration_page.made(tmp_path)
    if pytestconfig.getoption("--write-configuration"):
        configuration_page.PAGE.write_text(before + made + after, encoding="utf-8")
    else:
        assert held == made


def test_a_name_in_the_environment_leads_to_its_key(tmp_path: Path) -> None:
    """Each variable and each secret file in the reference sets the key in its row."""
    table = section_of(text_of("docs/configuration.md"), "### Names in the environment, and of secret files")
    rows = [[codes_in(cell)[0] for cell in row] for row in rows_of(table)]
    assert rows
    for key, variable, secret in rows:
        folder = tmp_path / key
        folder.mkdir()
        (folder / secret).write_text("\x01", encoding="utf-8")
        for environ, secrets in (({variable: "\x01"}, ()), ({}, (folder,))):
            with pytest.raises(ConfigError) as caught:
                loading.load(environ=environ, secrets=secrets)
            assert [problem for problem in caught.value.problems if problem.startswith(f"{key}: ")], key


def topics_of_the_code() -> set[str]:
    """Return every topic, as the documents write them."""
    topics = Topics("B")
    of_account = {topics.of("A", leaf) for leaf in (*RETAINED, "reading", "refresh")}
    bridge = {topics.bridge_state, topics.bridge_info, topics.sync("<client id>")}
    return of_account | bridge | {discovery_topic("P", topics, "A")}


def topics_of_several_processes() -> set[str]:
    """Return the topics that exist only with several processes, as the documents write them."""
    topics = Topics("B", "bridge-<index>")
    return {topics.bridge_state, topics.bridge_info, topics.claims}


def test_the_topics_are_those_of_the_code() -> None:
    """The page of topics names each topic, and only topics that exist."""
    page = text_of("docs/topics.md")
    named = {name for name in codes_in(without_blocks(page)) if re.match("[BP]/", name)}
    keys = {f"B/A/{key}" for key in STATE_KEYS}
    assert named - {"B/A/<key of state>"} == topics_of_the_code() - keys | topics_of_several_processes()
    assert "B/A/<key of state>" in named
    reference = page.partition("## The bridge")[2].partition("### `state`")[0]
    tables = [codes_in(row[0])[0] for row in rows_of(reference)]
    assert set(tables) - {"B/A/<key of state>"} == topics_of_the_code() - keys - {
        "P/device/B_A/config",
        "B/bridge/sync/<client id>",
    }


def test_the_topics_at_a_glance_are_those_of_the_code() -> None:
    """The short table at the top of the page has only topics that exist, and all but the keys of the state."""
    rows = [row[0] for row in rows_of(section_of(text_of("docs/topics.md"), "## At a glance"))]
    named = {name.replace("anna", "A") for row in rows for name in codes_in(row)}
    known = {topic.removeprefix("B/") for topic in topics_of_the_code() if topic.startswith("B/")}
    keys = {f"A/{key}" for key in STATE_KEYS}
    assert named <= known
    assert known - named - keys == {"bridge/sync/<client id>"}


def test_the_payloads_are_those_of_the_code() -> None:
    """The page of topics describes each key of each payload, in order."""
    page = text_of("docs/topics.md")
    for kind, more in (("state", []), ("status", ["bridge"])):  # the last only with several processes
        described = [name for row in rows_of(section_of(page, f"### `{kind}`")) for name in codes_in(row[0])]
        assert described == [*payloads()[kind], *more]
    shared = status_message(Topics("dexcom2mqtt", "bridge-1"), "anna", Status())
    assert list(json.loads(shared.payload)) == described
    figures = section_of(text_of("docs/statistics.md"), "## The figures")
    described = [name for row in rows_of(figures) for name in codes_in(row[0])]
    assert described == list(payloads()["statistics"]["24h"])
    (info,) = [row[1] for row in rows_of(section_of(page, "## The bridge")) if row[0] == "`B/bridge/info`"]
    named = [name for name in codes_in(info) if name in payloads()["info"]]
    assert named == list(payloads()["info"])
    assert f"`schema_version` ({SCHEMA_VERSION})" in info


@pytest.mark.parametrize(
    ("kind", "key", "words"),
    [
        ("state", "trend", readings.TRENDS),
        ("state", "range", readings.RANGES),
        (
            "state",
            "direction",
            tuple(parse_record({"WT": "Date(1)", "Value": 100, "Trend": n}).direction for n in range(10)),
        ),
        ("state", "unit", ("mg/dL", "mmol/L")),
        ("status", "share", tuple(status.REMEDIES)),
    ],
)
def test_the_words_are_those_of_the_code(kind: str, key: str, words: tuple[str, ...]) -> None:
    """If a key has one of a few words, the page of topics lists all of them and no others."""
    rows = rows_of(section_of(text_of("docs/topics.md"), f"### `{kind}`"))
    (meaning,) = [row[2] for row in rows if row[0] == f"`{key}`"]
    assert codes_in(meaning)[: len(words)] == list(words)


# --- their form --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_lead_somewhere(document: str) -> None:
    """Each linked file and picture exists, and so does the heading that a link names."""
    for link in links_of(text_of(document)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / document).parent / path) if path else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.read_text(encoding="utf-8")), link


def test_every_page_can_be_reached() -> None:
    """Links from the README lead to each document."""
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = [link.partition("#")[0] for link in links_of(page.read_text(encoding="utf-8"))]
        waiting += [(page.parent / link).resolve() for link in links if link and "://" not in link]
    assert {ROOT / document for document in DOCUMENTS} <= seen


@pytest.mark.parametrize(("document", "most"), [("README.md", 199), ("CONTRIBUTING.md", 80)])
def test_documents_stay_short(document: str, most: int) -> None:
    """Reading the README takes five minutes, and CONTRIBUTING two."""
    assert len(text_of(document).splitlines()) <= most


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_page_has_one_title(document: str) -> None:
    """A document begins with its title, and has no other heading of that rank."""
    text = text_of(document)
    assert text.startswith("# ")
    assert len(re.findall(r"(?m)^# ", prose_of(text))) == 1


def test_the_disclaimer_comes_first() -> None:
    """The README says at its top, and again at its end, that nothing here is for treatment decisions."""
    text = text_of("README.md")
    assert "not for treatment decisions" in " ".join(text.splitlines()[:12]).lower()
    assert "treatment" in section_of(text, "## Disclaimer and license")


UNPUBLISHED: Final = {
    "a place of the repository": r"(github|gitlab|codeberg|bitbucket|sr\.ht)[\w.]*[/:]\S*dexcom2mqtt",
    "a badge": r"shields\.io|badge(n\.net|\.fury|\.svg)",
    "an image": r"(ghcr|docker|quay)\.io/\S*dexcom2mqtt|(docker|podman) pull \S*dexcom2mqtt",
    "a package": r"pypi\.org/\S*dexcom2mqtt|(pip|pipx) install (--\S+ )*['\"]?dexcom2mqtt(?!\\?\[demo)",
}


def test_the_table_of_modules_is_that_of_the_code() -> None:
    """Each folder of the package has a row, and each module named in a row exists."""
    package = Path(readings.__file__).parent
    page = section_of(text_of("docs/how-it-works.md"), "# How it works")
    rows = {folder: codes_in(text) for folder, text in rows_of(page.partition("## ")[0]) if folder != "folder"}
    shown = {folder.strip("`/"): [name for name in names if name.isidentifier()] for folder, names in rows.items()}
    missing = [
        f"{folder}/{name}"
        for folder, names in shown.items()
        for name in names
        if not (package / (folder if folder != "top level" else "") / f"{name}.py").exists()
    ]
    assert missing == []
    folders = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    assert shown.keys() == folders - {"demo"} | {"top level"}


def test_the_pythons_that_the_package_claims_are_those_that_ci_runs() -> None:
    """The classifiers name the Pythons that CI runs, and the oldest of them is the required one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert claimed == sorted(set(PYTHON_OF.values()))
    assert project["requires-python"] == f">={claimed[0]}"
    parts = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert [line for line in parts if "tests/e2e/test_debian.py" in line] == [
        "part debian12 1200 tests/e2e/test_debian.py -k bookworm",
        "part debian13 1200 tests/e2e/test_debian.py -k trixie",
        "part python3.14 1200 tests/e2e/test_debian.py -k 3_14",
    ]


@pytest.mark.parametrize("what", UNPUBLISHED)
def test_nothing_is_named_that_does_not_exist(what: str) -> None:
    """Nothing is published yet: no file names a place where it could be found."""
    named = re.compile(UNPUBLISHED[what])
    assert [path.name for path in files_of_the_project() if named.search(path.read_text("utf-8"))] == []


def test_finds_each_unpublished_place() -> None:
    """Each kind of place is found in a text."""
    found = {
        "a place of the repository": "git clone https://github" + ".com/someone/dexcom2mqtt",
        "a badge": "https://img.shields" + ".io/x",
        "an image": "docker " + "pull someone/dexcom2mqtt",
        "a package": "pip " + "install --user dexcom2mqtt",
    }
    for what, text in found.items():
        assert re.search(UNPUBLISHED[what], text)
    assert not [what for what, pattern in UNPUBLISHED.items() if re.search(pattern, "pip install '.[demo]'")]
