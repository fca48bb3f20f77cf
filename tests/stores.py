"""MLflow stores for the tests of tracking: the default one of a folder of records, and all that one holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cl_bench.records.tracking_store import Store, resolve


def open_store(runs: Path) -> Store:
    return Store(resolve(None, runs), runs)


def dump(store: Store) -> dict[str, Any]:
    """All that the store holds, without MLflow's own random ids and times of writing."""
    out: dict[str, Any] = {}
    for run in store._search("tags.`cl_bench.kind` != ''"):
        data, history = run.data, {}
        for key in sorted(data.metrics):
            history[key] = sorted((m.step, m.timestamp, m.value)
                                  for m in store.client.get_metric_history(run.info.run_id, key))
        name = data.tags.get("cl_bench.run_id") or f"suite {data.tags['cl_bench.suite']}"
        assert name not in out, f"{name} is in the store twice"
        out[name] = {
            "metrics": history, "params": data.params, "status": run.info.status,
            "tags": {k: v for k, v in data.tags.items() if k.startswith("cl_bench.")},
            "inputs": sorted((d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs),
            "files": sorted(f.path for at in (None, "record") for f in store.client.list_artifacts(run.info.run_id, at))}
    return out
