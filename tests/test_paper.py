"""From records into a paper: figures with the page's numbers, and BibTeX from what methods state."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import records

from cl_bench.command.cli import main
from cl_bench.command.paper import KINDS, bibtex
from cl_bench.compare import figure as f
from cl_bench.compare import sheets
from cl_bench.compare.comparison import compare
from cl_bench.compare.dashboard.payload import payload
from cl_bench.errors import UserError
from cl_bench.records.results import load_all
from cl_bench.registry import GROUPS, entries


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return records.write_suite(tmp_path_factory.mktemp("paper") / "runs", seeds=3)


def shown(kind: str, suite: Path, **given) -> f.Drawing:
    scenario = "digits_c" if kind == "stream" else "split_digits"
    return f.drawing(compare(load_all(suite)), kind, scenario, **given)


def test_the_command_knows_every_kind() -> None:
    assert tuple(f.KINDS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_holds_the_numbers_of_the_page(kind, suite) -> None:
    made, data = shown(kind, suite), payload(compare(load_all(suite)), "x")
    group = next(g for g in data["groups"] if g["title"] == made.title)
    for line in made.lines:
        number = next(i for i, m in enumerate(data["methods"]) if m["name"] == line.name)
        if kind == "ranking":
            (row,) = [r for r in group["rows"] if r["method"] == number]
            assert [line.y[0], line.low[0], line.high[0]] == pytest.approx(row["cells"][group["primary"]][2:], abs=1e-3)
            continue
        curves = group["stream" if kind == "stream" else "learn"]["methods"][number]
        if kind == "balance":
            assert (line.x, line.y) == (curves["plasticity"][0], curves["stability"][0])
        else:
            bands = {"forgetting": lambda c: [b[1:] for b in c["forgetting"]["best"]], "anytime": lambda c: c["anytime"],
                     "stream": lambda c: c["error"]}[kind](curves)
            assert [line.y, line.low, line.high] == bands
        assert line.color in (*f.LIGHT, "#4F575F", "#757D86", "#23282E")


@pytest.mark.parametrize("ending", [".pdf", ".svg", ".png", ".tex"])
def test_every_format_is_written_the_same_each_time(ending, suite, tmp_path) -> None:
    made = shown("forgetting", suite, methods=["lora", "osft"])
    assert [line.name for line in made.lines] == ["osft", "lora"]
    first, again = (f.draw(made, tmp_path / f"{k}{ending}", 178).read_bytes() for k in range(2))
    assert first == again and len(first) > 500
    if ending == ".svg":
        text = first.decode()
        assert float(re.search(r'width="([\d.]+)pt"', text)[1]) == pytest.approx(178 / 25.4 * 72, abs=0.1)
        assert ">lora<" in text and "protocol" in text, "text stays text, the caption is in it"
    if ending == ".pdf":
        width = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", first)
        assert float(width[1]) == pytest.approx(178 / 25.4 * 72, abs=0.1)


def test_the_caption_says_protocol_n_and_interval(suite) -> None:
    made = shown("forgetting", suite, methods=["lora"], since="learned")
    group = next(g for g in compare(load_all(suite)).groups if g.scenario == "split_digits")
    assert f"protocol {group.fingerprint}" in made.caption and "n = 3 runs" in made.caption
    assert "95 % t-intervals" in made.caption and "(Avalanche)" in made.caption
    rows = {row.method: row.standings["forgetting_learned"] for row in group.rows if not row.reference}
    best = next(method for method, place in rows.items() if place.best)
    assert f"Paired sign-flip tests of forgetting since learned against {best}, over runs, Holm-corrected" in made.caption
    assert f"Holm-corrected: lora p = {rows['lora'].p:.2g}." in made.caption, "of the methods shown"
    assert "nan" not in shown("stream", suite).caption
    assert "tent (lr=0.1): 1 of 1 run gave one class" in shown("stream", suite).caption, "what ails a run shown is said"


@pytest.mark.parametrize("given,sentence", [
    (("forgetting", None, ()), "say which scenario"), (("pie", None, ()), "no figure 'pie'"),
    (("forgetting", "nowhere", ()), "no run is of nowhere"), (("stream", "split_digits", ()), "no run here has"),
    (("forgetting", "split_digits", ("lorra",)), "no run is of lorra")])
def test_what_cannot_be_drawn_is_told(given, sentence, suite) -> None:
    with pytest.raises(UserError, match=sentence):
        f.drawing(compare(load_all(suite)), *given)


def test_the_command_draws_and_prints_the_caption(suite, tmp_path, capsys) -> None:
    out = tmp_path / "sub" / "fig.pdf"
    argv = ["figure", "forgetting", str(suite), "--scenario", "split_digits", "--methods", "lora", "osft", "-o", str(out)]
    assert main(argv) == 0 and out.read_bytes().startswith(b"%PDF")
    printed = capsys.readouterr().out
    assert f"figure: {out}" in printed and "Forgetting after each experience" in printed
    assert main([*argv[:-1], str(tmp_path / "fig.docx")]) == 2 and ".docx" in capsys.readouterr().err
    assert main([*argv, "--width", "3"]) == 2 and "85 and 178" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_figures_and_tables_compile(suite, tmp_path) -> None:
    comparison = compare(load_all(suite))
    parts = [sheets.to_latex(comparison)]
    for kind in KINDS:
        parts.append(f.draw(shown(kind, suite), tmp_path / f"{kind}.tex").read_text())
    head = r"\documentclass{article}\usepackage{booktabs,graphicx,pgfplots,xcolor,amssymb}\pgfplotsset{compat=1.16}"
    (tmp_path / "all.tex").write_text(head + r"\begin{document}" + "\n".join(parts) + r"\end{document}")
    ran = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path,
                         capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout[-1500:]


# -- BibTeX -----------------------------------------------------------------------------------------------------------


def test_bibtex_of_what_methods_state() -> None:
    (one,) = bibtex("codyra", "Lu et al., CoDyRA, arXiv 2412.01004")
    assert one == ("@article{lu2024codyra,\n  author = {Lu and others},\n  title = {{CoDyRA}},\n"
                   "  journal = {arXiv preprint arXiv:2412.01004},\n  year = {2024}\n}")
    first, second = bibtex("ewc", "Kirkpatrick et al., PNAS 2017; Schwarz et al., ICML 2018")
    assert "@article{kirkpatrick2017ewc" in first and "journal = {PNAS}" in first
    assert first.startswith("% the title is not stated")
    assert "@inproceedings{schwarz2018ewcb" in second and "booktitle = {ICML}" in second
    assert "year = {2019}" in bibtex("er", "Chaudhry et al., arXiv 1902.10486, 2019")[0]
    assert "author = {Li and Hoiem}" in bibtex("lwf", "Li & Hoiem, ECCV 2016 / TPAMI 2018")[0]
    assert "{{SLCA}}" in bibtex("finetune", "lower bound; variants as in Zhang et al. (SLCA), ICCV 2023")[0]
    assert bibtex("joint", "upper bound") == []


@pytest.mark.parametrize("name", sorted(entries(GROUPS["methods"])))
def test_every_method_that_states_a_paper_can_be_cited(name) -> None:
    paper = str(entries(GROUPS["methods"])[name].facts.get("paper", ""))
    found = bibtex(name, paper)
    assert bool(found) == bool(re.search(r"\d{4}", paper))
    keys = [re.search(r"@\w+\{(\w+),", entry)[1] for entry in found]
    assert len(set(keys)) == len(keys)
    for entry in found:
        assert re.search(r"year = \{(19|20)\d\d\}", entry) and re.search(r"author = \{[A-Z]", entry), entry


def test_the_command_cites(capsys) -> None:
    assert main(["cite", "codyra", "joint"]) == 0
    out = capsys.readouterr().out
    assert "@article{lu2024codyra" in out and "% joint states no paper: upper bound." in out
    assert main(["cite"]) == 0 and "@software{clbench" in capsys.readouterr().out
    assert main(["cite", "codira"]) == 2 and "did you mean codyra" in capsys.readouterr().err


def test_the_citation_file_says_what_cite_says() -> None:
    import yaml

    from cl_bench import __version__
    from cl_bench.command.paper import OWN

    stated = yaml.safe_load((Path(__file__).resolve().parents[1] / "CITATION.cff").read_text())
    assert stated["version"] == __version__ and stated["title"] in OWN and stated["authors"][0]["name"] in OWN
