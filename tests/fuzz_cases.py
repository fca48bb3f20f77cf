"""Command lines and configs with something wrong in them, drawn from a number: the same number is the same case.

``python tests/fuzz_cases.py 17`` (and ``--seed S``) prints case 17; ``pytest tests/test_fuzz.py --fuzz-case 17`` runs it.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import math
import random
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cl_bench.ranges import Range, hints, kinds
from cl_bench.registry import GROUPS, entries, find

NASTY: tuple[Any, ...] = (
    -3, -1, 0, 1, 2, 3, 10**10, 2**63, 2**64, -2**63 - 1, 10**30, True, False, None, 0.5, 1.5, -0.5, 3.0, 1e30, math.nan,
    math.inf, -math.inf, "", " ", "x", "é", "\0", "\ud800", "x" * 5000, "nan", "inf", "1e3", "0x10", "1_000", "3.0", "[", "(",
    "{", "[1", "a: b", "&a [*a]", "../../x", "/dev/zero", "/", "~nobody/x", "!!int x", "--", "-", [], {}, [1], [-3], [math.nan],
    [[]],
    {"a": 1}, {"class_path": "ncm"}, {"class_path": "finetune", "init_args": {"lrr": 1}}, {"init_args": {}}, "ncm", "digits_c",
    "cl_bench.Method", "os:system", "sys.exit", "builtins:int", "json", "json:", ":x", "a:b:c", "x.py:Y", "cl_bench_methods",
    "torch.nn.Linear", "__main__:Nothing",
)
PIECES = ("{", "}", "[", "]", ":", ",", "*a", "&a ", "!!int ", "#", "\t", "'", '"', "- ", "\0", "%", "<<: ", "|", ">", "?",
          "\u2028", "é", "\ufeff", "...", "---\n")
WORDS = ("--help.x", "--method.help", "--scenario.of.of", "--x.y.z", "--", "-x", "--=", "--.", "--method.", "--config",
         "--seed=", "--resume", "--debug=1", "--method.init_args.lr", "--scenario.of")
SETTINGS = ("seed", "checkpoint", "checkpoint_every", "device", "precision", "workers", "threads", "optimizers",
            "source.epochs", "source.lr", "source.batch_size", "compute.threads", "compute", "source", "config")
# One image per class or two, one pass, two steps: every run of every case ends in about a second.
SMALL = {
    "iterations": 2, "views": 2, "augmentations": 2, "images": 8, "patterns": 8, "buffer_size": 8, "replay": 8, "samples": 4,
    "prototype_samples": 8, "fisher_samples": 8, "fisher_images": 8, "sample_size": 4, "m": 32, "memory": 8, "scan_size": 4,
    "warmup": 0, "supports": 2, "steps": 2, "adapter_batch": 8,
}
LEARN = {"class_path": "split_digits", "init_args": {"per_class": 2, "increment": 5}}
STREAM = {"class_path": "digits_c", "init_args": {"corruptions": "fog", "test_batch_size": 200}}
WRAPPERS = ("recurring", "correlated", "mixed", "shuffled", "episodic", "small_batch", "label_delay", "gradual", "online",
            "continual_dynamic_change", "label_shift", "long_tailed", "constant_speed", "per_domain", "corrupted",
            "return_to_source", "continual")
EMBEDDED = ("split_digits", "digits_c", "permuted_digits", "rotated_digits", "coloured_digits", "deployed_digits", *WRAPPERS)
COMMANDS = (
    ["list", "methods"], ["list", "adapters", "--backbone", "glyph_vit"], ["compare", "RUNS"], ["select", "RUNS"],
    ["check", "ncm"], ["compare", "RUNS", "--by", "fingerprint", "--export", "RUNS/t.csv"], ["run", "--resume", "RUNS/x"],
    ["sync", "RUNS", "--tracking", "none"], ["suite", "quickstart", "--jobs", "1"], ["ui", "RUNS"], ["serve", "RUNS"],
)


@dataclass
class Case:
    """One call of the command line. ``RUNS`` in ``argv`` stands for its folder of records, ``FILE`` for its config."""

    number: int
    kind: str
    argv: list[str]
    file: bytes | None = None
    told: dict[str, Any] = field(default_factory=dict)

    def words(self, runs: Path, file: Path) -> list[str]:
        """The command line itself; writes the config where there is one."""
        if self.file is not None:
            file.write_bytes(self.file)
        return [word.replace("RUNS", str(runs)).replace("FILE", str(file)) for word in self.argv]

    def __str__(self) -> str:
        text = f"case {self.number} ({self.kind}): cl-bench {' '.join(map(repr, self.argv))}"
        return text if self.file is None else f"{text}\nFILE: {self.file[:2000]!r}"


def case(number: int, seed: int = 0) -> Case:
    """Case ``number`` of ``seed``."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    made = KINDS[kind][0](rng)
    return Case(number, kind, made[0], made[1] if len(made) > 1 else None)


# ------------------------------------------------------------------ what is valid
@functools.cache
def options(group: str, name: str) -> dict[str, Any]:
    """The types of the options of one class."""
    known = hints(find(GROUPS[group], name))
    return {k: v for k, v in known.items() if k not in ("backbone", "return", "self")}


def small(name: str) -> dict[str, Any]:
    """Options under which a method is done in no time."""
    given = {k: 1 if k == "epochs" or k.endswith("_epochs") else SMALL[k] for k in options("methods", name)
             if k in SMALL or k == "epochs" or k.endswith("_epochs")}
    if name in ("coda_prompt", "inflora"):
        given["tasks"] = 2
    return {**given, "pool": 4} if name == "coda_prompt" else given


def valid(rng: random.Random) -> dict[str, Any]:
    """A run that would end well."""
    methods = sorted(entries(GROUPS["methods"]))
    name = rng.choice(methods) if rng.random() < 0.5 else rng.choice(["ncm", "finetune", "tent", "source"])
    family = entries(GROUPS["methods"])[name].facts.get("family")
    scenario: dict[str, Any] = STREAM if family == "test-time" else LEARN
    config = {
        "scenario": {**scenario, "init_args": dict(scenario["init_args"])},
        "method": {"class_path": name, "init_args": small(name)}, "seed": rng.randrange(3), "checkpoint": False,
        "compute": {"device": "cpu"}, "source": {"epochs": 1, "batch_size": 16},
    }
    if rng.random() < 0.3:
        other = rng.choice(EMBEDDED)
        if other in WRAPPERS:
            inner = config["scenario"]
            config["scenario"] = {"class_path": other, "init_args": {"of": inner}}
            if other == "recurring":
                config["scenario"]["init_args"]["visits"] = 2
        elif family != "test-time" and other not in ("digits_c", "deployed_digits"):
            config["scenario"] = {"class_path": other}
    return config


def words(config: dict[str, Any], root: str = "") -> list[str]:
    """A config as options of a command line."""
    out: list[str] = []
    for key, value in config.items():
        name = f"{root}.{key}" if root else key
        if isinstance(value, dict) and "class_path" in value:
            out += [f"--{name}", str(value["class_path"]), *words(value.get("init_args") or {}, name)]
        elif isinstance(value, dict):
            out += words(value, name)
        else:
            out += [f"--{name}", typed(value)]
    return out


def typed(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("...\n").strip()


def few_digits(monkeypatch: Any) -> None:
    """Six images of each digit, two of them for testing, in place of 1,797: a run takes a moment."""
    import torch

    from cl_bench.data import digits
    from cl_bench.data.tensor import TensorData

    whole, _ = digits._load()
    rows = torch.cat([(whole.y == digit).nonzero()[:6, 0] for digit in range(10)])
    few = TensorData(whole.x[rows], whole.y[rows])
    monkeypatch.setattr(digits, "_load", lambda: (few, torch.arange(60) % 6 < 2))


# ------------------------------------------------------------------ what is done to it
def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside mappings and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for k, v in inner for found in [(*path, k), *places(v, (*path, k))]]


def spoil(rng: random.Random, tree: Any) -> Any:
    """Replace, drop, add or misspell something in a mapping."""
    spots = places(tree)
    if not spots:
        return rng.choice(NASTY)
    *way, last = rng.choice(spots)
    here = tree
    for step in way:
        here = here[step]
    what = rng.random()
    if what < 0.5:
        here[last] = rng.choice(NASTY)
    elif what < 0.65:
        del here[last]
    elif what < 0.8 and isinstance(here, dict):
        here[misspelt(rng, str(last))] = here.pop(last)
    elif isinstance(here, dict):
        here[rng.choice(["x", "lrr", "init_args", "class_path", "of", "", "seed", "0"])] = rng.choice(NASTY)
    else:
        here.append(rng.choice(NASTY))
    return tree


def misspelt(rng: random.Random, word: str) -> str:
    """One letter more, less or another."""
    k = rng.randrange(len(word) + 1)
    return word[:k] + rng.choice(["", *string.ascii_lowercase, ".", "-", "=", " ", "é"]) + word[k + rng.randrange(2):]


def scribble(rng: random.Random, text: str) -> bytes:
    """Characters and lines of a file moved, doubled, dropped or replaced."""
    for _ in range(rng.randint(1, 3)):
        k = rng.randrange(len(text) + 1)
        lines = text.split("\n")
        what = rng.randrange(6)
        if what == 0:
            text = text[:k] + text[k + 1:]
        elif what == 1:
            text = text[:k] + rng.choice(PIECES) + text[k:]
        elif what == 2:
            text = "\n".join([*lines, rng.choice(lines)])
        elif what == 3:
            text = "\n".join(line for line in lines if rng.random() > 0.2)
        elif what == 4:
            rng.shuffle(lines)
            text = "\n".join(lines)
        else:
            text = text[:k]
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.6:
        return data
    return rng.choice([b"\xef\xbb\xbf" + data, text.encode("utf-16", "replace"), data + b"\xff", data.replace(b"\n", b"\r\n")])


# ------------------------------------------------------------------ the kinds of case
def _valid(rng: random.Random) -> tuple[list[str]]:
    """Nothing is wrong; an option or two at the edge of its range."""
    config = valid(rng)
    known = options("methods", config["method"]["class_path"])
    for name in rng.sample(sorted(known), min(len(known), rng.randrange(3))):
        spans = [mark for kind, mark in kinds(known[name]) if kind in (int, float) and isinstance(mark, Range)]
        if spans and name not in config["method"]["init_args"]:
            edge = spans[0].least if rng.random() < 0.7 or spans[0].most > 1 else spans[0].most
            config["method"]["init_args"][name] = edge + 1e-3 if spans[0].above else edge
    return (["run", *words(config)],)


def _value(rng: random.Random) -> tuple[list[str]]:
    """One option of one class at a value that its type or range may not hold."""
    config = valid(rng)
    part = rng.choice(["method", "method", "scenario", "backbone"])
    if part == "backbone":
        config["backbone"] = {"class_path": rng.choice(["glyph_vit", "glyph_resnet"]), "init_args": {}}
    if part == "scenario" and rng.random() < 0.6:
        name = rng.choice(EMBEDDED)
        config["scenario"] = {"class_path": name, "init_args": {"visits": 2} if name == "recurring" else {}}
    known = options(f"{part}s", config[part]["class_path"])
    if known:
        name = rng.choice(sorted(known))
        numbers = {kind for kind, _ in kinds(known[name])} & {int, float}
        values = [v for v in NASTY if isinstance(v, (int, float))] if numbers and rng.random() < 0.7 else NASTY
        config[part].setdefault("init_args", {})[name] = rng.choice(values)
    return (["run", *words(config)],)


def _settings(rng: random.Random) -> tuple[list[str]]:
    """Seeds, devices, precisions, threads, and how the source is trained."""
    config = valid(rng)
    where = rng.choice(SETTINGS)
    value = rng.choice([*NASTY, 100000, "16-true", "16-mixed", "bf16-true", "64-true", "cuda", "cuda:7", "cpu:0", "fused",
                        "apex"])
    if (where, value) == ("source.epochs", 100000):
        value = 3  # a valid wish, of hours
    return (["run", *words(config), f"--{where}", typed(value)],)


def _line(rng: random.Random) -> tuple[list[str]]:
    """A command line with words dropped, doubled, swapped, misspelt or from elsewhere."""
    line = ["run", *words(valid(rng))]
    for _ in range(rng.randint(1, 3)):
        k = rng.randrange(1, len(line))
        what = rng.randrange(6)
        if what == 0:
            del line[k]
        elif what == 1:
            line.insert(k, line[k])
        elif what == 2:
            line[k] = misspelt(rng, line[k])
        elif what == 3:
            j = rng.randrange(1, len(line))
            line[k], line[j] = line[j], line[k]
        elif what == 4:
            line[k] = typed(rng.choice(NASTY))
        else:
            line.insert(k, rng.choice(WORDS))
        if len(line) < 2:
            break
    return (line,)


def _file(rng: random.Random) -> tuple[list[str], bytes]:
    """A config file of which a value, a key or a part is wrong."""
    tree: Any = valid(rng)
    for _ in range(rng.randint(1, 2)):
        tree = spoil(rng, tree)
    return ["run", "--config", "FILE"], yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def _text(rng: random.Random) -> tuple[list[str], bytes]:
    """A config file whose text was scribbled in."""
    text = yaml.safe_dump(valid(rng), default_flow_style=rng.choice([None, False, True]))
    return ["run", "--config", "FILE"], scribble(rng, text)


def _suite(rng: random.Random) -> tuple[list[str], bytes]:
    """A suite of one run, spoilt."""
    config = valid(rng)
    tree: Any = {"name": "s", "about": "a", "seeds": [0], "compute": config["compute"], "source": config["source"],
                 "runs": [{"scenario": config["scenario"], "methods": [config["method"]]}]}
    if rng.random() < 0.3:
        tree["runs"][0]["orders"] = rng.choice(["seed", [0], [1, 2]])
    if rng.random() < 0.4:
        return (["suite", "FILE", "--jobs", "1", "--checkpoint", "false"], scribble(rng, yaml.safe_dump(tree)))
    tree = spoil(rng, tree)
    return ["suite", "FILE", "--jobs", "1"], yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def _command(rng: random.Random) -> tuple[list[str]]:
    """Another command than a run, with a word wrong."""
    line = list(rng.choice(COMMANDS))
    k = rng.randrange(len(line))
    line[k] = typed(rng.choice(NASTY)) if rng.random() < 0.7 else misspelt(rng, line[k])
    if line[:1] in (["serve"], ["ui"], ["suite"]):
        line.append("--no-such-option=1" if line[0] != "suite" else "--compute.no_such=1")  # or it would start to serve
    return (line,)


KINDS: dict[str, tuple[Any, int]] = {
    "value": (_value, 30), "settings": (_settings, 10), "line": (_line, 20), "file": (_file, 15), "text": (_text, 10),
    "suite": (_suite, 7), "command": (_command, 8), "valid": (_valid, 6),
}


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=inspect.getdoc(case))
    p.add_argument("number", type=int)
    p.add_argument("--seed", type=int, default=0)
    print(case(**vars(p.parse_args())))
