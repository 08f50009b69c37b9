"""The page of the real daemon in a real browser: what it shows, what it removes in time, and for whom it works.

Chromium would not notice what older browsers lack, so linters check the page for Safari 12 and Chrome 70.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.processes import ROOT, Mosquitto, eventually
from tests.support.web import BEN, Household, get, refresh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack

    from playwright.sync_api import Browser, Page, Route

pytestmark = [pytest.mark.e2e]

CHROMIUM: Final = shutil.which("chromium")
TOOLS: Final = ROOT / ".page-tools"
PAGE: Final = ROOT / "dexcom2mqtt" / "web" / "page.html"
TOKEN: Final = "Geheim42"
SCREENS: Final = {
    "phone": (360, 740, "dark"),
    "small phone": (320, 568, "light"),
    "wall": (1024, 768, "dark"),
    "desk": (1280, 800, "light"),
    "4k": (3840, 2160, "dark"),
}
CLOCKS: Final = """
(() => {
    const wall = Date.now.bind(Date), steady = performance.now.bind(performance);
    window.turned = { wall: 0, steady: 0 };
    Date.now = () => wall() + window.turned.wall;
    performance.now = () => steady() + window.turned.steady;
})()
"""
"""Lets a test change the browser's two clocks, as when a tablet sleeps or a time server corrects it."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return Debian's Chromium."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed; install the package chromium to run them")
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415  # an extra, and large
    except ImportError:
        pytest.skip("playwright is not installed; install the extra page to run them")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def home(stack: ExitStack, mosquitto: Mosquitto, tmp_path: Path) -> Household:
    """Return Anna and Ben, the broker, and a daemon to start."""
    return Household(stack, mosquitto, tmp_path)


@pytest.fixture
def visit(browser: Browser, stack: ExitStack) -> Callable[..., Page]:
    """Open a page in a browser without history; whatever it complains about fails the test."""

    def visit(url: str, size: tuple[int, int] = (1024, 768), script: str = "", **options: Any) -> Page:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        stack.callback(context.close)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(error))  # noqa: PLW0108  # it accepts no builtin
        page.on("console", lambda message: complaints.append(message.text) if "Refused" in message.text else None)
        page.goto(url)
        return page

    complaints: list[object] = []
    stack.callback(lambda: _must_be_empty(complaints))
    return visit


def _must_be_empty(complaints: list[object]) -> None:
    assert complaints == []


def text(page: Page, what: str, key: str = "anna") -> str:
    """Return a text of an account's card: its number, word, delta, age, problem, and so on."""
    found = page.locator(f"section[aria-labelledby=name-{key}] .{what}")
    return found.inner_text() if found.count() and found.is_visible() else ""


def shows(page: Page, number: str, key: str = "anna") -> bool:
    return text(page, "number", key) == number


def wait_until(page: Page, number: str, seconds: float) -> float:
    """Wait until the page shows that number; return the time, or fail after so many seconds."""
    until = time.monotonic() + seconds
    while not shows(page, number):
        assert time.monotonic() < until, text(page, "number")
        page.wait_for_timeout(50)
    return time.monotonic()


NOTHING: Final = "\u2014"


# --- contents ----------------------------------------------------------------------------------------------


def test_a_value_appears_and_changes_within_seconds(home: Household, visit: Callable[..., Page]) -> None:
    """What the broker gets is on the page within 5 s, and is spoken for those who cannot see it."""
    home.add(310, 100)
    subscriber = home.subscribe()
    port, _ = home.serve()
    page = visit(f"http://127.0.0.1:{port}/")
    wait_until(page, "100", 10)
    assert (text(page, "word"), text(page, "age")) == ("in range", "5 min ago")
    spoken = page.locator("[aria-live=polite]")
    assert spoken.inner_text().startswith("Anna: 100 mg/dL, steady, in range")
    time.sleep(31)  # the time between two refreshes
    home.add(0, 64, "SingleDown")
    refresh(subscriber)
    there = subscriber.wait_for("dexcom2mqtt/anna/value", "64").at
    assert wait_until(page, "64", 10) - there < 5
    assert [text(page, each) for each in ("arrow", "word", "delta")] == ["↓", "low", "\u221236 mg/dL"]
    assert text(page, "age") == "just now"
    assert spoken.inner_text() == "Anna: 64 mg/dL, falling, low"
    assert page.title() == "Glucose"


@pytest.mark.parametrize(
    ("value", "number", "word"),
    [
        (39, "LOW", "very low"),
        (69, "69", "low"),
        (181, "181", "high"),
        (251, "251", "very high"),
        (401, "HIGH", "very high"),
    ],
)
def test_a_range_is_a_word_and_a_colour(
    home: Household, visit: Callable[..., Page], value: int, number: str, word: str
) -> None:
    """People who cannot distinguish colours read a word; a value beyond the sensor's range is not a number."""
    home.add(10, value)
    port, _ = home.serve()
    page = visit(f"http://127.0.0.1:{port}/?account=anna")
    wait_until(page, number, 10)
    assert text(page, "word") == word
    colours = page.evaluate("() => ['.number', 'h2'].map(e => getComputedStyle(document.querySelector(e)).color)")
    assert colours[0] != colours[1]
    assert page.title() == "Anna"


def test_several_people_and_one(home: Household, visit: Callable[..., Page]) -> None:
    """All are side by side; ?account= and an account's own address show one; an unknown one is reported."""
    home.add(10, 100)
    home.add(10, 200, who=BEN)
    port, _ = home.serve()
    page = visit(f"http://127.0.0.1:{port}/")
    wait_until(page, "100", 10)
    assert shows(page, "200", "ben")
    boxes = [page.locator(f"section[aria-labelledby=name-{key}]").bounding_box() for key in ("anna", "ben")]
    assert boxes[0]
    assert boxes[1]
    assert boxes[0]["y"] == boxes[1]["y"]
    page.get_by_role("link", name="Ben").click()
    eventually(lambda: page.locator("section").count() == 1)
    assert page.url.endswith("/?account=ben")
    for url in (f"http://127.0.0.1:{port}/ben", f"http://127.0.0.1:{port}/ben/"):
        page = visit(url)
        eventually(lambda page=page: shows(page, "200", "ben"))  # type: ignore[misc]  # each page in turn
        assert page.locator("section").count() == 1
    page = visit(f"http://127.0.0.1:{port}/?account=cleo")
    eventually(
        lambda: "There is no account cleo here. The accounts are: anna, ben." in page.locator("#banner").inner_text()
    )


def test_accounts_come_and_go(home: Household, visit: Callable[..., Page]) -> None:
    """An open page shows an account that arrives in its place, and drops one that leaves, in what is spoken, too."""
    home.add(10, 100)
    home.add(10, 200, who=BEN)
    port, _ = home.serve()
    here: set[str] = set()

    def only_those_here(route: Route) -> None:
        answer = route.fetch(headers={**route.request.headers, "if-none-match": ""})
        found = answer.json()
        found["accounts"] = [each for each in found["accounts"] if each["key"] in here]
        gone = "/anna/" in route.request.url and not found["accounts"]
        route.fulfill(response=answer, status=404 if gone else 200, json=found)

    page, annas = visit("about:blank"), visit("about:blank")
    nobody = "This process serves no account at the moment."
    for each, path in ((page, ""), (annas, "anna/")):
        each.route("**/api/accounts", only_those_here)
        each.goto(f"http://127.0.0.1:{port}/{path}")
        each.get_by_text(nobody).wait_for()
    here.add("ben")
    page.get_by_role("link", name="Ben").wait_for()
    assert not page.locator("#banner").is_visible()
    here.add("anna")
    page.get_by_role("link", name="Anna").wait_for()
    assert page.locator("h2").all_inner_texts() == ["Anna", "Ben"]
    annas.get_by_role("link", name="Anna").wait_for()
    here.clear()
    for each in (page, annas):
        each.get_by_text(nobody).wait_for()
        assert each.locator("section").count() == 0
        assert "Anna: no longer shown here" in each.locator("[aria-live=polite]").inner_text()
        assert "100" not in each.inner_text("body")
    here.add("ben")
    page.get_by_role("link", name="Ben").wait_for()
    eventually(lambda: page.locator("[aria-live=polite]").inner_text().startswith("Ben: 200 mg/dL"))


def test_the_day_is_a_chart_with_gaps(home: Household, visit: Callable[..., Page]) -> None:
    """Bands for the ranges, a line that breaks if readings are missing, and the time in each range in words."""
    for minutes in range(0, 300, 5):
        if not 100 <= minutes <= 160:
            home.add(minutes * 60 + 20, 200 if minutes > 200 else 100)
    port, _ = home.serve()
    page = visit(f"http://127.0.0.1:{port}/anna/")
    wait_until(page, "100", 10)
    assert page.locator(".chart rect").count() == 5
    assert str(page.locator(".curve").get_attribute("d")).count("M") == 2
    assert text(page, "shares") == "24 hours: in range 59.6 %, high 40.4 %"
    name = page.locator(".chart svg").get_attribute("aria-label")
    assert name == "The last 24 hours: from 100 to 200 mg/dL"


def test_problems_are_shown(home: Household, visit: Callable[..., Page]) -> None:
    """Without a reading the page says so, and what to do, in the words of the status."""
    port, _ = home.serve()
    page = visit(f"http://127.0.0.1:{port}/?account=anna")
    eventually(lambda: "in the Dexcom app, sharing must be on" in text(page, "wrong"))
    assert text(page, "word") == "no current value"
    assert shows(page, NOTHING)


def test_a_token_is_passed_on(home: Household, visit: Callable[..., Page]) -> None:
    """With the token in its address the page works, links keep it, and the address of no request contains it."""
    home.add(10, 100)
    port, _ = home.serve(token=TOKEN)
    page = visit(f"http://127.0.0.1:{port}/?token={TOKEN}")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    wait_until(page, "100", 10)
    page.wait_for_timeout(5000)
    assert set(asked) == {f"http://127.0.0.1:{port}/api/accounts"}
    assert page.get_by_role("link", name="Ben").get_attribute("href") == f"?token={TOKEN}&account=ben"
    assert "needs a token" in visit(f"http://127.0.0.1:{port}/").inner_text("body")


def test_it_works_below_a_path(home: Household, visit: Callable[..., Page]) -> None:
    """A proxy may serve all below a path: the page loads everything from there, and nothing from elsewhere."""
    home.add(10, 100)
    port, _ = home.serve()
    asked: list[str] = []
    page = visit("about:blank")

    def pass_on(route: Route) -> None:
        asked.append(route.request.url)
        url = route.request.url.replace("http://127.0.0.1/in/front", f"http://127.0.0.1:{port}")
        route.fulfill(response=route.fetch(url=url))

    page.route("**/*", pass_on)
    page.goto("http://127.0.0.1/in/front/anna/")
    wait_until(page, "100", 10)
    assert {re.sub(r"\?.*", "", url) for url in asked} == {
        f"http://127.0.0.1/in/front/anna/{leaf}" for leaf in ("", "api/accounts")
    }


def test_an_answer_without_the_daemons_clock_does_not_count(home: Household, visit: Callable[..., Page]) -> None:
    """If something on the way removes the clock, nobody knows the age of a value, so the page shows none."""
    home.add(10, 100)
    port, _ = home.serve()
    page = visit("about:blank")

    def take_out(route: Route) -> None:
        answer = route.fetch()
        headers = {name: value for name, value in answer.headers.items() if name.lower() != "daemon-clock"}
        route.fulfill(response=answer, headers=headers)

    page.route("**/api/accounts", take_out)
    page.goto(f"http://127.0.0.1:{port}/")
    page.locator("#banner").wait_for(timeout=40_000)
    assert "100" not in page.inner_text("body")


# --- stale values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["frozen", "killed", "offline", "well"])
def test_a_stale_value_disappears(home: Household, visit: Callable[..., Page], what: str) -> None:
    """If the daemon is frozen or dead, or the network down, a value disappears 15 s after it stops being current."""
    home.add(900 - 25, 100)
    port, process = home.serve()
    page = visit(f"http://127.0.0.1:{port}/?account=anna")
    wait_until(page, "100", 10)
    answer = get(port, "/anna/api/accounts").json
    gone = time.monotonic() + (answer["accounts"][0]["fresh_until"] - answer["now"]) / 1000
    if what == "frozen":
        process.signal(signal.SIGSTOP)
    elif what == "killed":
        process.kill()
    elif what == "offline":
        page.context.set_offline(True)
    try:
        assert -2 < wait_until(page, NOTHING, 60) - gone < 5
        assert text(page, "word") == "no current value"
        assert text(page, "arrow") == text(page, "delta") == ""
        assert text(page, "age") == "last reading 15 min ago"
        assert "100" not in page.locator("section .reading").inner_text()
        if what != "well":
            eventually(lambda: "No answer from dexcom2mqtt since" in page.locator("#banner").inner_text())
    finally:
        if what == "frozen":
            process.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("turned", "stays"),
    [
        ({"wall": 3600e3, "steady": 0.0}, False),  # it slept for an hour, and so did the monotonic clock
        ({"wall": 3600e3, "steady": 3600e3}, False),  # it slept for an hour, and the monotonic clock did not
        ({"wall": -3600e3, "steady": 0.0}, False),  # its clock was set back, and it may have slept
        ({"wall": 1000.0, "steady": 0.0}, True),  # its clock was corrected a little
        ({"wall": -1000.0, "steady": 0.0}, True),
        ({"wall": 60e3, "steady": 60e3}, True),  # it slept for a minute
    ],
)
def test_a_tablet_that_slept(
    home: Household, visit: Callable[..., Page], turned: dict[str, float], *, stays: bool
) -> None:
    """Until it has heard from the daemon again, it shows nothing that may be old; then it shows the current value."""
    home.add(10, 100)
    port, _ = home.serve()
    page = visit(f"http://127.0.0.1:{port}/?account=anna", script=CLOCKS)
    wait_until(page, "100", 10)
    page.context.set_offline(True)
    page.wait_for_timeout(500)
    page.evaluate("turned => { window.turned = turned; window.dispatchEvent(new Event('focus')); }", turned)
    page.wait_for_timeout(1500)
    assert shows(page, "100" if stays else NOTHING)
    page.context.set_offline(False)
    wait_until(page, "100", 20)


def test_a_daemon_that_comes_back(home: Household, visit: Callable[..., Page]) -> None:
    """The page finds it again by itself, and does not mistake another process's answer for a known one."""
    home.add(400, 100)
    home.add(100, 110)
    port, process = home.serve()
    page = visit(f"http://127.0.0.1:{port}/?account=anna")
    wait_until(page, "110", 10)
    process.kill()
    home.add(0, 120)
    home.serve(port=port)
    wait_until(page, "120", 40)


# --- browsers and readers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("well", [True, False], ids=["well", "old"])
def test_it_fits_and_everybody_can_read_it(
    home: Household, visit: Callable[..., Page], screen: str, tmp_path: Path, *, well: bool
) -> None:
    """From 320 pixels to 4k, light and dark: everything fits, the value is large, and axe-core finds no fault."""
    width, height, scheme = SCREENS[screen]
    axe = TOOLS / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.exists():
        pytest.skip("axe-core is not installed; .ci/run puts it into .page-tools")
    for minutes in range(0, 1400, 5):
        home.add(minutes * 60 + (20 if well else 1000), 100 + minutes % 130, "FortyFiveUp")
    home.add(15, 62, who=BEN)
    port, _ = home.serve()
    page = visit(f"http://127.0.0.1:{port}/", (width, height), color_scheme=scheme, bypass_csp=True)
    wait_until(page, "100" if well else NOTHING, 15)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    number = page.locator(".number").first.bounding_box()
    assert number
    assert number["height"] > min(width, height) * 0.18
    page.screenshot(path=str(tmp_path / "page.png"))
    if not well:  # with all possible problems at once
        page.context.set_offline(True)
        page.locator("#banner").wait_for(timeout=40_000)
    page.add_script_tag(path=str(axe))
    found = page.evaluate("() => axe.run({ resultTypes: ['violations'] })")
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]] == []
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Anna"


def test_it_is_small_and_complete() -> None:
    """One file below 60 kB, with one script and one style, and no address of another site."""
    page = PAGE.read_text(encoding="utf-8")
    assert len(page.encode()) < 60_000
    assert re.findall(r"(?:https?:)?//[a-z][\w.]+", page.replace("http://www.w3.org/2000/svg", "")) == []
    assert not re.search(r"\b(?:src|href)=\"/", page)
    assert not re.search(r" (?:on\w+|style)=\"", page)


def test_old_browsers_support_everything_used() -> None:
    """Script and style use nothing that Safari 12 or Chrome 70 lacks."""
    page = PAGE.read_text(encoding="utf-8")
    (script,), (style,) = (re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("script", "style"))
    assert lint("page.js", script) == ""
    assert lint("page.css", style) == ""


@pytest.mark.parametrize(
    ("name", "line", "word"),
    [
        ("x.js", "var a = {}; a?.b;", "Unexpected token"),
        ("x.js", "var a = 1; a ?? 2;", "Unexpected token"),
        ("x.js", "new ResizeObserver(function () {});", "ResizeObserver is not supported"),
        ("x.js", "[1].flat();", "ES2019"),
        ("x.js", "undeclared();", "is not defined"),
        ("x.css", "a { display: flex; gap: 1px; }", "flexbox-gap"),
        ("x.css", "a { width: clamp(1px, 2px, 3px); }", "css-math-functions"),
        ("x.css", "a { aspect-ratio: 1; }", "aspect-ratio"),
    ],
)
def test_the_linters_find_features_that_old_browsers_lack(name: str, line: str, word: str) -> None:
    """The linters find such faults."""
    assert word in lint(name, f"{line}\n")


ESLINT: Final = """
import compat from "eslint-plugin-compat";
import es from "eslint-plugin-es-x";
const globals = "window document location navigator performance XMLHttpRequest setTimeout clearTimeout setInterval"
    + " getComputedStyle ResizeObserver";
export default [compat.configs["flat/recommended"], es.configs["flat/restrict-to-es2018"], {
    languageOptions: {
        ecmaVersion: 2018, sourceType: "script",
        globals: Object.fromEntries(globals.split(" ").map(name => [name, "readonly"])),
    },
    // Asked for before it is used.
    settings: { browsers: ["safari 12", "ios_saf 12.0-12.1", "chrome 70"], polyfills: ["navigator.wakeLock"] },
    rules: { "no-undef": "error", "no-unused-vars": ["error", { caughtErrors: "none" }], eqeqeq: "error" },
}];
"""
STYLELINT: Final = {
    "plugins": ["stylelint-no-unsupported-browser-features"],
    "rules": {
        "plugin/no-unsupported-browser-features": [
            True,
            {
                "browsers": ["safari 12", "ios_saf 12.0-12.1", "chrome 70"],
                # Without the first it stays dark; it uses only those parts of the second that all browsers have.
                "ignore": ["prefers-color-scheme", "css-overflow"],
            },
        ],
        "property-disallowed-list": ["aspect-ratio", "inset"],
    },
}


def lint(name: str, content: str) -> str:
    """Return what the linter for such a file finds in it."""
    if not (TOOLS / "node_modules" / "eslint").exists():
        pytest.skip("eslint is not installed; .ci/run puts it into .page-tools")
    command = ["eslint", name] if name.endswith(".js") else ["stylelint", "--config", "stylelint.json", name]
    with TemporaryDirectory(dir=TOOLS) as path:  # so that they find their plug-ins
        folder = Path(path)
        (folder / name).write_text(content, encoding="utf-8")
        (folder / "eslint.config.mjs").write_text(ESLINT, encoding="utf-8")
        (folder / "stylelint.json").write_text(json.dumps(STYLELINT), encoding="utf-8")
        done = subprocess.run(
            [TOOLS / "node_modules" / ".bin" / command[0], *command[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    return done.stdout + done.stderr
