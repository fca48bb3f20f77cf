"""A browser, a suite of records and their page: what the tests of the page share."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from urllib.parse import urlencode

import pytest
import records

from cl_bench.compare.dashboard import render
from cl_bench.records.results import load_all

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CL_BENCH_CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
IN_A_BROWSER = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
VIEWS = ("leaderboard", "matrices", "forgetting", "anytime", "stream", "balance", "cost", "statistics", "duel", "sweep", "runs",
         "differences")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The page of a finished suite, as a file's address."""
    folder = tmp_path_factory.mktemp("suite")
    records.write_suite(folder / "runs", seeds=3)
    return render(load_all(folder / "runs"), folder / "page.html", title="Suite").as_uri()


class Tab:
    """A browser's page and all that its console, its scripts and the network said since the last look."""

    def __init__(self, browser) -> None:
        self.page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        self.page.set_default_timeout(120_000)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.said.append(request.url)
                     if re.match(r"https?://(?!127\.)", request.url) else None)
        self.page.on("dialog", lambda dialog: (self.said.append("dialog: " + dialog.message), dialog.dismiss()))


@pytest.fixture(scope="module")
def tab(browser, suite):
    made = Tab(browser)
    made.page.goto(suite)
    yield made
    made.page.context.close()


@pytest.fixture
def page(tab):
    """The suite's page in its first state; the test fails where the console said anything, or a script threw."""
    tab.said.clear()
    tab.page.set_viewport_size({"width": 1280, "height": 900})
    show(tab.page, "leaderboard")
    yield tab.page
    assert tab.said == []


@pytest.fixture
def other(browser):
    """A page of its own, for tests that load other records."""
    made = Tab(browser)
    yield made.page
    made.page.context.close()
    assert made.said == []


def show(page, view: str, **state: str) -> None:
    """Go to a view of the loaded page, as by a link."""
    page.evaluate("hash => { location.hash = hash; readState(); draw(); }", urlencode({"view": view, **state}))
    page.wait_for_selector("main > *")


def open_page(page, runs: Path, **state: str) -> None:
    page.goto(render(load_all(runs), runs.parent / "page.html").as_uri() + "#" + urlencode(state))


def column(page, metric: str, table: str) -> list[str]:
    return page.locator(f'table[data-group="{table}"] td[data-metric="{metric}"]').all_inner_texts()


def methods(page, table: str) -> list[str]:
    return page.eval_on_selector_all(f'table[data-group="{table}"] tbody tr', "rows => rows.map(r => r.dataset.method)")
