"""The accuracy matrix of a run as text."""

from __future__ import annotations

import math

from ..numbers.matrix import AccuracyMatrix

__all__ = ["matrix_text"]


def matrix_text(matrix: AccuracyMatrix, width: int) -> str:
    """Percent, rows after each experience, columns the test sets in their order; without decimals where ``width`` is narrow,
    and a sentence where even so it does not fit. Empty where nothing was measured."""
    so_far = matrix.so_far()
    if not len(so_far.rows) or not so_far.total.any():
        return ""
    columns = [f"{k + 1}" for k in range(len(so_far.columns))]
    same = list(so_far.rows) == list(so_far.columns[:len(so_far.rows)])
    names = [f"{k + 1}  {name}" if same else name for k, name in enumerate(so_far.rows)]
    longest = min(max(map(len, names)), 24)
    for digits in (1, 0):
        cells = [[f"{v:.{digits}f}" if math.isfinite(v) else "–" for v in row] for row in so_far.percent]
        each = max(len(text) for row in [columns, *cells] for text in row) + 2
        if longest + each * len(columns) <= width:
            lines = [" " * longest + "".join(c.rjust(each) for c in columns)]
            lines += [name[:longest].ljust(longest) + "".join(c.rjust(each) for c in row)
                      for name, row in zip(names, cells, strict=True)]
            key = "" if same else " (" + ", ".join(f"{k + 1} {name}" for k, name in enumerate(so_far.columns)) + ")"
            if len(key) > 4 * width:
                key = ""
            return "\n".join([f"Accuracy (%) after each experience, on test sets 1 to {len(columns)}{key}:", *lines])
    return f"The accuracy matrix of {len(columns)} test sets is wider than {width} columns; `cl-bench compare --html` shows it."
