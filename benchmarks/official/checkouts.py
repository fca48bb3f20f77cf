"""Official repositories at the commit that a table was made from: found, refused at another, and imported on their own.

Nothing of theirs is kept: the files of the pinned commit are unpacked into a temporary folder for as long as a process
runs. Each repository is imported in a process of its own, because many of them call their packages ``models`` and ``utils``.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

#: name: (repository on GitHub, commit, what of it is needed)
PINS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "mammoth": ("aimagelab/mammoth", "e75a491c69fd729edeb01431afb753d9157d9a81", ("models", "utils")),
    "gpm": ("sahagobinda/GPM", "1a238ec9d2ca30bae8fd1707f161cc6bd093c72a", ("main_cifar100.py",)),
    "trgp": ("LYang-666/TRGP", "a4b67bcd00434f2bea93caff30899a040d8982dc", ("main_cifar100.py",)),
    "exssnet": ("prateeky2806/exessnet", "1e768f855eeb708b7a5e9189acc725f89bd7c98e", ("models", "trainers")),
    "facil": ("mmasana/FACIL", "e09d2c83320a1aa945a6157d4875437515824dc9", ("src",)),
    "pilot": ("LAMDA-CL/LAMDA-PILOT", "5240714d3d6071aca824f8aed4a92a46ac6f883c",
              ("models", "utils", "backbone", "trainer.py")),
    "ease": ("sun-hailong/CVPR24-Ease", "6d67508ed8b7c4d23350ed4eb28c123914b40ae3", ("models", "backbone")),
    "slca": ("GengDavid/SLCA", "169d4e6b91e3ca30caa717200c1944981c4426d1", ("models", "utils", "convs")),
    "ranpac": ("RanPAC/RanPAC", "012927f86e8d95dc9e7c6015a5e1048e6604c8b6", ("RanPAC.py", "utils")),
    "aper": ("zhoudw-zdw/RevisitingCIL", "a2e6b71f6a2fed4421609a0917eea861fa387c76", ("models", "convs", "utils")),
    "mos": ("sun-hailong/AAAI25-MOS", "8d5e07c1535176ca2fa0c36881f6fd630418ccbc", ("models", "backbone", "utils")),
    "inflora": ("liangyanshuo/InfLoRA", "e08b00edd54f2f10cf2f9826eae7d44fdcb6354b", ("methods", "models", "utils")),
    "sdlora": ("WuYichen-97/SD-Lora-CL", "8bacded6eb44786db071f66fb90a87dd660d94ea", ("models", "backbone", "utils")),
    "coda": ("GT-RIPL/CODA-Prompt", "6417d4f68754be68b697c7ca2323ee61e791e1a3", ("models", "learners", "utils")),
    "lae": ("gqk/LAE", "1680e496b7ac7ffa408b13d3b1a53a9be9b87696", ("libml", "main.py")),
    "sema": ("huiyiwang01/SEMA-CL", "5a4551262d659c6d93dd6c50ff814e028554fbf3", ("models", "backbone", "utils")),
    "olora": ("cmnfriend/O-LoRA", "07117e1fc4a5f5ad9308a815a42cee8f46502dc8", ("src",)),
    "codyra": ("Artificer-AI-Lab/CoDyRA", "c1691e4c4c8a331acaaeb7dfa5e37bcb974cf0c8", ("models", "loralib", "utils.py")),
    "tta": ("mariodoebler/test-time-adaptation", "8b2ed63255d906b6b0afaefc6ae630b9ec4bdaa1",
            ("classification/methods", "classification/utils", "classification/augmentations")),
    "memo": ("zhangmarvin/memo", "228b2908d271c954ef8bf19cf143ede3b2fa8e3e",
             ("imagenet-exps/utils", "imagenet-exps/test_calls", "cifar-10-exps/utils", "cifar-10-exps/test_calls",
              "cifar-10-exps/models")),
    "vida": ("Yangsenqiao/vida", "c26b0db2eac6886856aec64eb2032f68654d49f5", ("cifar", "imagenet")),
    "shot": ("tim-learn/SHOT", "f7d555a0d53b525b885e5ef2a887a267a5be3c36", ("object",)),
    "t3a": ("matsuolab/T3A", "ff8cde5f06f61035c957720c6275c33893e0f564", ("domainbed",)),
    "note": ("TaesikGong/NOTE", "a714a2a2a9406903ba787b0bc240a95dd0342de5", ("learner", "utils", "conf.py")),
    "rotta": ("BIT-DA/RoTTA", "67e34c900cdd355fc07e55edd4c577ea7b8ebcc9", ("core/adapter", "core/utils")),
    "ccc": ("oripress/CCC", "656dec36b8f5b4dbf64fe44c73a9a1326b9588ff", ("models",)),
    "adapterhub": ("adapter-hub/adapters", "88f18ebd6c127f0e0ddf7c76cb84b37a39b82c12",
                   ("src/adapters/methods", "src/adapters/configuration")),
    "libcontinual": ("RL-VIG/LibContinual", "a399ed4b0058e064871a212588118b97a1e4dfac", ("core/utils/utils.py",)),
    "tpt": ("azshue/TPT", "63ecbace79694205d7884e63fdc3137a200f0b0e", ("clip", "tpt_classification.py")),
    "c_tpt": ("hee-suk-yoon/C-TPT", "085e6c2e3d2da647ca42dcef163e0cbd4bf30a67", ("clip", "tpt_classification.py")),
    "r_tpt": ("TomSheng21/R-TPT", "e085f134eb299083ccc97327b316272fc40393b8", ("clip", "rtpt.py")),
    "coop": ("KaiyangZhou/CoOp", "ff61507c790454bce7c5052c3ac39e60772f1f89", ("clip", "trainers")),
    "maple": ("muzairkhattak/multimodal-prompt-learning", "69bce21ae8eda80ad6187534b2dce09cf6c59e17", ("clip", "trainers")),
    "coprompt": ("ShuvenduRoy/CoPrompt", "a2a6c12e3622cfe4b3a127f4ba0c4f3eb841418c", ("clip", "trainers")),
    "clip_svd": ("HealthX-Lab/CLIP-SVD", "022b1eda02df7a5a1311d0868d49874d69b0010e", ("clip", "svf_utils")),
    "ramt": ("wuw2019/R-AMT", "07f8d2c36670e1fb9498aab169b9f3790ccda66b", ("code/clip", "code/modules", "code/trainers")),
    "moe_adapters": ("JiazuoYu/MoE-Adapters4CL", "4572d97d28d3a7b45e8808bee1d3c64263f425f2", ("mtil/clip",)),
    "c3box": ("LAMDA-CL/C3Box", "1378ab2118f04d4ca0d4782d22bd0098a3eeb666", ("models", "utils", "backbone")),
    "continuum": ("Continvvm/continuum", "43ba0090dec7e5d6976c57df05cb5ef5225e88f2", ("continuum/metrics",)),
}

#: name: package that is installed, in place of a checkout
PACKAGES = {"avalanche": "avalanche-lib", "peft": "peft"}


@dataclass
class Row:
    """One comparison. ``bound``: the largest difference allowed; where ``expected``, a reason why there is one: it must then
    lie above ``bound``, so that a difference that went away is noticed as well."""

    what: str
    compared: str
    difference: float
    bound: float
    expected: str = ""
    source: str = ""

    @property
    def holds(self) -> bool:
        """Whether the row is as it should be."""
        return self.difference > self.bound if self.expected else self.difference <= self.bound


def found(folder: Path, name: str) -> Path:
    """The git repository of ``name`` under ``folder``, at its pinned commit.

    ``folder/name``, ``folder/name.git`` or ``folder/owner+name/repo``, with or without a work tree.

    Raises:
        SystemExit: with one sentence, if there is none or it stands at another commit.
    """
    repository, pin, _ = PINS[name]
    owner, _, short = repository.partition("/")
    places = [folder / name, folder / f"{name}.git", folder / short, folder / f"{owner}+{short}" / "repo"]
    path = next((p for p in places if p.is_dir()), None)
    if path is None:
        raise SystemExit(f"{folder} has no {name}: git clone https://github.com/{repository} {folder / name}, then "
                         f"git -C {folder / name} checkout {pin}")
    asked = subprocess.run(["git", "-C", str(path), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if asked.stdout.strip() != pin:
        at = asked.stdout.strip() or "no commit"
        raise SystemExit(f"{path} is at {at}, and the comparison is written for {pin}: git -C {path} checkout {pin}")
    return path


@contextmanager
def unpacked(folder: Path, name: str) -> Iterator[Path]:
    """The needed files of the pinned commit in a temporary folder."""
    path = found(folder, name)
    _, pin, needed = PINS[name]
    with tempfile.TemporaryDirectory() as where:
        packed = subprocess.run(["git", "-C", str(path), "archive", pin, *needed], capture_output=True, check=True).stdout
        subprocess.run(["tar", "x", "-C", where], input=packed, check=True)
        yield Path(where)


class _StandIn(MagicMock):
    """A module of which only the name is needed. A class made from one of its attributes is an ordinary class."""

    __path__: list[str] = []

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return ()


class StandIns:
    """Finder of modules that official files import and the comparison does not use (loggers, other data sets, drawing)."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        hit = any(name == n or name.startswith(n + ".") for n in self.names)
        return ModuleSpec(name, self, is_package=True) if hit else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> Any:
        module = _StandIn(name=spec.name)
        module.__name__, module.__spec__, module.__file__, module.__all__ = spec.name, spec, spec.name, []
        return module

    def exec_module(self, module: Any) -> None:
        return None


@contextmanager
def importable(tree: Path, stand_ins: Sequence[str], empty: Sequence[str] = ()) -> Iterator[None]:
    """Inside, modules under ``tree`` come first. ``empty``: packages whose own ``__init__`` is not run."""
    import types

    sys.meta_path.insert(0, StandIns(stand_ins))  # type: ignore[arg-type]
    sys.path.insert(0, str(tree))
    for name in empty:
        package = types.ModuleType(name)
        package.__path__ = [str(tree / name.replace(".", "/"))]
        sys.modules[name] = package
    here = os.getcwd()
    os.chdir(tree)
    try:
        yield
    finally:
        os.chdir(here)


@dataclass(frozen=True)
class Beside:
    """Columns of another script in the same table: their titles, and their cells by learner (:attr:`Row.what`)."""

    columns: tuple[str, ...]
    cells: dict[str, tuple[str, ...]]


def kept(out: Path) -> tuple[list[Row], list[str]]:
    """The rows that lie beside the page ``out``, and the repositories that they are of."""
    held = json.loads(out.with_suffix(".json").read_text())
    return [Row(**row) for rows in held.values() for row in rows], [*held]


def asked(text: str, kinds: dict[str, Any], out: Path, head: str, beside: Callable[[], Beside] | None = None) -> int:
    """The command line that the tables share: all repositories in processes of their own, then the table.

    kinds: what compares, by repository: ``(folder of the official files) -> rows``, or where that stands, ``module:name``.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkouts", type=Path, required=True, help="folder with the official repositories")
    parser.add_argument("--only", nargs="+", choices=sorted(kinds), help="these repositories alone; other rows stay")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    chosen = given.only or list(kinds)
    for name in chosen:
        if name in PINS:
            found(given.checkouts, name)  # all of them before any work
    for name in chosen:
        if isinstance(kinds[name], str):
            importlib.import_module(kinds[name].partition(":")[0])  # once, before the processes part
    file = out.with_suffix(".json")
    held: dict[str, list[dict[str, Any]]] = json.loads(file.read_text()) if file.exists() else {}
    rows = list[Row]()
    for name in chosen:
        with multiprocessing.get_context("fork").Pool(1) as alone:
            rows += (new := alone.apply(_compared, (given.checkouts.resolve(), name, kinds[name])))
        for row in new:
            print(f"{'ok  ' if row.holds else 'FAIL'} {row.difference:9.1e} (bound {row.bound:.0e}) {row.what}: {row.compared}",
                  flush=True)
        held[name] = [asdict(row) for row in new]
        file.write_text(json.dumps({k: held[k] for k in kinds if k in held}, indent=1) + "\n")
        out.write_text(table(*kept(out), head, beside and beside()))
    return 0 if all(row.holds for row in rows) else 1


def _compared(checkouts: Path, name: str, compare: Any) -> list[Row]:
    """The rows of one repository, in a process that imports no other's."""
    if isinstance(compare, str):
        module, _, function = compare.partition(":")
        compare = getattr(importlib.import_module(module), function)
    with unpacked(checkouts, name) if name in PINS else nullcontext(Path()) as tree, redirect_stdout(io.StringIO()):
        return list(compare(tree))


def table(rows: list[Row], names: Sequence[str], head: str, beside: Beside | None = None) -> str:
    """The page. ``beside``: further columns, their cells by learner, shown once, where its answers are compared."""
    more = beside or Beside((), {})
    lines = [head.strip(), "", "| " + " | ".join(("what", "compared", "difference", "bound", "", *more.columns)) + " |",
             "|" + "---|" * 5 + "--:|" * len(more.columns)]
    at = {row.what: k for k, row in reversed([*enumerate(rows)]) if row.compared.startswith(("logits", "answers"))}
    for k, row in enumerate(rows):
        state = ("expected: " + row.expected if row.expected else "equal") if row.holds else "**not as expected**"
        bound = f"{'>' if row.expected else '<='} {row.bound:.0e}"
        here = more.cells.get(row.what, ()) if at.get(row.what) == k else ()
        cells = [row.what, row.compared, f"{row.difference:.1e}", bound, state, *(here or [""] * len(more.columns))]
        lines.append("| " + " | ".join(cells) + " |")
    wrong = sum(not row.holds for row in rows)
    same = sum(row.holds and not row.expected for row in rows)
    lines += ["", f"{same} rows equal within their bound, {sum(row.holds and bool(row.expected) for row in rows)} with a "
              f"difference that is expected and named, {wrong} otherwise.", "", "Repositories:", ""]
    lines += [f"- {name}: {PINS[name][0]} at `{PINS[name][1][:12]}`" if name in PINS else f"- {name} {version(PACKAGES[name])}"
              for name in names]
    lines += ["", f"Python {platform.python_version()}, torch {version('torch')}, one thread of a CPU."]
    return "\n".join(lines) + "\n"
