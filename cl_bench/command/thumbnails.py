"""``cl-bench compare --images``: pictures of lost images for the page, where the data of the runs are at hand."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from ..compare.comparison import Comparison, Group
from ..compare.lost import Lost, lost_images
from ..errors import UserError
from ..records.results import Run

__all__ = ["thumbnails"]

SIDE = 48  # pixels of the longer side
MOST = 400  # pictures on a page


def thumbnails(comparison: Comparison, say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Per table (its title) one entry per method: the images that its first run lost, with pictures. A scenario whose data are
    not here, or are others than those of the record, is told by ``say`` and left out."""
    out: dict[str, list[dict[str, Any]]] = {}
    left = MOST
    for group in comparison.groups:
        found = []
        for row in group.rows:
            run = next(iter(row.runs.values()), None)
            if run is not None and (lost := lost_images(run)):
                found.append((row.method, run, lost))
        if not found or left <= 0:
            continue
        entries: list[dict[str, Any]] = []
        try:
            for method, run, lost in found:
                entries.append({"method": method, "run": run.id, "seed": run.seed, "images": _pictures(group, run, lost)})
        except UserError as fault:
            say(f"no pictures of {group.title}: {fault}")
            continue
        for entry in entries:
            entry["images"], left = entry["images"][:max(left, 0)], left - len(entry["images"])
        out[f"{group.title}#{group.fingerprint}"] = entries
    if not out:
        say("no pictures: no run here lost an image whose data are at hand.")
    return out


def _pictures(group: Group, run: Run, lost: list[Lost]) -> list[dict[str, Any]]:
    from .parts import ROOTS, make

    config = run.record.get("config") or {}
    if not isinstance(config.get("scenario"), dict):
        raise UserError("the record does not say how its scenario was made")
    scenario = make(config["scenario"], ROOTS["scenario"])
    sets = {test.name: test for test in scenario.test_sets()}
    out = []
    for one in lost:
        if one.test_set not in sets:
            raise UserError(f"the data here have no test set {one.test_set!r}")
        image, label = sets[one.test_set].data[one.row]
        if int(label) != one.truth:
            raise UserError("the data here are not those of the record: labels differ")
        out.append({"set": one.test_set, "truth": one.truth, "said": one.said, "after": one.after, "src": _png(image)})
    return out


def _png(image: Any) -> str:
    """A picture as an address that holds it."""
    import torch
    from PIL import Image

    x = torch.as_tensor(image)
    x = (x.float().clamp(0, 1) * 255).round().to(torch.uint8) if x.is_floating_point() else x.to(torch.uint8)
    x = x.expand(3, *x.shape[-2:]) if x.ndim == 2 or x.shape[0] == 1 else x[:3]
    picture = Image.fromarray(x.permute(1, 2, 0).contiguous().numpy())
    scale = SIDE / max(picture.size)
    size = tuple(max(1, round(scale * side)) for side in picture.size)
    picture = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    data = io.BytesIO()
    picture.save(data, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
