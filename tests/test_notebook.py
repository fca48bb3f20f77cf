"""The notebook of the examples: its cells run, and what it shows was made by them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("notebook", ROOT / "tools" / "notebook.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture(scope="module")
def notebook() -> dict:
    return json.loads((ROOT / "examples" / "compare.ipynb").read_text(encoding="utf-8"))


def test_it_is_kept_as_it_was_run(notebook) -> None:
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    text = json.dumps([c["outputs"] for c in code])
    assert '"error"' not in text and "<table>" in text and "vnd.plotly" in text and "/tmp/" not in text and "/home/" not in text


def test_its_cells_run_and_show_what_the_records_say(notebook, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    # the same cells with less work: what they show is compared with the records that they leave
    small = json.loads(json.dumps(notebook).replace('\\"per_class\\": 20', '\\"per_class\\": 4').replace("seeds=3", "seeds=2"))
    shown = list(tool.run_cells(small))
    import cl_bench

    runs = cl_bench.load("notebook_runs")
    assert len(runs) == 4 and {r.method.split("(")[0] for r in runs} == {"Mine", "finetune"}
    values = [value for _, _, value in shown if value is not None]
    assert [v.data[0].type for v in values if hasattr(v, "data")] == ["heatmap", "scatter"]
    table = next(v for v in values if hasattr(v, "rows"))
    mine = [r.metrics["forgetting"] for r in runs if r.method.startswith("Mine")]
    assert next(r for r in table.rows if r["method"].startswith("Mine"))["forgetting"] == pytest.approx(np.mean(mine))
    assert f"forgetting {np.mean(mine):.1f} points" in "".join(said for _, said, _ in shown)
