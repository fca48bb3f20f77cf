"""Pictures of the comparison page's views: ``python docs/screenshots.py RUNS_DIR OUT_DIR``.

RUNS_DIR is a folder of runs (for example ``runs``); without arguments, synthetic records of tests/records.py are drawn
into docs/images. Needs Playwright for Python and a Chromium (CL_BENCH_CHROMIUM names it where it is not on the path).
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import sync_playwright

from cl_bench.compare.dashboard import render
from cl_bench.records.results import load_all

# name -> (state of the page, width in pixels, greatest height or None for the whole page)
PICTURES: dict[str, tuple[dict[str, str], int, int | None]] = {
    "leaderboard": ({"view": "leaderboard"}, 1280, None),
    "matrices": ({"view": "matrices"}, 1280, None),
    "matrices_difference": ({"view": "matrices", "ref": "first"}, 1280, None),
    "forgetting": ({"view": "forgetting"}, 1280, 1500),
    "anytime": ({"view": "anytime"}, 1280, None),
    "stream": ({"view": "stream"}, 1280, None),
    "balance": ({"view": "balance"}, 1280, None),
    "cost": ({"view": "cost"}, 1280, None),
    "statistics": ({"view": "statistics"}, 1280, None),
    "runs": ({"view": "runs"}, 1280, 1000),
    "run": ({"view": "runs", "run": "first"}, 1280, 1900),
    "duel": ({"view": "duel", "group": "group"}, 1280, 1900),
    "evidence": ({"view": "runs", "group": "group", "of": "first", "what": "cell:4,0"}, 1280, None),
    "differences": ({"view": "differences"}, 1280, None),
    "dark": ({"view": "forgetting", "theme": "dark"}, 1280, 1500),
    "phone": ({"view": "leaderboard"}, 390, 844),
}


def main(runs: Path | None, out: Path) -> None:
    """Draw every picture of ``runs`` (None: synthetic records) into ``out``."""
    chromium = os.environ.get("CL_BENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        if runs is None:
            sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
            import records

            runs = records.write_suite(Path(folder) / "runs", seeds=6)
        found = load_all(runs)
        address = render(found, Path(folder) / "page.html", title="cl-bench quickstart", by="fingerprint").as_uri()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(reduced_motion="reduce").new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        run = next((r for r in found if r.kind == "learn" and r.status == "finished"), found[0])
        group = page.evaluate("keyOf(DATA.groups.find(g => g.learn) || DATA.groups[0])")
        first = {"run": run.id, "ref": run.method, "of": run.method, "group": group}
        for name, (state, width, height) in PICTURES.items():
            page.set_viewport_size({"width": width, "height": height or 800})
            chosen = {key: first[key] if value in ("first", "group") else value for key, value in state.items()}
            page.evaluate("hash => { location.hash = hash; readState(); draw(); scrollTo(0, 0); }", urlencode(chosen))
            page.evaluate("flushCharts(true)")
            page.evaluate("() => Promise.all([...document.querySelectorAll('.plot')].map(d => d.drawn))")
            page.wait_for_timeout(300)
            picture = Image.open(io.BytesIO(page.screenshot(full_page=height is None))).convert("RGB")
            # A third of the bytes; this way of choosing 256 colours keeps rare ones, those of thin lines and marks.
            small = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            small.save(out / f"{name}.png", optimize=True)
            print(out / f"{name}.png", flush=True)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) not in (1, 3):
        sys.exit("usage: python docs/screenshots.py [RUNS_DIR OUT_DIR]")
    given = len(sys.argv) == 3
    main(Path(sys.argv[1]) if given else None, Path(sys.argv[2]) if given else Path(__file__).parent / "images")
