"""The page in a real browser: from numbers to runs, two methods side by side, settings, files that are saved, visits."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import records
from browser_pages import (  # noqa: F401 - fixtures
    IN_A_BROWSER,
    Tab,
    browser,
    open_page,
    other,
    page,
    show,
    suite,
    tab,
)

from cl_bench.compare import exports, sheets
from cl_bench.compare.comparison import compare
from cl_bench.compare.verdict import command_of
from cl_bench.numbers.matrix import AccuracyMatrix
from cl_bench.numbers.statistics import t_interval
from cl_bench.records.results import load_all

pytestmark = IN_A_BROWSER
TABLE = "split_digits · tiny_vit"


@pytest.fixture(scope="module")
def made(suite):
    return compare(load_all(Path(suite.removeprefix("file://")).parent / "runs"))


def group(made, scenario="split_digits"):
    return next(g for g in made.groups if g.scenario == scenario)


def row(made, method, scenario="split_digits"):
    return next(r for r in group(made, scenario).rows if r.method == method)


# -- evidence ---------------------------------------------------------------------------------------------------------


def test_a_number_leads_to_its_runs_their_command_and_their_files(page, made):
    lora = row(made, "lora")
    page.locator(f'table[data-group="{TABLE}"] tr[data-method="lora"] td[data-metric="forgetting"] a').click()
    values = [float(t) for t in page.locator("table.evidence td.num").all_inner_texts() if t != "–"]
    finished = {k: r for k, r in lora.runs.items()}
    assert values[:3] == [round(r.metrics["forgetting"], 2) for r in finished.values()]
    assert f"mean of 3 finished runs: {lora.cells['forgetting'].mean:.2f} points" in page.inner_text("main")
    command = command_of(next(iter(finished.values())), seed="$seed")
    assert page.inner_text("#repeat").startswith(f"for seed in 0 1 2 9; do {command}")
    first = page.locator("table.evidence tbody tr").first
    hrefs = [first.locator(f"a:text-is('{word}')").get_attribute("href") for word in ("record", "log", "predictions")]
    where = Path(page.evaluate("location.pathname")).parent
    assert all((where / href).is_file() for href in hrefs) and hrefs[0].endswith("/run.json")
    first.locator("a").first.click()
    text = page.inner_text("main")
    assert "Protocol fingerprint" in text and "Config" in text and page.inner_text("#repeat").endswith("--seed 0")


def test_a_cell_of_a_matrix_leads_to_its_counts_and_predictions(page, made):
    show(page, "matrices", group=TABLE)
    page.locator('a.ev[href*="of=osft"][href$="what=cell%3A4%2C1"]').click()
    run = next(iter(row(made, "osft").runs.values()))
    m = run.matrix
    assert f"{m.correct[4, 1]} of {m.total[4, 1]}" in page.locator("table.evidence tbody tr").first.inner_text()
    assert f'arrays["{m.rows[4]}/{m.columns[1]}"]' in page.inner_text("#predictions")
    assert f'arrays["truth/{m.columns[1]}"]' in page.inner_text("#predictions")


@pytest.mark.parametrize("view,state,what", [
    ("anytime", {"group": TABLE}, "row:2"), ("stream", {}, "domain:2"), ("balance", {"group": TABLE}, "backward_transfer"),
    ("cost", {"group": TABLE}, "passes"), ("forgetting", {"group": TABLE}, "row:3")])
def test_a_point_leads_to_its_runs(page, view, state, what):
    show(page, view, **state)
    page.evaluate("() => Promise.all([...document.querySelectorAll('.plot')].map(d => d.drawn))")
    # what plotly says of a click on a point; where the point lies is plotly's own
    page.evaluate("""() => { const div = document.querySelector('.plot');
        const data = div.data.find(t => t.meta !== undefined && (t.mode || '').includes('markers'));
        div.emit('plotly_click', { points: [{ data, pointIndex: Math.min(2, data.x.length - 1) }] }); }""")
    page.wait_for_selector("table.evidence")
    assert page.evaluate("state.what") == what and page.locator("table.evidence tbody tr").count() >= 3
    assert page.locator("table.evidence td.num").first.inner_text() != "–"


def test_arrows_lead_from_number_to_number(page):
    show(page, "leaderboard", group=TABLE)
    page.focus(f'table[data-group="{TABLE}"] a.ev[tabindex="0"]')
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    cell = page.evaluate("""(() => { const td = document.activeElement.closest('td');
        return [td.dataset.metric, td.parentElement.rowIndex]; })()""")
    assert cell == ["average_accuracy", 2]
    page.keyboard.press("Enter")
    page.wait_for_selector("table.evidence")


def test_ticked_runs_show_what_differs_in_settings_and_results(page, made):
    show(page, "runs")
    ids = ["split_digits-lora-s0", "split_digits-lora-s1", "split_digits-osft-s0"]
    for run in ids:
        page.check(f"#tick-{run}")
    page.click("#ticked")
    cells = page.locator("tr", has_text="average_accuracy").first.locator("td").all_inner_texts()
    values = [next(r for r in group(made).runs if r.id == run).metrics["average_accuracy"] for run in ids]
    assert [float(c.split(" ")[0]) for c in cells] == [round(v, 2) for v in values]
    assert f"({values[2] - values[0]:+.2f})".replace("-", "−") in cells[2]
    seeds = page.locator("section", has_text="Config").locator("tr", has_text="seed").last.locator("td").all_inner_texts()
    assert seeds == ["0", "1", "0"]
    page.click("#untick")
    assert page.locator("#a").count() == 1


def test_runs_are_sorted_and_searched(page, made):
    show(page, "runs", q="split_digits")
    page.click("#rsort-result")
    page.click("#rsort-result")
    results = page.locator("table.runs tbody tr td:nth-child(5)").all_inner_texts()
    shown = [float(t.split(" ")[0]) for t in results if t[0] != "–"]
    assert shown == sorted(shown, reverse=True) and len(shown) == 19, shown
    page.fill("#filter", "matched no layer")
    assert page.locator("table.runs tbody tr").count() == 1  # found in the error's record


# -- two methods ------------------------------------------------------------------------------------------------------


def test_a_duel_has_the_intervals_matrices_and_seeds_of_the_records(page, made):
    show(page, "duel", group=TABLE, m1="osft", m2="lora")
    osft, lora = row(made, "osft"), row(made, "lora")

    def text(interval) -> str:
        return " to ".join(f"{v:+.2f}".replace("-", "−") for v in (interval.low, interval.high))

    for metric, label in (("average_accuracy", "average accuracy"), ("forgetting", "forgetting")):
        of = t_interval([osft.values[metric][k] - lora.values[metric][k] for k in osft.runs])
        line = page.locator("table.duel tr").filter(has_text=re.compile(f"^{label}(%|points)")).first
        cells = line.locator("td").all_inner_texts()
        assert cells[2] == f"{of.mean:+.2f}".replace("-", "−") and cells[3] == text(of)
    sets = page.locator("section", has_text="Per test set").locator("table.intervals tbody tr")
    for j in range(5):
        of = t_interval([osft.runs[k].matrix.percent[-1, j] - lora.runs[k].matrix.percent[-1, j] for k in osft.runs])
        assert sets.nth(j).locator("td").nth(1).inner_text() == text(of)
    heat = page.locator("table.heat").nth(2).locator("tbody tr").last.locator("td").first
    difference = np.mean([osft.runs[k].matrix.percent[-1, 0] - lora.runs[k].matrix.percent[-1, 0] for k in osft.runs])
    assert float(heat.inner_text().replace("−", "-")) == pytest.approx(difference, abs=0.06)
    assert page.locator("table.seeds tbody tr").count() == 3
    passes = page.locator("table.costs tr", has_text="passes").locator("td").all_inner_texts()
    assert passes[2] == f"{osft.cells['passes'].mean / lora.cells['passes'].mean:.2f} ×"
    assert "method.name" in page.locator("section", has_text="Settings that differ").inner_text()


def test_a_duel_on_a_stream_has_its_domains(page, made):
    show(page, "duel", group="digits_c · tiny_resnet", m1="tent", m2="bn")
    tent, bn = row(made, "tent", "digits_c"), row(made, "bn", "digits_c")
    rows = page.locator("table.intervals tbody tr")
    assert rows.count() == 30
    of = t_interval([tent.runs[k].stream.errors[3] - bn.runs[k].stream.errors[3] for k in tent.runs])
    assert float(rows.nth(3).locator("td").first.inner_text().replace("−", "-")) == pytest.approx(of.mean, abs=0.006)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_of_a_method(other, tmp_path):
    for lr in (0.1, 0.2, 0.4):
        for rank in (4, 8):
            for seed in range(2):
                last = 50 + 20 * lr + rank + seed
                matrix = AccuracyMatrix.from_rates([[90, np.nan], [last, 70]], size=1000)
                records.write(tmp_path / "runs", f"er-{lr}-{rank}-{seed}", records.record(
                    "s", "er", seed, label=f"er(lr={lr}, rank={rank})", args={"lr": lr, "rank": rank}, matrix=matrix,
                    metrics=records.metrics_of_matrix(matrix)))
    open_page(other, tmp_path / "runs", view="sweep")
    for theme, width in (("light", 1280), ("dark", 390)):
        other.set_viewport_size({"width": width, "height": 800})
        show(other, "sweep", theme=theme)
        assert other.locator(".plot .main-svg").count() > 0 and other.evaluate("document.documentElement.scrollWidth") <= width
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = [v for v in axe.Axe().run(other).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not found, [(v["id"], v["nodes"][0]["html"][:200]) for v in found]
    text = other.inner_text("table.importance")
    lr, rank = np.var([2, 4, 8]), np.var([4, 8])
    assert f"{100 * lr / (lr + rank):.1f}" in text and f"{100 * rank / (lr + rank):.1f}" in text
    assert other.locator("table.settings tbody tr").count() == 6
    other.select_option("#param", "rank")
    assert "param=rank" in other.url and "over rank" in other.inner_text("main")


# -- files ------------------------------------------------------------------------------------------------------------


def saved(page, button: str) -> str:
    with page.expect_download() as caught:
        page.click(button)
    return Path(caught.value.path()).read_text()


def test_saved_tables_are_those_of_the_command_byte_for_byte(page, made):
    show(page, "leaderboard", panel="save")
    for kind, writer in (("csv", sheets.to_csv), ("md", sheets.to_markdown), ("tex", sheets.to_latex)):
        assert saved(page, f"#save-{kind}") == writer(made)
        assert saved(page, f"#save-over-{kind}") == writer(made, over=True)


def test_saved_tables_follow_scenario_methods_and_columns(page, made):
    show(page, "leaderboard", panel="save", group=TABLE, off="lora\x1fncm", cols="forgetting,passes")
    one = compare(load_all([r.folder for r in group(made).runs]))
    methods = {r.method for r in one.groups[0].rows} - {"lora", "ncm"}
    for kind in sheets.FORMATS:
        text = saved(page, f"#save-{kind}")
        found = [s for s in sheets.sheets(made, kind) if s.group.startswith(TABLE)]
        assert text == sheets.assemble(found, kind, methods, {"forgetting", "passes"})
        assert "lora" not in text.replace("lora-", "") and "osft" in text
    heads = page.locator(f'table[data-group="{TABLE}"] thead').inner_text()
    assert "forgetting" in heads and "backward" not in heads


def test_saved_tidy_csv_has_the_numbers_of_the_command(page, made):
    show(page, "leaderboard", panel="save")
    for kind in ("runs", "curves"):
        mine = list(csv.reader(io.StringIO(saved(page, f"#save-{kind}"))))
        theirs = list(csv.reader(io.StringIO(exports.TIDY[kind](made))))
        assert mine[0] == theirs[0] and len(mine) == len(theirs)
        for a, b in zip(sorted(mine[1:]), sorted(theirs[1:]), strict=True):
            for x, y in zip(a, b, strict=True):
                assert x == y or float(x) == pytest.approx(float(y), abs=1e-5), (x, y, a, b)
    tests = list(csv.DictReader(io.StringIO(saved(page, "#save-tests"))))
    theirs = {(x["scenario"], x["metric"], x["a"], x["b"]): x for x in csv.DictReader(io.StringIO(exports.tests_csv(made)))}
    assert {(x["scenario"], x["metric"], x["a"], x["b"]) for x in tests} <= set(theirs) and len(tests) > 100
    for x in tests:
        y = theirs[x["scenario"], x["metric"], x["a"], x["b"]]
        if int(x["pairs"]) == 0:
            assert x["difference"] == y["difference"] == ""
            continue
        assert float(x["difference"]) == pytest.approx(float(y["difference"]), abs=1e-3)
        assert float(x["p_sign_flip_holm"]) >= float(y["p_sign_flip"]) - 1e-4


# -- visits -----------------------------------------------------------------------------------------------------------


def test_new_runs_and_changed_ranks_since_the_last_visit_are_marked(other, tmp_path):
    runs = tmp_path / "runs"

    def learn(method: str, seed: int, last: float) -> None:
        matrix = AccuracyMatrix.from_rates([[90, np.nan], [last, 70]], size=1000)
        records.write(runs, f"{method}-{seed}", records.record("s", method, seed, matrix=matrix,
                                                               metrics=records.metrics_of_matrix(matrix)))

    learn("lora", 0, 60)
    learn("osft", 0, 50)
    open_page(other, runs)
    assert other.locator("#since").count() == 0  # nobody was here before
    learn("osft", 1, 90)
    open_page(other, runs)
    other.reload()  # the address is the same file: leaving it remembered the first state
    text = other.inner_text("#since")
    assert "1 new run" in text and "2 changed ranks" in text
    assert "2 → 1" in other.locator('tr[data-method="osft"]').inner_text()
    other.click("#see-new")
    assert other.locator("table.runs tbody tr").first.inner_text().count("new") >= 1
    other.click("#seen")
    assert other.locator("#since").count() == 0


def test_thirty_methods_with_long_names_fit_and_charts_wait_to_be_seen(other, tmp_path):
    for k in range(30):
        method = list(records.LEARNERS)[k % 6]
        matrix = records.learner_matrix(method, k)
        records.write(tmp_path / "runs", f"r{k}", records.record(
            "split_digits", method, 0, matrix=matrix, metrics=records.metrics_of_matrix(matrix),
            label=f"{method}_with_a_very_long_name_of_variant_{k:02d}(learning_rate=0.00{k}, rank={k})",
            args={"learning_rate": k / 1000, "rank": k}))
    open_page(other, tmp_path / "runs")
    wide = other.locator("main .scroll").first
    assert wide.evaluate("d => d.scrollWidth <= d.clientWidth") and other.locator("table.leader tbody tr").count() == 30
    names = other.locator(".chip").all_inner_texts()
    assert len(set(names)) == 30 and max(map(len, names)) <= 30
    show(other, "forgetting")
    other.evaluate("() => Promise.all([...document.querySelectorAll('.plot')].map(d => d.drawn))")
    drawn = "[...document.querySelectorAll('.plot')].map(d => d.querySelectorAll('.main-svg').length > 0)"
    first = other.evaluate(drawn)
    assert first[0] and not all(first) and len(first) == 31
    other.locator(".plot").last.scroll_into_view_if_needed()
    for _ in range(200):
        if last := other.evaluate(drawn)[-1]:
            break
        other.wait_for_timeout(50)
    assert last
    assert other.evaluate("document.documentElement.scrollWidth") <= 1280
