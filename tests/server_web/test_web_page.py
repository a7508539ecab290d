"""The page: nothing of it comes from elsewhere, and in a real browser it shows the fleet, lives, and trusts no name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sanderling.server.service import Service
from sanderling.server.web.api import STATIC
from tests.support.browser import Browser, chromium
from tests.support.web import Api, add_delta, add_device, add_event, add_release, add_report, serving

HOSTILE = '<img src=x onerror="document.title=1">&lt;b&gt;'
READY = "document.querySelector('#live').dataset.state === 'live' && !!document.querySelector('#devices-body tr')"


@pytest.fixture(scope="module")
def story_address(story: Service) -> Iterator[str]:
    """The address of a server with a story."""
    with serving(story) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of this file."""
    with chromium() as found:
        yield found


def test_all_files_are_served_and_linked(api: Api) -> None:
    page = api.ask("GET", "/", token=None)
    assert page.headers["content-type"].startswith("text/html")
    for path in sorted(STATIC.iterdir()):
        answer = api.ask("GET", f"/{path.name}", token=None)
        assert answer.status_code == 200 and answer.content == path.read_bytes()
    modules = {name for path in STATIC.glob("*.js") for name in re.findall(r'from "\./(\S+)"', path.read_text("utf-8"))}
    assert modules | {"app.js"} == {path.name for path in STATIC.glob("*.js")}


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere_or_is_parsed_as_markup(path: Path) -> None:
    text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//[a-z]+\.[a-z]", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|javascript:", text)


def test_the_page_shows_the_fleet(story_address: str, browser: Browser) -> None:
    browser.look_as(1360, 900)
    browser.open(story_address)
    browser.wait_for(READY)
    browser.wait_for("document.querySelectorAll('#accuracy-chart .line').length === 6")
    text = browser.evaluate("document.body.innerText")
    for expected in ("4 of 5", "v4", "points", "of 128 MiB", "wrist-9", "learned by the fleet", "refused wrist v4"):
        assert expected in text
    assert browser.evaluate("document.querySelectorAll('#devices-body tr').length") == 5
    assert browser.evaluate("document.querySelectorAll('#accuracy-chart .mark').length") == 3
    assert "fleet mean: 9" in browser.evaluate("document.querySelector('#accuracy-chart svg').ariaLabel")
    # each header has its column, and a bar says its figures to those who do not see it
    assert browser.evaluate("document.querySelectorAll('#devices-head th[scope=col]').length") == 11
    assert browser.evaluate("Number(document.querySelector('#devices-body .bar').ariaValueNow)") > 90 * 2**20
    browser.evaluate("document.querySelector('#releases summary').click()")
    assert "Between 0.5 released" in browser.evaluate("document.querySelector('.chosen').innerText")
    assert browser.messages == []


@pytest.mark.parametrize(("width", "phone"), [(1360, False), (800, False), (360, True)])
def test_no_width_needs_sideways_scrolling(story_address: str, browser: Browser, width: int, phone: bool) -> None:
    browser.look_as(width, 800, phone=phone)
    browser.open(story_address)
    browser.wait_for(READY)
    browser.wait_for("document.querySelector('#releases summary') !== null")
    browser.evaluate("document.querySelector('#releases summary').click()")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast_in_both_schemes(story_address: str, browser: Browser, dark: bool) -> None:
    def luminance(color: str) -> float:
        parts = [int(number) / 255 for number in re.findall(r"\d+", color)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    browser.look_as(1360, 900, dark=dark)
    browser.open(story_address)
    browser.wait_for(READY)
    found = browser.evaluate(
        """[...document.querySelectorAll('h1, h2, p, td, th, small, .tag, .up, button, time, .events p')]
        .filter((node) => node.offsetParent && node.innerText.trim()).map((node) => {
            let ground = node;
            while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
            const colors = [getComputedStyle(node).color, getComputedStyle(ground).backgroundColor];
            return [node.innerText.slice(0, 40), ...colors];
        })"""
    )
    assert len(found) > 80
    for text, front, back in found:
        light, low = sorted((luminance(front), luminance(back)), reverse=True)
        assert (light + 0.05) / (low + 0.05) >= 4.5, (text, front, back)


def test_it_lives_and_keeps_what_the_reader_opened(service: Service, browser: Browser) -> None:
    with serving(service) as address:
        browser.look_as(1360, 900)
        browser.open(address)
        browser.wait_for("document.querySelector('#live').dataset.state === 'live'")
        assert browser.wait_for("!document.querySelector('#devices-empty').hidden")
        add_release(service)
        add_device(service, "wrist-5")
        add_report(service, "wrist-5")
        browser.wait_for("document.querySelector('#devices-body tr')?.innerText.includes('v1')")
        browser.evaluate("document.querySelector('#releases summary').click()")
        browser.evaluate("document.querySelector('.device').focus()")
        add_release(service, source="merge")
        add_report(service, "wrist-5", version=2, held_out_fleet={"value": 0.875, "count": 40})
        browser.wait_for("document.querySelector('#devices-body tr').innerText.includes('87.5 %')")
        browser.wait_for("document.querySelectorAll('#releases details').length === 2")
        assert browser.evaluate("document.activeElement.innerText") == "wrist-5"
        opened = browser.evaluate("[...document.querySelectorAll('#releases details')].map((d) => d.open)")
        assert opened == [False, True]
        browser.evaluate("document.querySelector('.device').click()")
        browser.wait_for("document.querySelector('#detail').innerText.includes('Resident memory by process')")
        assert "Supervisor" in browser.evaluate("document.querySelector('#detail').innerText")
        service.broker.update(connected=False, reason="connection refused")
        service.told("broker", "")
        browser.wait_for("document.querySelector('#notice').innerText.includes('connection refused')")
        assert browser.messages == []


def test_a_server_that_goes_is_noticed(service: Service, browser: Browser) -> None:
    with serving(service) as address:
        browser.open(address)
        browser.wait_for("document.querySelector('#live').dataset.state === 'live'")
    browser.wait_for("document.querySelector('#live').dataset.state === 'lost'")
    browser.messages.clear()  # Chromium itself logs the refused connections


def test_hostile_text_stays_text(service: Service, browser: Browser) -> None:
    # such names do not pass ingest; the page must not depend on that
    add_release(service, labels=[HOSTILE], notes={HOSTILE: HOSTILE}, lineage={
        "devices": [HOSTILE], "candidates": {HOSTILE: {"accuracy": 0.5}}, HOSTILE: HOSTILE,
    }, metrics={"candidate": HOSTILE, "not_trainable_because": HOSTILE})  # fmt: skip
    add_device(service, HOSTILE)
    add_report(service, HOSTILE, model=HOSTILE, serving=HOSTILE, resident={HOSTILE: 5})
    add_delta(service, HOSTILE, 1)
    add_event(service, HOSTILE, 1, "rejected", HOSTILE)
    with serving(service) as address:
        browser.look_as(1360, 900)
        browser.open(address)
        browser.wait_for(READY)
        browser.wait_for(
            "document.querySelector('#accuracy-chart svg') && document.querySelector('#events li') !== null"
        )
        browser.evaluate("document.querySelector('#releases summary').click()")
        browser.evaluate("document.querySelector('.device').click()")
        browser.wait_for("document.querySelector('#detail .facts') !== null")
        assert browser.evaluate("document.querySelector('.device').innerText") == HOSTILE
        assert browser.evaluate("[...document.images].length") == 1
        assert browser.evaluate("document.querySelectorAll('[onerror], main b > *').length") == 0
        assert browser.evaluate("document.title") == "wrists – Sanderling"
        assert browser.messages == []
