"""What a suite needs before it can run: its data and weights, what is there of them, and what it will take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..records.results import plain
from .parts import ROOTS, make
from .suites import Job

__all__ = ["Need", "check", "facts_of"]

_FACTS = {"source", "data", "reach"}
_PROBE = 4  # images by which a network is timed


@dataclass(frozen=True)
class Need:
    """One thing that a suite needs: ``there`` is False where it is missing, ``said`` a sentence for the user."""

    kind: str
    there: bool
    said: str


def facts_of(file: Path) -> dict[str, Any]:
    """The ``published`` part of a suite file: ``source`` (where its numbers come from), ``data`` (how many classes and images
    of each part the data set has) and ``reach`` (the numbers, by method); empty where there is none.

    Raises:
        UserError: another form.
    """
    from .files import read_yaml

    found = read_yaml(file).get("published") or {}
    if not isinstance(found, Mapping) or not set(found) <= _FACTS:
        raise UserError(f"published in {file} must be a mapping with {', '.join(sorted(_FACTS))}.")
    return dict(found)


def check(jobs: Sequence[Job], facts: Mapping[str, Any], overrides: Sequence[str] = ()) -> Iterator[Need]:
    """What the runs need, each once: first data, then weights, then an estimate of time and memory."""
    from .config import parse

    configs = [parse(list(overrides), job.config) for job in jobs]
    counts: dict[str, tuple[int, int, int]] = {}
    for key, part in _distinct(configs, "scenario"):
        need, found = _data(part, facts.get("data") or {})
        if found is not None:
            counts[key] = found
        yield need
    for _, part in _distinct(configs, "backbone"):
        yield _weights(part)
    yield _estimate(configs, counts, facts.get("data") or {})


def _distinct(configs: Sequence[Mapping[str, Any]], root: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Parts that differ in more than the order of classes, by a key."""
    found: dict[str, Mapping[str, Any]] = {}
    for config in configs:
        found.setdefault(_key(config[root]), config[root])
    return list(found.items())


def _key(part: Mapping[str, Any]) -> str:
    args = {k: v for k, v in (part.get("init_args") or {}).items() if k != "order"}
    return json.dumps(plain({**part, "init_args": args}), sort_keys=True)


def _data(part: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[Need, tuple[int, int, int] | None]:
    from ..data.digest import digest_of
    from ..data.entry import check_data

    where = _root(part)
    try:
        scenario = make(part, ROOTS["scenario"])
        notes = check_data(scenario)
        learned, tested = scenario.experiences(), list(scenario.test_sets()) or list(scenario.stream())
        counts = (len(scenario.space), sum(len(e.data) for e in learned), sum(len(t.data) for t in tested))
        digest = digest_of(tested[0].data)
    except UserError as fault:
        return Need("data", False, f"missing: {fault}"), None
    said = f"{counts[0]} classes, {counts[1]} training and {counts[2]} test images in {where}, digest {digest}"
    differ = [f"{count} {what} where {known[key]} are published" for key, what, count in zip(
        ("classes", "train", "test"), ("classes", "training images", "test images"), counts, strict=True)
        if key in known and known[key] != count]
    if differ:
        return Need("data", False, f"other data: {where} holds {', '.join(differ)}; it is another split or incomplete"), counts
    return Need("data", True, " ".join([said, *notes])), counts


def _root(part: Mapping[str, Any]) -> str:
    args = part.get("init_args") or {}
    return _root(args["of"]) if isinstance(args.get("of"), Mapping) else str(args.get("root") or "no folder")


def _weights(part: Mapping[str, Any]) -> Need:
    args = part.get("init_args") or {}
    name = str(args.get("name") or part["class_path"].rpartition(".")[2])
    kind = part["class_path"].rpartition(".")[2]
    try:
        if kind == "timm_model" and args.get("pretrained"):
            file = _timm_file(name)
        elif kind == "torchvision_model" and args.get("weights") and not args.get("checkpoint_path"):
            file = _torchvision_file(name, str(args["weights"]))
        elif kind == "open_clip_model" and args.get("pretrained") and not Path(str(args["pretrained"])).is_file():
            file = _open_clip_file(name, str(args["pretrained"]))
        else:
            return Need("weights", True, f"{name}: {make(part, ROOTS['backbone']).info['sha256'][:16]}")
    except UserError as fault:
        return Need("weights", False, f"missing: {fault}")
    if isinstance(file, Path):
        from ..data.files import file_digest

        return Need("weights", True, f"{name}: {file}, sha256 {file_digest(file)[:16]}")
    option = "pretrained" if kind == "open_clip_model" else "checkpoint_path"
    return Need("weights", False, f"missing: {name} is not in the cache ({file}); the first run fetches it, or, without a "
                f"network, add --backbone.{option} FILE" + (" --backbone.pretrained false" if kind == "timm_model" else ""))


def _timm_file(name: str) -> Path | str:
    """The cached file of timm's weights, or the place that they come from."""
    import timm

    if not timm.is_model(name):
        raise UserError(f'timm {timm.__version__} has no model "{name}".')
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise UserError(f'timm {timm.__version__} has no weights "{name}".')
    if not cfg.hf_hub_id:
        return _cached(str(cfg.url))
    from huggingface_hub import try_to_load_from_cache

    repository = str(cfg.hf_hub_id) + (name if str(cfg.hf_hub_id).endswith("/") else "")
    for file in ("model.safetensors", "pytorch_model.bin", str(cfg.hf_hub_filename or "")):
        if file and isinstance(found := try_to_load_from_cache(repository, file), str):
            return Path(found)
    return repository


def _open_clip_file(name: str, tag: str) -> Path | str:
    """The cached file of OpenCLIP's weights, or the place that they come from."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.pretrained import get_pretrained_cfg

    cfg = get_pretrained_cfg(name, tag)
    if not cfg:
        raise UserError(f'OpenCLIP has no weights "{tag}" of "{name}".')
    repository = str(cfg.get("hf_hub") or "").rstrip("/")
    for file in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin") if repository else ():
        if isinstance(found := try_to_load_from_cache(repository, file), str):
            return Path(found)
    here = Path.home() / ".cache" / "clip" / str(cfg.get("url") or "").rpartition("/")[2]
    return here if here.is_file() else repository or str(cfg.get("url"))


def _torchvision_file(name: str, weights: str) -> Path | str:
    from torchvision import models

    try:
        return _cached(models.get_model_weights(name)[weights].url)
    except (KeyError, ValueError) as fault:
        raise UserError(f'torchvision has no weights "{weights}" of "{name}".') from fault


def _cached(url: str) -> Path | str:
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    return file if file.is_file() else url


def _estimate(configs: Sequence[Mapping[str, Any]], counts: Mapping[str, tuple[int, int, int]],
              known: Mapping[str, Any]) -> Need:
    """Time and memory from counts of images and a network of the same shape that is timed here: rough, and said to be."""
    seconds, memory = 0.0, 0.0
    sizes = {key: _cost(part) for key, part in _distinct(configs, "backbone")}
    for config in configs:
        forward, parameters, activations = sizes[_key(config["backbone"])]
        _, train, test = counts.get(_key(config["scenario"]), (0, int(known.get("train", 0)), int(known.get("test", 0))))
        args = config["method"].get("init_args") or {}
        scenario = config["scenario"].get("init_args") or {}
        steps = max(1, -(-int(known.get("classes", 1)) // int(scenario.get("increment") or known.get("classes", 1))))
        epochs = int(args.get("epochs", 1))
        # Training is three times an answer; half of all tests are met at every step of a growing matrix.
        seconds += forward * (3 * epochs * train + train + test * ((steps + 1) / 2 if train else 3))
        memory = max(memory, 4 * (4 * parameters + activations * int(args.get("batch_size") or 64)))
    hours = seconds / 3600
    took = f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(seconds / 60))} minutes"
    return Need("estimate", True, f"about {took} for {len(configs)} runs one after another and {memory / 2**30:.1f} GiB, by a "
                "network of the same shape timed on this machine's processor: a rough guide, a GPU is much faster")


def _cost(part: Mapping[str, Any]) -> tuple[float, int, int]:
    """Of the network with random weights: seconds per image of an answer, parameters, and numbers that its layers put out."""
    import time

    import torch

    drop = {"pretrained": False, "weights": None, "checkpoint_path": None, "sha256": None}
    args = {k: drop.get(k, v) for k, v in (part.get("init_args") or {}).items()}
    try:
        network = make({**part, "init_args": args}, ROOTS["backbone"])
    except UserError:
        return 0.0, 0, 0
    side = network.info["preprocess"]["size"] or 32
    seen = 0

    def count(_: Any, __: Any, out: Any) -> None:
        nonlocal seen
        seen += out.numel() if isinstance(out, torch.Tensor) else 0

    hooks = [m.register_forward_hook(count) for m in network.modules() if not list(m.children())]
    images = torch.rand(_PROBE, 3, side, side)
    with torch.no_grad():
        network.forward_features(images[:1])
        for hook in hooks:
            hook.remove()
        activations, start = seen, time.perf_counter()
        network.forward_features(images)
    return (time.perf_counter() - start) / _PROBE, sum(p.numel() for p in network.parameters()), activations
