"""Help on one part: ``--method.help NAME``: a line that can be run, what it is, its paper, every parameter explained."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

from .typed import words

__all__ = ["part_help"]

WIDTH = 80
# What a parameter is where a class does not say it itself: what these names mean everywhere in the package.
COMMON = {
    "batch_size": "images per training step", "epochs": "passes over the images of an experience", "lr": "learning rate",
    "iterations": "optimizer steps per experience", "optimizer": "the optimizer that adapts", "momentum": "of SGD",
    "weight_decay": "of the optimizer", "order": "class order: a number draws one, a list gives it, null keeps the data's",
    "answers": "among which classes a test set is answered: those seen so far, its own task's, or all",
    "base": "classes of the first experience; 0 = as many as increment", "increment": "classes of every further experience",
    "per_class": "training images per class; 0 = all", "root": "the data set's folder",
    "size": "side of an image in pixels", "resize": "short side before the crop, in pixels",
    "augmented": "random crops and flips of training images", "of": "the scenario that is changed",
    "host": "the method inside", "seed": "what is drawn from it", "rank": "rank of the low-rank update",
    "r": "rank of the low-rank update", "alpha": "the update is scaled by alpha / rank",
    "at": "anchored pattern of the layers' names", "variant": "which published form",
    "threshold": "share of a layer's activations that its basis keeps", "memory": "images kept",
    "decay": "share of the old average that stays at a step", "clip": "greatest norm of a gradient",
    "test_batch_size": "images per batch of the stream", "label_delay": "after how many batches labels come",
    "pretrained": "load the published weights", "weights": "file or name of the weights",
    "name": "its name where it comes from", "severity": "of the corruptions, 1 to 5",
    "shuffle": "random order within a domain",
    "released_prox": "the proximal step of the released code instead of the exact one",
    "kappa_max": "greatest threshold of the proximal step", "dense_fraction": "share of the steps before gates may close",
    "learn_scale": "whether the scale of the added branch is trained",
    "rslora": "scale by alpha / sqrt(rank) (Kalajdzievski 2023)", "mu": "weight of the orthogonality penalty",
    "margin": "greatest entropy of a sample that is learned from, as a share of ln(C)",
    "redundancy": "greatest cosine with the average of predictions of a sample that is learned from",
    "threshold_step": "added to the threshold at every further experience",
    "images": "images from which statistics are taken",
    "related": "from which relation on an earlier task counts as related",
    "strength": "weight of the update along related tasks", "mask_epochs": "epochs that learn the mask",
    "weight_epochs": "epochs that learn the weights under it",
    "batchwise": "one choice of prompts for a batch, as released", "freeze_epochs": "epochs in which only the head learns",
    "reg": "weight of the regulariser", "merge": "share of earlier adapters that is merged in",
    "head_scale": "scale of the head", "lookups": "how often an answer is looked up again",
    "scan_size": "images that are scanned for a shift before learning", "orth": "weight of the orthogonality penalty",
    "beta1": "average of sensitivities", "beta2": "average of uncertainties", "target_r": "mean rank at the end",
    "interval": "steps between two reallocations", "mode": "what the directions are taken from",
    "damp": "added to the diagonal, as a share of its mean", "init": "how the factors begin",
    "keep": "share of directions kept", "n": "how many", "compensate": "keep the answers of the first step unchanged",
    "xi": "step of the proximal threshold", "l1": "weight of the gates' absolute sum", "std": "spread of the first values",
}


def part_help(root: str, name: str, target: Any, width: int = WIDTH) -> str:
    """The help of a part as text. ``root``: ``method``, ``scenario`` or ``backbone``, or a path to one inside of another."""
    out = [*_usage(root, name, target), ""]
    doc = inspect.cleandoc(target.__doc__ or "")
    about = re.split(r"\n\s*(?:Args|Raises|Attributes|Returns):\n", doc)[0]
    for paragraph in re.split(r"\n\s*\n", about):
        if re.search(r"^\s+\S|^[-*] ", paragraph, re.M):  # a list, a layout of folders, a formula: line breaks are meant
            for line in paragraph.splitlines():
                text, indent = _plain(line), " " * (len(line) - len(line.lstrip()) + 2)
                out += textwrap.wrap(text.strip(), width, initial_indent=indent, subsequent_indent=indent + "  ",
                                     break_on_hyphens=False, break_long_words=False)
            out.append("")
        else:
            out += [*textwrap.wrap(_plain(" ".join(paragraph.split())), width, break_on_hyphens=False), ""]
    facts = [("paper", getattr(target, "paper", "")), ("needs", _list(target, "needs")), ("gives", _list(target, "gives")),
             ("folders", _layout(target))]
    for word, text in facts:
        if text:
            out += textwrap.wrap(f"{word}: {text}", width, subsequent_indent="  ", break_on_hyphens=False)
    told = _told(target)
    parameters = [p for p in inspect.signature(target).parameters.values()
                  if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and not (p.name == "backbone" and root.endswith("method"))]
    out += ["", "parameters:"] if parameters else ["", "no parameters"]
    source = str(getattr(target, "paper", "") or "")
    kinds = _kinds(target)
    for p in parameters:
        said = told.get(p.name) or _mentioned(about, p.name) or COMMON.get(p.name, "")
        ends = "" if p.default is p.empty else f" (default: {_short(p.default)})"
        if p.default is p.empty:
            ends = " (required)"
        kind = words(kinds[p.name]) if p.name in kinds else ""
        out.append(f"  --{root}.{p.name} {_metavar(p)}{ends}"[:width])
        text = "; ".join(part.rstrip(".") for part in (said, kind) if part) or "see the paper"
        out += textwrap.wrap(_plain(" ".join(text.split())), width, initial_indent=" " * 6, subsequent_indent=" " * 6,
                             break_on_hyphens=False)
    if parameters and source and root.endswith("method"):
        said = f"Defaults are those of {source}, where nothing else is said."
        out += ["", *textwrap.wrap(said, width, break_on_hyphens=False)]
    return "\n".join(line.rstrip() for line in out) + "\n"


def _usage(root: str, name: str, target: Any) -> list[str]:
    """How the part is named, and beside what of our own it can be tried."""
    from ..method import Method
    from ..scenario import Scenario

    needed = [f"--{root}.{p.name} {p.name.upper()}" for p in inspect.signature(target).parameters.values()
              if p.default is p.empty and p.name != "backbone" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    here = " ".join([f"--{root} {name}", *needed])
    if isinstance(target, type) and issubclass(target, Method):
        deploys = target.deploy is not Method.deploy or target.adapts
        line = f"cl-bench run --scenario {'digits_c' if deploys else 'split_digits'} {here}"
    elif isinstance(target, type) and issubclass(target, Scenario):
        wraps = "of" in inspect.signature(target).parameters
        learns = target.experiences is not Scenario.experiences and not wraps
        here += f" --{root}.of digits_c" if wraps else ""
        root_given = f" --{root}.root FOLDER" if "root" in inspect.signature(target).parameters else ""
        line = f"cl-bench run --method {'finetune' if learns else 'source'} {here}{root_given}"
    else:
        line = f"cl-bench run --scenario split_digits --method finetune {here}"
    return [f"usage: {line}", f"       and --{root}.NAME VALUE for any of the parameters below"]


def _list(target: Any, name: str) -> str:
    """Words of a class attribute; nothing for one that only objects can say."""
    held = getattr(target, name, ())
    return ", ".join(sorted(map(str, held))) if isinstance(held, (tuple, list, set, frozenset)) else ""


def _layout(target: Any) -> str:
    layout = getattr(target, "layout", "")
    return f"root is a folder that holds {layout}" if isinstance(layout, str) and layout else ""


def _plain(text: str) -> str:
    """Without the marks of reStructuredText."""
    text = re.sub(r":\w+(?::\w+)?:`~?([^`]*)`", lambda m: m[1].rpartition(".")[2], text)
    return re.sub(r"``([^`]*)``", r"\1", text).replace("::\n", ":\n").replace(r"\ ", "")


def _told(target: Any) -> dict[str, str]:
    """What docstrings say of parameters: the class's own and, for what it passes on, those of the classes before it."""
    found: dict[str, str] = {}
    for made in inspect.getmro(target) if isinstance(target, type) else (target,):
        for part in (made.__doc__, getattr(vars(made).get("__init__"), "__doc__", None)):
            block = re.search(r"\n\s*Args:\n(.*?)(?=\n\s*(?:Raises|Returns|Attributes|Yields):\n|\Z)",
                              inspect.cleandoc(part or ""), re.S)
            if not block:
                continue
            for entry in re.split(r"\n(?=    \S)", "\n" + block[1].strip("\n")):
                head, colon, text = entry.strip().partition(":")
                for word in head.split(",") if colon else ():
                    found.setdefault(word.split("(")[0].strip(" *`"), text.strip())
    return found


def _mentioned(about: str, name: str) -> str:
    """The sentence of a description that speaks of a parameter."""
    for sentence in re.split(r"(?<=[.;:])\s+", " ".join(about.split())):
        if f"``{name}``" in sentence and len(sentence) < 240:
            return sentence.rstrip(".;:")
    return ""


def _kinds(target: Any) -> dict[str, Any]:
    from ..ranges import hints

    return hints(target)


def _short(value: Any) -> str:
    text = str(value) or '""'
    return text if len(text) <= 40 else text[:37] + "..."


def _metavar(p: inspect.Parameter) -> str:
    return p.name.upper()
