"""Fixtures: a real broker, and the simulated Share service over real HTTP."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.faults import Page
from tests.support.processes import MOSQUITTO, Mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


settings.register_profile("ci", max_examples=300, deadline=None, database=None)
settings.register_profile("long", max_examples=1000, deadline=None, database=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that write pages again."""
    parser.addoption("--write-faults", action="store_true", help="write docs/faults.md from what is measured")
    parser.addoption("--write-configuration", action="store_true", help="write docs/configuration.md from the schema")


def pytest_configure(config: pytest.Config) -> None:
    """Compare the page about faults with the measured results, in the process that gets all reports."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as if a shell had started this in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # otherwise no tested program would receive it
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Page(write=config.getoption("--write-faults")))


@pytest.hookimpl(trylast=True)  # the plugin of Hypothesis marks its tests first
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run no property again, even if all else is: what Hypothesis found once, it may not find a second time."""
    for item in items:
        if item.get_closest_marker("hypothesis"):
            item.add_marker(pytest.mark.flaky(reruns=0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print why tests were skipped, one line for each reason instead of each test."""
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} tests: {reason}", yellow=True)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """End whatever a test started."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start_mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Start a mosquitto with the given lines of configuration; it ends with the test."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed; install the package mosquitto to run them")
    started: list[Mosquitto] = []

    def start(*settings: str, **options: bool) -> Mosquitto:
        folder = tmp_path / f"mosquitto{len(started)}"
        folder.mkdir()
        started.append(Mosquitto(folder, *settings, **options))
        return started[-1]

    yield start
    for mosquitto in started:
        mosquitto.kill()


@pytest.fixture
def mosquitto(start_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    """Return a running broker that accepts every client."""
    return start_mosquitto()
