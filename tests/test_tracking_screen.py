"""The first screen of MLflow's own UI: what a suite came to, with its runs below it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import records
from stores import open_store
from test_tracking import empty_database, runs  # noqa: F401 - fixtures

from cl_bench.records.results import load
from cl_bench.records.tracking import view_path


def test_the_first_screen_shows_what_a_suite_came_to(runs: Path) -> None:  # noqa: F811
    """The suite's own run has the means and system tags, the UI opens on runs, and a view with the suite opened is kept."""
    store = open_store(runs)
    folders = [records.write_learner(runs, method, seed) for method in ("ncm", "lora") for seed in (0, 1)]
    for folder in folders:
        store.send(folder)
    for _ in range(2):
        store.send_summary("synthetic")
    parent = store.client.get_run(store._parent("synthetic"))
    lora = [load(folder).metrics for folder in folders[2:]]
    for metric, label in (("average_accuracy", "average accuracy"), ("forgetting", "forgetting")):
        mean = np.mean([m[metric] for m in lora])
        assert parent.data.metrics[f"{label} on split_digits - lora"] == pytest.approx(mean)
        assert len(store.client.get_metric_history(parent.info.run_id, f"{label} on split_digits - lora")) == 1
    assert parent.data.tags["mlflow.source.name"] == "cl-bench" and parent.data.tags["cl_bench.runs"] == "4"
    tags = store.client.get_experiment(store.experiment).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert json.loads(tags["mlflow.sharedViewState.cl-bench"]) == {"runsExpanded": {parent.info.run_id: True}}
    assert view_path(store.uri, runs) == f"/experiments/{store.experiment}/runs?viewStateShareKey=cl-bench"
    assert view_path(store.uri, runs / "none") == "/experiments"
