"""The leaderboard: hostile archives are text, refused runs rank nowhere, and nobody replaces another's result."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import records
from sharing_toys import files_of, zipped

from cl_bench.command.cli import main
from cl_bench.compare.site import visible
from cl_bench.identity import protocol_id
from cl_bench.records.archive import export
from cl_bench.records.audit import record_digest
from cl_bench.records.results import load

EVIL = '<script>alert(1)</script><img src=x onerror=alert(2)>"\'`{{7*7}}\u202egnp\x07'


def learner(runs: Path, run_id: str, method: str = "lora", seed: int = 0, **over: Any) -> Path:
    """A synthetic run whose fingerprint is what its fields make."""
    matrix = records.learner_matrix("lora", seed + 10)
    made = records.record(method=method, seed=seed, matrix=matrix, metrics=records.metrics_of_matrix(matrix), **over)
    fields = made["fingerprint"]["fields"] | {"scenario": made["scenario"]["name"], "backbone": made["backbone"]["name"]}
    made["fingerprint"] = {"id": protocol_id(fields), "name": "short name", "fields": fields}
    return records.write(runs, run_id, made, [{"kind": "start", "t": 0.0}])


def archive(folder: Path, name: str, *runs: Path, **about: str) -> Path:
    folder.mkdir(exist_ok=True)
    return export([load(r) for r in runs], folder / name, [], about)


def report(folder: Path, run: Path, level: str, **over: Any) -> None:
    folder.mkdir(exist_ok=True)
    found = load(run)
    told = {"format": 1, "run": found.id, "record": record_digest(found.record, found.arrays()), "level": level, "reasons": [],
            "checked": "2026-02-01T00:00:00+00:00", "environment": {}, **over}
    (folder / f"{found.id}-{level or 'none'}.json").write_text(json.dumps(told))


def built(tmp_path: Path, *more: str) -> dict[str, str]:
    assert main(["leaderboard", str(tmp_path / "in"), "-o", str(tmp_path / "site"), *more]) == 0
    return {p.name: p.read_text(encoding="utf-8") for p in (tmp_path / "site").iterdir()}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_one_table_per_protocol_with_provenance_and_state(tmp_path) -> None:
    a, b = learner(tmp_path / "r", "a"), learner(tmp_path / "r", "b", seed=1)
    other = learner(tmp_path / "r", "c", fields={"test_batch_size": 1})
    archive(tmp_path / "in", "one.zip", a, b, by="A Group", url="https://example.org/paper")
    archive(tmp_path / "in", "two.zip", other)
    report(tmp_path / "ok", a, "bits")
    pages = built(tmp_path, "--verified", str(tmp_path / "ok"))
    tables = [name for name in pages if name.startswith("protocol-")]
    assert len(tables) == 2 and all(f'href="{name}"' in pages["index.html"] for name in tables)
    page = pages[f"protocol-{load(a).fingerprint}.html"]
    assert "1 of 2 runs verified, the same bits" in page and "A Group" in page and 'href="https://example.org/paper"' in page
    assert re.search(r"sha256 <code>[0-9a-f]{64}", page) and "one.zip" in page
    assert "verified" in pages[f"protocol-{load(other).fingerprint}.html"]
    assert f"{load(a).metrics['average_accuracy']:.2f}" in page or "±" in page


def test_without_reports_of_the_host_nothing_counts_as_verified(tmp_path) -> None:
    a = learner(tmp_path / "r", "a")
    archive(tmp_path / "in", "one.zip", a)
    report(tmp_path / "in", a, "bits")  # handed in beside the archive
    (page,) = [text for name, text in built(tmp_path).items() if name.startswith("protocol-")]
    assert ">not verified<" in page and "the same bits" not in page


def test_a_report_is_bound_to_the_record_it_was_made_of(tmp_path) -> None:
    a = learner(tmp_path / "r", "a")
    archive(tmp_path / "in", "one.zip", a)
    report(tmp_path / "ok", a, "bits", record="0" * 16)
    (page,) = [t for n, t in built(tmp_path, "--verified", str(tmp_path / "ok")).items() if n.startswith("protocol-")]
    assert ">not verified<" in page


def test_a_refused_run_ranks_nowhere_and_is_told(tmp_path) -> None:
    a, b = learner(tmp_path / "r", "a"), learner(tmp_path / "r", "b", method="cheat")
    archive(tmp_path / "in", "one.zip", a, b)
    report(tmp_path / "no", b, "not", reasons=["forgetting is 0 in the record and 9 here"])
    pages = built(tmp_path, "--verified", str(tmp_path / "no"))
    page = pages[f"protocol-{load(a).fingerprint}.html"]
    table = page.partition("<tbody>")[2].partition("</tbody>")[0]
    assert "cheat" not in table and "cheat" not in pages["tables.csv"]
    assert "forgetting is 0 in the record" in page and "forgetting is 0 in the record" in pages["index.html"]


def test_hostile_names_are_text(tmp_path) -> None:
    run = learner(tmp_path / "r", "a", label=EVIL, scenario=EVIL, suite=EVIL)
    files = files_of(run)
    (tmp_path / "in").mkdir()
    zipped(tmp_path / "in" / "x<b>.zip", files, made_with=EVIL, about={"by": EVIL, "note": EVIL, "url": "javascript:alert(1)"})
    pages = built(tmp_path, "--title", EVIL)
    for name, page in pages.items():
        if not name.endswith(".html"):
            continue
        tags = Tags()
        tags.feed(page)
        assert not {t for t, _ in tags.seen} & {"script", "img", "b", "iframe", "object"}, name
        assert not [k for _, attrs in tags.seen for k in attrs if k.startswith("on")], name
        links = [href for _, attrs in tags.seen if (href := attrs.get("href")) is not None]
        assert all(link.startswith(("protocol-", "index.html", "tables.csv", "https://")) for link in links), links
        assert "\u202e" not in page and "\x07" not in page and ">49<" not in page
        assert [a for _, a in tags.seen if str(a.get("content")).startswith("default-src 'none'")]


def test_a_later_submission_replaces_no_earlier_one_and_two_codes_are_two_rows(tmp_path) -> None:
    first = learner(tmp_path / "r", "a", started="2026-01-01T00:00:00+00:00")
    later = learner(tmp_path / "s", "b", started="2099-01-01T00:00:00+00:00")
    other = learner(tmp_path / "t", "c", seed=1)
    for folder, code in ((first, "aa"), (later, "aa"), (other, "bb")):
        record = json.loads((folder / "run.json").read_text())
        record["method"]["source_digest"] = code * 8
        (folder / "run.json").write_text(json.dumps(record))
    for name, folder in (("1.zip", first), ("2.zip", later), ("3.zip", other)):
        archive(tmp_path / "in", name, folder)
    pages = built(tmp_path)
    page = pages[f"protocol-{load(first).fingerprint}.html"]
    assert "lora · code aaaaaaaa" in page and "lora · code bbbbbbbb" in page
    assert "<code>a</code>" in page and "<code>b</code>" not in page
    assert "b of 2.zip repeats a" in pages["index.html"]


def test_a_bad_archive_costs_itself_alone(tmp_path, capsys) -> None:
    archive(tmp_path / "in", "good.zip", learner(tmp_path / "r", "a"))
    (tmp_path / "in" / "bad.zip").write_bytes(b"PK nothing")
    pages = built(tmp_path)
    assert "bad.zip is no archive" in capsys.readouterr().err and "bad.zip is no archive" in pages["index.html"]
    (tmp_path / "in" / "good.zip").unlink()
    assert main(["leaderboard", str(tmp_path / "in"), "-o", str(tmp_path / "site")]) == 2


@pytest.mark.parametrize(("text", "shown"), [("a\u202eb", "a\\u202eb"), ("x" * 300, "x" * 200 + "…"), ("ä ± ↑", "ä ± ↑"),
                                             ("a\nb", "a\\u000ab")])
def test_visible(text, shown) -> None:
    assert visible(text) == shown
