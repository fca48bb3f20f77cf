"""Tables and figures for LaTeX compile, at the widths that papers have; skipped where there is no LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import records

from cl_bench.compare import sheets
from cl_bench.compare.comparison import compare
from cl_bench.compare.figure import WIDTHS, draw, drawing
from cl_bench.records.results import load_all

LATEX = shutil.which("pdflatex")
PACKAGES = ("booktabs.sty", "graphicx.sty", "pgfplots.sty")


def _lacks() -> str:
    if LATEX is None:
        return "no pdflatex on this machine"
    missing = [p for p in PACKAGES if subprocess.run(["kpsewhich", p], capture_output=True).returncode]
    return f"this LaTeX lacks {', '.join(missing)}" if missing else ""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = records.write_suite(tmp_path_factory.mktemp("tex") / "runs", seeds=2)
    nasty = "é & 100 % of_{x} ~ ^ # $ \\ 中 ≥ “q” …"
    records.write_learner(folder / "n", "lora", 0, label=nasty)
    return compare(load_all(folder))


def test_text_holds_only_signs_that_plain_latex_prints(made) -> None:
    text = sheets.to_latex(made) + sheets.to_latex(made, over=True)
    assert not [c for c in text if not c.isascii() and not (c.isalpha() and ord(c) < 0x250)]


@pytest.mark.skipif(bool(_lacks()), reason=_lacks() or "there")
def test_tables_and_figures_compile(made, tmp_path) -> None:
    """One document with every table and every figure, in both widths: no error, no label twice."""
    parts = [sheets.to_latex(made), sheets.to_latex(made, over=True)]
    for k, (kind, scenario) in enumerate((("forgetting", "split_digits"), ("anytime", "split_digits"), ("stream", "digits_c"),
                                          ("balance", "split_digits"), ("ranking", "split_digits"))):
        width = WIDTHS[k % 2]
        parts.append(draw(drawing(made, kind, scenario), tmp_path / f"{kind}.tex", width).read_text())
        assert f"width={width}mm" in parts[-1].replace(" ", "")
    labels = re.findall(r"\\label\{([^}]*)\}", "\n".join(parts))
    assert len(labels) == len(set(labels)) == len(made.groups) + 1 + 5
    document = "\n".join([
        r"\documentclass{article}", r"\usepackage[utf8]{inputenc}\usepackage[T1]{fontenc}",
        r"\usepackage[paperwidth=260mm,textwidth=190mm]{geometry}", r"\usepackage{booktabs,graphicx,xcolor,pgfplots}",
        r"\pgfplotsset{compat=1.16}", r"\extrafloats{60}", r"\begin{document}", *(p + r"\clearpage" for p in parts),
        r"\end{document}"])
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    command = [str(LATEX), "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert ran.returncode == 0, ran.stdout[-1500:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
