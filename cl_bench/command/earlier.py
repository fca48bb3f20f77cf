"""What a folder of runs holds already of the runs that a suite asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .task import key_of

__all__ = ["Earlier"]

_OF_THE_CODE = ("protocol_version", "metrics", "seed_policy")  # what a change of cl-bench itself may change


class Earlier:
    """What a folder of runs holds of the same configs, made by the same code from the same data and weights.

    ``protocol``: of a config that :meth:`knows`, the fields of the protocol that it has today; None: not asked.
    """

    protocol: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    def __init__(self, runs: Path, keep: bool, again: bool = False) -> None:
        from ..records.results import load_all

        self.keep = keep
        self.packages: dict[str, str | None] | None = None
        self.every = load_all(runs) if runs.is_dir() else []  # whatever it is of: how long runs took
        self.runs: dict[str, list[Any]] = {}
        for run in self.every if not again else ():
            self.runs.setdefault(key_of(run.record.get("config") or {}), []).append(run)

    def knows(self, config: Mapping[str, Any]) -> bool:
        """Whether there is any run of a config."""
        return key_of(config) in self.runs

    def finished(self, config: Mapping[str, Any]) -> Path | None:
        from ..records.results import complete

        for run in self._of(config, self.keep):
            if run.record["status"] == "finished" and complete(run.folder):
                return Path(run.folder)
        return None

    def begun(self, config: Mapping[str, Any]) -> Path | None:
        """The latest that did not finish: it goes on from its last checkpoint, or from its start where it has none."""
        for run in self._of(config, False):
            if run.record["status"] != "finished":
                return Path(run.folder)
        return None

    def _of(self, config: Mapping[str, Any], keep: bool) -> list[Any]:
        """Runs of this config, and of the code and data that are here now, latest first."""
        from ..records.source_digest import same
        from .rehearsal import sources

        if not (runs := self.runs.get(key_of(config))):
            return []
        code = sources(config)
        return [run for run in reversed(runs) if self._same_data(run, config, keep) and all(
            (keep and ours) or same(run.record[root].get("source_digest"), digest) for root, (digest, ours) in code.items()
        ) and (keep or self._same_tools(run.record.get("environment") or {}))]

    def _same_tools(self, before: Mapping[str, Any]) -> bool:
        """Whether cl-bench's own code, and the versions of what computes, are those of a record; a package that one side has
        not decided nothing."""
        from ..records.results import COMPUTING, versions
        from ..records.source_digest import code_digest, same

        if self.packages is None:
            self.packages = versions(COMPUTING)
        told = before.get("packages") or {}
        return same(before.get("code_digest"), code_digest()) and all(
            told.get(name) in (None, now) for name, now in self.packages.items() if now is not None)

    def _same_data(self, run: Any, config: Mapping[str, Any], keep: bool) -> bool:
        if self.protocol is None:
            return True
        told = run.record["fingerprint"].get("fields") or {}
        return all(told[name] == value for name, value in self.protocol(config).items()
                   if name in told and not (keep and name in _OF_THE_CODE))
