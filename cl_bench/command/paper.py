"""``cl-bench figure`` and ``cl-bench cite``: what goes from records into a paper."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from .commands import given_folders, read_records

__all__ = ["add_commands", "bibtex", "cite", "figure"]

KINDS = ("forgetting", "anytime", "stream", "balance", "ranking")
OWN = """@software{clbench,
  title = {cl-bench: one benchmark harness for continual learning and test-time adaptation},
  author = {{The cl-bench authors}},
  version = {VERSION}
}"""


def add_commands(command: Callable[..., argparse.ArgumentParser], stored: argparse.ArgumentParser) -> None:
    """Both subcommands, by the function that makes the others."""
    made = command("figure", figure, "a figure for a paper from records, as PDF, SVG, PNG or pgfplots", stored,
                   description="Means over runs with 95 % intervals, the numbers of the page. The caption is printed.")
    made.add_argument("kind", choices=KINDS, help="what it shows")
    made.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="run folders, or folders of them (default: runs)")
    made.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="FILE.pdf, .svg, .png or .tex (pgfplots)")
    made.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="methods to show (default: all)")
    made.add_argument("--scenario", help="which, where the runs are of several")
    made.add_argument("--width", type=int, default=85, metavar="MM", help="85: one column (default); 178: both")
    made.add_argument("--since", choices=("best", "learned", "best_any"), default="best", help="forgetting since when")
    cited = command("cite", cite, "BibTeX of methods, from what they state as their paper")
    cited.add_argument("methods", nargs="*", metavar="METHOD", help="names of methods or scenarios (default: cl-bench itself)")


def figure(o: argparse.Namespace, rest: list[str]) -> int:
    """Draw one figure and print its caption."""
    from ..compare.comparison import compare
    from ..compare.figure import draw, drawing

    if not 30 <= o.width <= 400:
        raise UserError(f"--width {o.width}: give millimetres from 30 to 400; columns of papers are 85 and 178 wide.")
    made = drawing(compare(read_records(given_folders(o)), by="fingerprint"), o.kind, o.scenario, o.methods, o.since)
    print(f"figure: {draw(made, o.out, o.width)}")
    print(made.caption)
    return 0


def cite(o: argparse.Namespace, rest: list[str]) -> int:
    """Print BibTeX entries."""
    from .. import __version__
    from ..registry import GROUPS, entries, find

    if not o.methods:
        print(OWN.replace("VERSION", __version__))
        return 0
    for name in o.methods:
        entry = entries(GROUPS["methods"]).get(name) or entries(GROUPS["scenarios"]).get(name)
        if entry is None:
            find(GROUPS["methods"], name)  # says what is near
            raise UserError(f"{name} is no registered method or scenario; cite takes names of `cl-bench list methods`.")
        found = bibtex(name, str(entry.facts.get("paper", "")))
        print("\n".join(found) if found else f"% {name} states no paper: {entry.facts.get('paper', '') or 'it is our own'}.")
    return 0


JOURNALS = ("PNAS", "TPAMI", "IJCV", "TMLR", "JMLR", "IEEE TIT", "Neurocomputing", "Pattern Recognition")


def bibtex(name: str, paper: str) -> list[str]:
    """One entry per citation in ``paper``, as methods state it: ``Authors, [Name,] Venue Year``, joined by ``;``. What a
    method does not state is its paper's title: the name that the citation gives, or the method's, stands there."""
    out = []
    for k, text in enumerate(part.strip() for part in paper.split(";")):
        text = re.sub(r"^.*?variants? as in |^baselines? of |^[^:,]*: ", "", text)
        arxiv = re.search(r"arXiv (\d{4}\.\d{4,5})", text)
        rest = text.replace(arxiv[0], "") if arxiv else text
        rest = re.sub(r"\(([^)]*)\)", lambda m: "" if re.search(r"\d", m[1]) else f", {m[1]}", rest)  # (SLCA), not (part 2)
        year = re.search(r"\b(19|20)\d\d\b", rest)
        if year is None and arxiv is None:
            continue
        when = year[0] if year else f"20{arxiv[1][:2]}" if arxiv else ""
        authors, *more = [piece.strip() for piece in rest.split(",") if piece.strip()]
        said = [piece for word in more if (piece := re.sub(r"\s*\b(19|20)\d\d\b.*", "", word).strip(" /"))]
        venue = said[-1] if said and re.search(r"\d", more[-1]) else ""
        title = next((piece for piece in said if piece != venue), "")
        journal = bool(arxiv) or not venue or venue.startswith(JOURNALS)
        where = f"arXiv preprint arXiv:{arxiv[1]}" if arxiv else venue or "arXiv preprint"
        who = re.sub(r" et al\.", " and others", authors).replace(" & ", " and ")
        first = re.sub(r"[^a-z0-9]", "", authors.split(" ")[0].lower())
        key = first + when + re.sub(r"[^a-z0-9]", "", name.lower()) + ("abcdefgh"[k] if k else "")
        fields = {"author": who, "title": f"{{{title or name}}}", "journal" if journal else "booktitle": where, "year": when}
        out.append(("" if title else f"% the title is not stated: {name} stands for it\n")
                   + f"@{'article' if journal else 'inproceedings'}{{{key},\n"
                   + ",\n".join(f"  {field} = {{{value}}}" for field, value in fields.items()) + "\n}")
    return out
