"""Runs the cells of a notebook and writes what they show into it: ``python tools/notebook.py examples/compare.ipynb``.

It needs no Jupyter. The test of the notebook runs its cells by :func:`run_cells` too.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import linecache
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["run_cells"]


def run_cells(notebook: dict[str, Any], module: str = "__main__") -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Run the code cells one after another in a module of their own; yields (cell, what it printed, its last value)."""
    space, before = types.ModuleType(module), sys.modules.get(module)
    sys.modules[module] = space
    try:
        for k, cell in enumerate(c for c in notebook["cells"] if c["cell_type"] == "code"):
            source, name = "".join(cell["source"]), f"<cell {k + 1}>"
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
            tree = ast.parse(source, name)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(tree, name, "exec"), space.__dict__)
                value = None
                if isinstance(last, ast.Expr):
                    value = eval(compile(ast.Expression(last.value), name, "eval"), space.__dict__)
            yield cell, said.getvalue(), value
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before


def _shown(value: Any) -> dict[str, Any]:
    """A value as a notebook keeps it."""
    if hasattr(value, "to_plotly_json"):
        return {"application/vnd.plotly.v1+json": json.loads(value.to_json()), "text/plain": ["a plotly figure"]}
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        data = {"text/html": value._repr_html_().splitlines(keepends=True), **data}
    return data


def main(path: Path) -> None:
    """Run the notebook in an empty folder, and replace its outputs."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for k, (cell, said, value) in enumerate(run_cells(notebook)):
                cell["execution_count"], cell["outputs"] = k + 1, []
                if said:
                    cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": said.splitlines(keepends=True)})
                if value is not None:
                    cell["outputs"].append({"output_type": "execute_result", "execution_count": k + 1, "metadata": {},
                                            "data": _shown(value)})
        finally:
            os.chdir(home)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
