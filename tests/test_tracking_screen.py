"""The first screen of MLflow's own UI: what a suite came to, with its runs below it."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
import records
from stores import open_store
from test_tracking import empty_database, runs  # noqa: F401 - fixtures

from cl_bench.errors import UserError
from cl_bench.records.results import load
from cl_bench.records.tracking import view_path
from cl_bench.records.tracking_store import resolve


def test_the_first_screen_shows_what_a_suite_came_to(runs: Path) -> None:  # noqa: F811
    """The suite's own run has the means and system tags, and the UI opens on runs by what is one row of a table."""
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
    view = json.loads(tags["mlflow.sharedViewState.cl-bench"])
    (key,) = view["groupBy"]["groupByKeys"]
    rows = [store.client.get_run(json.loads((f / "mlflow.json").read_text())["stores"][store.uri]["run_id"]).data.tags[
        key["groupByData"]] for f in folders]
    assert rows[0] == rows[1] != rows[2] == rows[3] and rows[0].startswith("ncm on split_digits, ")
    path, _, query = view_path(store.uri, runs).partition("?")
    assert path == f"/experiments/{store.experiment}/runs" and parse_qs(query) == {
        "workflowType": ["machine_learning"], "compareRunsMode": ["CHART"], "viewStateShareKey": ["cl-bench"]}
    assert view_path(store.uri, runs / "none") == "/experiments"


def test_a_command_that_needs_a_store_does_not_advise_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give sqlite:///FILE\.db, .*NAME\.$"):
        resolve("none", tmp_path)
    with pytest.raises(UserError, match=r"or --tracking none\.$"):
        resolve("mlruns", tmp_path)
