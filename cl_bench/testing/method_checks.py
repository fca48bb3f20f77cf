"""The promises of a method, asked one by one on a toy: ``check_method`` asks all, ``checks_for`` lists them for a test each."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ..backbones import Backbone
from ..method import Method
from ..records.source_digest import named_imports
from .promise import Promise
from .promises_answers import ANSWERS, FIRST
from .promises_conduct import CONDUCT
from .report import Finding, Report, Unanswerable
from .trial import Trial
from .walk import own_modules
from .world import undone, unharmed

__all__ = ["Checker", "check_method", "checks_for"]

_ENDS = ("builds from its defaults", "goes through learning or deployment")  # nothing can be asked after these fail


def checks_for(cls: type[Method]) -> list[str]:
    """The names of all checks that apply to ``cls``, in the order in which they are asked.

    Each is a test of its own where it is asked for by name::

        checker = Checker(Mine)

        @pytest.mark.parametrize("check", checks_for(Mine))
        def test_mine(check):
            checker.ask(check).raise_if_failed()
    """
    return [p.name for p in (*FIRST, *ANSWERS, *CONDUCT) if p.when(cls)]


def _imported(files: list[str]) -> None:
    """Import what a method's own file, and the private ones beside it, import of others and only when they need it: what a
    library does when it comes in is not the method's doing. Its author's own modules are watched."""
    for file in map(Path, files):
        for name in (name for path in (file, *file.parent.glob("_*.py")) for name in named_imports(path)):
            if _installed(name):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)


def _installed(name: str) -> bool:
    """Whether a module comes from an installed distribution, and from none of its author's own files."""
    top = name.partition(".")[0]
    return top not in sys.modules and top in _distributions()


@cache
def _distributions() -> frozenset[str]:
    return frozenset(metadata.packages_distributions())


class Checker:
    """Asks one method its checks, by name; what they share (a fit, a stream) is done once.

    Args:
        name: what reports call the method.
        backbone: makes the backbone; by default the embedded one that the method accepts.
        hparams: constructor arguments other than the defaults.
    """

    def __init__(self, cls: type[Method], *, name: str = "", backbone: Callable[[], Backbone] | None = None,
                 hparams: dict[str, Any] | None = None) -> None:
        self.cls, self.name = cls, name or cls.__name__
        self.files = [f for m in own_modules(cls) if (f := getattr(m, "__file__", None))]
        _imported(self.files)
        self.exempt = dict(cls.exempt)
        self.trial = Trial(cls, backbone, hparams)
        self.first: dict[str, Finding] = {}

    def ask(self, check: str, report: Report | None = None) -> Report:
        """The answer to one check, in a report of its own or added to ``report``."""
        report = Report(self.name, files=self.files) if report is None else report
        promise = next(p for p in (*FIRST, *ANSWERS, *CONDUCT) if p.name == check)
        with undone():  # one question's traces must not hide another's
            if promise in FIRST:
                report.findings.append(self._first(promise))
            else:
                report.run(check, lambda: self._later(promise), self.exempt)
        return report

    def _first(self, promise: Promise) -> Finding:
        if promise.name not in self.first:
            lone = Report(self.name, files=self.files)
            with undone():
                lone.run(promise.name, lambda: promise.ask(self.trial), self.exempt)
            self.first[promise.name] = lone.findings[0]
        return self.first[promise.name]

    def _later(self, promise: Promise) -> str | None:
        for one in FIRST[2:]:
            if one.name != "parameter name = attribute name" and self._first(one).state == "failed":
                raise Unanswerable(f"not asked, because it does not keep '{one.name}'")
        return promise.ask(self.trial)


def check_method(cls: type[Method], *, name: str = "", backbone: Callable[[], Backbone] | None = None,
                 hparams: dict[str, Any] | None = None) -> Report:
    """Ask every promise of the contract of ``cls`` on a toy scenario of real digits; what it does to the process is undone.

    Args:
        name, backbone, hparams: as of :class:`Checker`.
    """
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        said = f"{cls!r} is not a subclass of cl_bench.Method"
        return Report(name or getattr(cls, "__name__", repr(cls)), [Finding("is a Method", "failed", said)])
    checker = Checker(cls, name=name, backbone=backbone, hparams=hparams)
    report = Report(checker.name, files=checker.files)
    with unharmed(cls):
        for check in checks_for(cls):
            checker.ask(check, report)
            if report.findings[-1].state == "failed" and check in _ENDS:
                break
    return report


