"""Runs as tasks of a Ray cluster, or of a Ray that is started on this machine for as long as the suite goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError, told
from ..ranges import Amount, Text, Whole
from .launch import needs_package
from .launchers import Config, Result, cores
from .parcel import pack, unpack
from .task import Task

__all__ = ["ray"]


def ray(configs: Iterable[Config], run: Task, *, workers: Whole = 0, address: Text = "auto", cpus_per_run: Amount = 1.0,
        gpus_per_run: Amount = 0.0, memory_per_run: Amount = 0.0, bring_back: bool = False,
        ) -> Iterator[tuple[int, str, str | None]]:
    """One Ray task per run. A worker or node that dies costs the runs it had; the same command goes on with them.

    Args:
        workers: runs at once; 0: as many as the cluster has room for.
        address: of a cluster (``ray://head:10001``, ``head:6379``); ``auto``: the one that ``RAY_ADDRESS`` names or that runs
            on this machine, else one of this machine alone; ``local``: always that.
        cpus_per_run: cores that a run asks for.
        gpus_per_run: GPUs that a run asks for; 0.5 puts two on each.
        memory_per_run: GiB that a run asks for.
        bring_back: machines share no folder of records: each run comes back as one archive.

    Raises:
        UserError: where Ray is not installed or the cluster cannot be reached.
    """
    here = needs_package("ray", "ray", "ray")
    mine = not here.is_initialized()
    if mine:
        _join(here, address)
    asks: dict[str, Any] = {"num_cpus": cpus_per_run, "num_gpus": gpus_per_run, "max_retries": 0}
    if memory_per_run:
        asks["memory"] = int(memory_per_run * 2**30)
    remote = here.remote(_there).options(**asks)
    Path(run.runs).mkdir(parents=True, exist_ok=True)
    source, pending = enumerate(configs), dict[Any, int]()
    orderly = False
    try:
        while True:
            while len(pending) < (workers or _room(here, cpus_per_run, gpus_per_run)):
                if (item := next(source, None)) is None:
                    break
                begun = run.begun(item[1])
                parcel = pack(begun) if bring_back and begun is not None else None
                pending[remote.remote(run, dict(item[1]), os.getcwd(), bring_back, parcel)] = item[0]
            if not pending:
                break
            (ref,), _ = here.wait(list(pending), num_returns=1)
            k = pending.pop(ref)
            yield k, *_result(here, ref, Path(run.runs))
        orderly = True
    finally:
        if not orderly:
            for ref in pending:
                here.cancel(ref)  # an interrupt in the run, which ends as ``stopped``
            here.wait(list(pending), num_returns=len(pending), timeout=30) if pending else None
        if mine:
            here.shutdown()


ray.elsewhere = True  # type: ignore[attr-defined]  # its devices are not this machine's


def _join(here: Any, address: str) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
    local = {**quiet, "num_cpus": cores()}
    try:
        if address == "local":
            here.init(address="local", **local)
        elif address == "auto" and not os.environ.get("RAY_ADDRESS"):
            try:
                here.init(address="auto", log_to_driver=False, logging_level="error")
            except ConnectionError:
                here.init(address="local", **local)
        else:
            here.init(address=None if address == "auto" else address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as fault:
        where = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
        raise UserError(f"no Ray cluster answers at {where} ({' '.join(str(fault).split())[:200]}); give --address local, or "
                        "the address of one.") from fault


def _room(here: Any, cpus: float, gpus: float) -> int:
    """How many runs the cluster, as it is now, has room for."""
    there = here.cluster_resources()
    room = [int(there.get(name, 0) / ask + 1e-9) for name, ask in (("CPU", cpus), ("GPU", gpus)) if ask]
    return max(1, min(room, default=cores()))


def _result(here: Any, ref: Any, runs: Path) -> Result:
    try:
        (folder, error), parcel = here.get(ref)
        if parcel is not None:
            kept = unpack(parcel, runs)
            folder = str(kept) if error is None else ""
        return folder, error
    except here.exceptions.OutOfMemoryError:
        return "", "its machine ran out of memory, and Ray ended it; the other runs went on. Give --memory-per-run."
    except (here.exceptions.RayError, OSError, ValueError) as fault:
        return "", f"it was lost by Ray ({' '.join(told(fault).split())[:300]}); the other runs went on."


# -- on another machine -----------------------------------------------------------------------------------------------


def _there(run: Task, config: Config, folder: str, bring_back: bool, parcel: bytes | None) -> tuple[Result, bytes | None]:
    """Execute one run, in the folder that the suite was called in where there is one."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
    try:
        if not bring_back:
            if not Path(run.runs).is_dir():
                return ("", f"{os.uname().nodename} does not see the folder of records {Path(run.runs).absolute()}; put it "
                            "on a path that all machines share, or give --bring-back true."), None
            return run(config), None
        return _brought(run, config, parcel)
    except KeyboardInterrupt:  # cancelled; the record says so
        return ("", "stopped by the user"), None


def _brought(run: Task, config: Config, parcel: bytes | None) -> tuple[Result, bytes | None]:
    runs = Path(tempfile.mkdtemp(prefix="cl-bench-"))
    try:
        begun = unpack(parcel, runs) if parcel is not None else None
        result = run.at(runs, begun, config)(config)
        made = next((path.parent for path in runs.glob("*/run.json")), None)
        return result, None if made is None else pack(made)
    finally:
        shutil.rmtree(runs, ignore_errors=True)
