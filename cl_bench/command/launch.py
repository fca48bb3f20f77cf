"""Launchers by name, and their options, which stand on the command line beside those of the runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import UserError
from ..ranges import hints
from .launchers import local
from .typed import Reader, Word

__all__ = ["launcher_of", "needs_package"]

_OURS = ("configs", "run", "workers")


def launcher_of(name: str, words: Sequence[str]) -> tuple[Callable[..., Any], dict[str, Any], list[str]]:
    """A launcher, its own options from the words of a command line, and the words that are left.

    The signature is the schema: ``--gpus-per-run 0.5`` or ``--launcher.gpus_per_run 0.5`` is its keyword ``gpus_per_run``.

    Raises:
        UserError: where there is no such launcher, or an option has no value or one that its type does not take.
    """
    from ..registry import GROUPS, find

    found = local if name == "local" else find(GROUPS["launchers"], name)
    try:
        signature = inspect.signature(found)
        signature.bind((), None, workers=0)
    except (TypeError, ValueError) as fault:
        raise UserError(f"{name} is no launcher: it must take configs, run and workers, as cl_bench.command.launchers.Launcher "
                        "says.") from fault
    own = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in _OURS]
    known, options, rest = hints(found), dict[str, Any](), []
    tokens = list(words)
    while tokens:
        token = tokens.pop(0)
        option, equals, value = token.partition("=")
        key = option.removeprefix("--").removeprefix("launcher.").replace("-", "_")
        if not option.startswith("--") or (key not in own and not option.startswith("--launcher.")):
            rest.append(token)
            continue
        if key not in own:
            raise UserError(f"launcher {name} has no option {key!r}; it takes {', '.join(own) or 'none'}.")
        if not equals:
            if not tokens or tokens[0].startswith("--"):
                raise UserError(f"{option} needs a value.")
            value = tokens.pop(0)
        options[key] = Reader(lambda name, base, value: value).read(option.removeprefix("--"), known.get(key, Any), Word(value))
    return found, options, rest


def needs_package(module: str, extra: str, launcher: str) -> Any:
    """The module that a launcher stands on.

    Raises:
        UserError: where it is not installed, with the command that installs it.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as fault:
        raise UserError(f"--launcher {launcher} needs the package {module}, which is not installed: "
                        f"pip install 'cl-bench[{extra}]'.") from fault
