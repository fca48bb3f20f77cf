"""Make this checkout importable from a folder, without installing it:  python benchmarks/gpu/importable.py FOLDER

Links the folders under the names that they install as, and writes the entry points, as an editable install would.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[2]


def link(site: Path) -> None:
    """Fill ``site``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    site.mkdir(parents=True, exist_ok=True)
    placed = project["tool"]["setuptools"]["package-dir"]
    folders = {"cl_bench": "cl_bench", **{k: v for k, v in placed.items() if "." not in k}}
    for name, folder in folders.items():
        (site / name).symlink_to(ROOT / folder)
    info = site / f"cl_bench-{project['project']['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: cl-bench\nVersion: {project['project']['version']}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items()) + "\n"
        for group, points in project["project"]["entry-points"].items()), encoding="utf-8")


if __name__ == "__main__":
    link(Path(sys.argv[1]))
