"""LAME and T3A against their papers and codes: nothing is trained, nothing of the network moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import Stream
from tta_toy_trained import CLASSES, SPACE, backbone, deployed, images, plain, source

from cl_bench.engine.compute import Compute
from cl_bench.engine.meter import Meter
from cl_bench.engine.stream import StreamState, stream_step
from cl_bench.errors import UserError
from cl_bench.types import LabelSpace, TestSet


@pytest.mark.parametrize("name", ["source", "bn", "bn_alpha", "lame", "t3a"])
def test_a_stream_leaves_the_network_as_deployed_and_in_evaluation_mode(name: str) -> None:
    """Conformance 18, through the engine."""
    method = deployed(name)
    before = {k: v.clone() for k, v in method.model.state_dict().items()}
    training: list[bool] = []
    for module in method.model.modules():
        module.register_forward_hook(lambda m, inputs, output: training.append(m.training))
    test = TestSet("t", SPACE, source(80).data)
    stream_step(method, test, SPACE, Stream(batch=16), Compute(device="cpu", threads=1), Meter(), StreamState(), 0)
    assert len(training) > 5 * 5 and not any(training), "a layer ran in training mode"
    changed = [k for k, v in method.model.state_dict().items() if not torch.equal(v, before[k])]
    assert not changed and before.keys() == method.model.state_dict().keys(), f"the stream changed {changed}"


def test_lame_without_pairwise_term_is_the_softmax_and_rows_sum_to_one() -> None:
    x = images(20)
    expected = plain("bn", x).softmax(1)
    out = deployed("lame", weight=0.0).predict(x, SPACE).exp()
    assert torch.allclose(out, expected, atol=1e-6)
    for affinity in ("rbf", "knn", "linear"):
        p = deployed("lame", affinity=affinity).predict(x, SPACE).exp()
        assert torch.allclose(p.sum(1), torch.ones(20), atol=1e-5)


def test_lame_kernels_follow_their_definition() -> None:
    method = deployed("lame", neighbours=3)
    f = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    d = (f[:, None] - f[None]).norm(dim=-1)
    sigma = d.sort(1).values[:, 2].mean()  # the third nearest, the image itself being the first
    assert torch.allclose(method.kernel(f), torch.exp(-(d**2) / (2 * sigma**2)), atol=1e-5)
    method.affinity = "knn"
    k = method.kernel(f)
    assert k.sum(1).tolist() == [3.0] * 7 and not k.diagonal().any()
    for row in range(7):
        assert set(k[row].nonzero().flatten().tolist()) == set(d[row].argsort()[1:4].tolist())


def test_lame_pulls_a_batch_of_neighbours_together() -> None:
    x = images(1).repeat(16, 1, 1, 1) + 0.02 * torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    out = deployed("lame").predict(x.clamp(0, 1), SPACE).argmax(1)
    assert len(out.unique()) == 1
    with pytest.raises(UserError, match="rbf, knn or linear"):
        deployed("lame", affinity="cosine")


def test_t3a_starts_from_the_classifiers_rows() -> None:
    """Conformance 13: all supports and no test data gives h W with unit columns."""
    method = deployed("t3a", supports=0)
    h = method.model.features(images(9))
    head = backbone().head
    owner = head(head.weight).argmax(1)
    assert torch.equal(method.labels, owner) and owner.tolist() == [0, 1, 2, 3], "each row of W is its own class's"
    assert torch.allclose(method.templates(h), h @ F.normalize(head.weight, dim=1).T, atol=1e-5)


def test_t3a_keeps_the_surest_of_each_class() -> None:
    method = deployed("t3a", supports=3)
    bank: list[tuple[int, float]] = list(zip(method.labels.tolist(), method.doubt.tolist(), strict=True))
    for k in range(6):
        x = images(10, k)
        z = plain("bn", x)
        p = z.softmax(1)
        bank += list(zip(z.argmax(1).tolist(), (-(p * p.log()).sum(1)).tolist(), strict=True))
        method.predict(x, SPACE)
        bank = [pair for c in range(CLASSES) for pair in sorted(b for b in bank if b[0] == c)[:3]]
        assert np.allclose(sorted(zip(method.labels.tolist(), method.doubt.tolist(), strict=True)), sorted(bank), atol=1e-5)
    assert len(method.features) <= 3 * CLASSES


def test_t3a_answers_after_its_update_and_narrows() -> None:
    method = deployed("t3a")
    x = images(12)
    first = method.predict(x, SPACE)
    assert torch.equal(first, method.answer(x, SPACE)), "the answer is that of the updated templates"
    some = method.predict(x, LabelSpace((2, 0)))
    assert some.shape == (12, 2) and torch.isfinite(some).all()
    assert set(method.labels.tolist()) <= {0, 1}
