"""What benchmark scripts keep is what would be computed again: features by network and image, corrupted images by row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scripts import needs_checkout, script

from cl_bench import Backbone, LabelSpace, Scenario, TensorData, TestSet, attach
from cl_bench.data.tensor import labels_of
from cl_bench.registry import find

pytestmark = needs_checkout


@pytest.fixture
def vit() -> Backbone:
    made: Backbone = find("cl_bench.backbones", "glyph_vit")()
    return made.eval().requires_grad_(False)


def test_features_follow_from_the_adapters_in_use_alone(vit: Backbone, tmp_path: Path) -> None:
    """One adapter per task: an image that passed under one of them does not pass again because another came."""
    torch.manual_seed(0)
    adapters = attach(vit, "lora", r"blocks\.\d+\.attn\.qkv", r=2)
    first = adapters.names[-1]
    with torch.no_grad():
        for _, adapter in adapters.each(first):
            adapter.B.normal_()  # type: ignore[union-attr, operator]
    vit.eval().requires_grad_(False)
    store, x = script("features_once").Store(tmp_path), torch.rand(3, 3, 16, 16)
    plain = Backbone.forward_features
    kept = store.features(vit, x, plain)
    adapters.add("second")
    for name in ("second", first):
        adapters.use(name)
        vit.eval().requires_grad_(False)
        assert torch.equal(store.features(vit, x, plain), plain(vit, x))
    assert torch.equal(kept, plain(vit, x)) and store.computed == 6, "under the first adapter only once"


def test_networks_that_do_more_than_a_fixed_function_are_asked_each_time(vit: Backbone, tmp_path: Path) -> None:
    store = script("features_once").Store(tmp_path)
    assert store.network(vit)
    next(m for m in vit.modules() if isinstance(m, torch.nn.LayerNorm)).train()
    assert not store.network(vit), "a part in training mode"
    vit.eval()
    next(vit.parameters()).requires_grad_(True)
    assert not store.network(vit), "something learns"


def test_corrupted_images_are_computed_once_and_are_the_same_bytes(tmp_path: Path) -> None:
    find("cl_bench.scenarios", "corrupted")
    from cl_bench_scenarios._domains import CorruptedImages

    clean = TensorData(torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8), torch.arange(5))
    asked = list[int]()

    def compute(data: CorruptedImages, index: int) -> tuple[torch.Tensor, int]:
        asked.append(index)
        return CorruptedImages.__getitem__(data, index)

    for _ in range(2):  # as two runs do: other objects, the same folder
        store, data = script("corrupted_once").Store(tmp_path), CorruptedImages(clean, "contrast", 5, 0)
        for index in (3, 1, 3):
            image, label = store.item(data, index, compute)
            assert torch.equal(image, data[index][0]) and label == index
    assert asked == [3, 1]
    other = CorruptedImages(clean, "contrast", 1, 0)
    assert torch.equal(store.item(other, 3, compute)[0], other[3][0]), "another severity is another image"


class Pictures(Scenario):
    """Three images of each of two classes, as a test set and as a stream."""

    space = LabelSpace((0, 1))

    def test_sets(self) -> list[TestSet]:
        x = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1)
        return [TestSet("all", self.space, TensorData(x, torch.tensor([1, 0, 0, 1, 0, 1])))]

    def stream(self) -> list[TestSet]:
        return self.test_sets()


def test_few_takes_the_first_images_and_says_so() -> None:
    few = script("few").Few(Pictures(), per_class=2, images=3)
    (test,), (segment,) = few.test_sets(), few.stream()
    assert test.data.x.flatten().tolist() == [0, 1, 2, 3] and labels_of(test.data).tolist() == [1, 0, 0, 1]  # type: ignore[attr-defined]
    assert segment.data.x.flatten().tolist() == [0, 1, 2] and few.drawn(1)[0] is segment  # type: ignore[attr-defined]
    assert {"test_per_class": 2, "images_per_domain": 3}.items() <= few.protocol().items()
    assert len(script("few").Few(Pictures()).test_sets()[0].data) == 6
