"""A suite in which no image passes the same frozen network twice.

    python benchmarks/features_once.py --cache runs/.features cl_cifar100 --runs runs/cl_cifar100

Everything after ``--cache DIR`` is given to ``cl-bench suite``, which runs in this process, one run after another. While no
parameter of a backbone learns, its features are kept under the digest of all that they follow from (weights, buffers, and
the adapters in use) and of the image, and are read again where they are asked for again: for every class order, every epoch
of a linear classifier and every evaluation. What learns, prompts that differ from image to image, norms that look at the
batch, and images that are augmented anew pass the network as always. An image's features come from the batch in which it was
seen first; another batch would round the last bit differently, so a prediction may differ where two logits are equal to seven
digits. A record's count of passes is of what passed.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cl_bench import Backbone
from cl_bench.adapters._base import Site
from cl_bench.command.cli import main as command

#: Modules from here do more than a fixed function of an image: prompts look it up, norms mix in its batch.
OWN = ("cl_bench_methods", "cl_bench.adaptation")


class Store:
    """Features by network and image; those of networks without adapters are kept in ``folder`` too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, dict[bytes, Tensor]] = {}
        self.fresh: set[str] = set()
        self.digests: dict[Any, str] = {}
        self.asked = self.computed = 0

    def network(self, backbone: Backbone) -> str:
        """Digest of what the features of an image follow from; "" where something learns or is lent from outside."""
        trunk = backbone.model
        modules = dict(trunk.named_modules())
        sites = {name: m for name, m in modules.items() if isinstance(m, Site)}
        if any(m.training for m in modules.values()) or any(p.requires_grad for p in trunk.parameters()):
            return ""
        if any(type(m).__module__.startswith(OWN) for m in modules.values()):
            return ""
        used = [(tuple(s.active), s.enabled) for s in sites.values()]
        idle = tuple(f"{at}.bank.{k}." for at, s in sites.items() for k in s.bank if k not in s.active or not s.enabled)
        state = {**dict(trunk.named_parameters()), **dict(trunk.named_buffers())}
        state = {name: t for name, t in state.items() if not (idle and name.startswith(idle))}
        versions = (str(used), *((id(t), t._version) for t in state.values()))
        if versions not in self.digests:
            found = hashlib.sha256(f"{backbone.info['preprocess']} {used}".encode())
            for name, t in state.items():
                found.update(name.encode() + t.detach().cpu().contiguous().numpy().tobytes())
            self.digests[versions] = ("adapted-" if sites else "") + found.hexdigest()[:24]
        return self.digests[versions]

    def table(self, network: str) -> dict[bytes, Tensor]:
        """Features of one network by image."""
        if network not in self.known:
            file = self.folder / f"{network}.safetensors"
            held = load_file(file) if file.exists() else {}
            keys = held["images"].numpy() if held else ()
            self.known[network] = {k.tobytes(): f for k, f in zip(keys, held.get("features", ()), strict=True)}
        return self.known[network]

    def features(self, backbone: Backbone, x: Tensor, compute: Any) -> Tensor:
        """As ``compute(backbone, x)``."""
        network = "" if x.requires_grad or len(x) == 1 else self.network(backbone)
        if not network:
            return compute(backbone, x)  # type: ignore[no-any-return]
        table = self.table(network)
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x.detach().cpu().contiguous().numpy()]
        self.asked += len(keys)
        missing = [k for k, key in enumerate(keys) if key not in table]
        if missing:
            with torch.no_grad():
                for k, row in zip(missing, compute(backbone, x[missing]).cpu(), strict=True):
                    table[keys[k]] = row.clone()
            self.computed += len(missing)
            self.fresh.add(network)
        return torch.stack([table[key] for key in keys]).to(x.device)

    def keep(self) -> None:
        """Write what is new."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for network in sorted(n for n in self.fresh if not n.startswith("adapted-")):
            table = self.known[network]
            images = torch.tensor([list(key) for key in table], dtype=torch.uint8)
            file = self.folder / f"{network}.safetensors"
            save_file({"images": images, "features": torch.stack(list(table.values()))}, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of features; may be deleted at any time")
    given, suite = parser.parse_known_args()
    store, plain = Store(given.cache), Backbone.forward_features
    Backbone.forward_features = lambda self, x: store.features(self, x, plain)  # type: ignore[method-assign]
    try:
        return command(["suite", *suite, "--jobs", "1"])
    finally:
        store.keep()
        print(f"{store.computed} of {store.asked} features were computed.", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
