"""A classifier that came with weights answers only for classes that it knows by name; never by equal numbers of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from folder_toys import ccc, cifar_c, class_folders, domainnet_126, imagenet_c, imagenet_d109, imagenet_r, picture
from plan_toys import Plain, plan
from toys import tiny_backbone

from cl_bench import Experience, LabelSpace, LinearHead, Method, Scenario, UserError, Wrapper
from cl_bench.backbones._imagenet import imagenet_names
from cl_bench.command.config import build, parse
from cl_bench.data.classes import CIFAR10, CIFAR100
from cl_bench.engine import protocol
from cl_bench.engine.protocol import fingerprint
from cl_bench.heads import FixedHead
from cl_bench.registry import find


def headed(classes: tuple[str, ...], other: tuple[tuple[str, ...], ...] = (), outputs: int = 0) -> Any:
    backbone = tiny_backbone()
    backbone.head = torch.nn.Linear(8, outputs or len(classes))
    backbone.classes, backbone.other_names = classes, other
    return backbone


class Named(Plain):
    def __init__(self, names: tuple[str, ...], known: tuple[str, ...] | None = None, source: bool = False) -> None:
        super().__init__()
        self.names, self.known, self.has = names, known, source

    @property
    def space(self) -> LabelSpace:
        return LabelSpace(tuple(range(4)), self.names)

    @property
    def known_as(self) -> tuple[str, ...]:
        return self.names if self.known is None else self.known

    @property
    def source(self) -> Experience | None:
        return super().source if self.has else None


ABCD = ("a", "b", "c", "d")


@pytest.mark.parametrize(("backbone", "scenario", "fits"), [
    (headed(ABCD), Named(ABCD), True),
    (headed((*ABCD, "e")), Named(ABCD), True),
    (headed(("b", "a", "c", "d")), Named(ABCD), False),
    (headed(("x", "y", "z", "w")), Named(ABCD), False),
    (headed(ABCD[:3]), Named(ABCD), False),
    (headed((), outputs=4), Named(ABCD), False),
    (headed((), outputs=1000), Named(()), False),
    (headed(ABCD), Named(()), False),
    (headed(("tench", "fish", "c", "d"), (("n1", "n2", "n3", "n4"),)), Named((), ("n1", "n2", "n3", "n4")), True),
    (headed(("tench", "fish", "c", "d"), (("n1", "n2", "n3", "n4"),)), Named(ABCD, ("n2", "n1", "n3", "n4")), False),
])
def test_a_head_is_kept_only_where_its_classes_are_the_scenarios_by_name(backbone: Any, scenario: Named, fits: bool) -> None:
    assert protocol.head_fits(backbone, scenario) is fits
    p = plan(scenario)
    p.backbone = backbone
    if fits:
        assert not protocol.needs_source(p)
        return
    with pytest.raises(UserError, match="nothing would answer on scenario plain: the classifier of"):
        fingerprint(p)
    scenario.has = True
    assert protocol.needs_source(p), "with a source, another head is trained"


def test_a_method_with_a_head_of_its_own_is_not_asked_for_the_weights_one() -> None:
    class Own(Method):
        def make_head(self) -> Any:
            return super().make_head()

    p = plan(Named(ABCD))
    p.backbone = headed(("x", "y", "z", "w"))
    with pytest.raises(UserError, match="make_head of its own"):
        protocol.needs_source(p)
    p.method = Own
    assert not protocol.needs_source(p)


def test_a_stream_that_nothing_could_answer_is_refused_but_for_backbones_that_read_names() -> None:
    p = plan(Named(ABCD))
    with pytest.raises(UserError, match="backbone tiny brings no classifier"):
        fingerprint(p)

    class Reads(type(p.backbone)):  # type: ignore[misc]
        def encode_text(self, names: Any, templates: Any = ()) -> torch.Tensor:
            return torch.ones(len(names), 8)

    p.backbone.__class__ = Reads
    assert p.backbone.reads_names and fingerprint(p)["id"]
    with pytest.raises(UserError, match="has no text side"):
        tiny_backbone().encode_text(["a"])


# ---------------------------------------------------------------------------------------------- the scenarios that ship
IMAGENET = headed(tuple(f"described {k}" for k in range(1000)), imagenet_names(), 1000)
CIFAR = headed(CIFAR10)
SHIPPED: list[tuple[Any, Any, bool]] = [
    (cifar_c, CIFAR, True), (cifar_c, IMAGENET, False), (cifar_c, headed(CIFAR100), False),
    (imagenet_c, IMAGENET, True), (imagenet_c, CIFAR, False), (imagenet_r, IMAGENET, True),
    (ccc, IMAGENET, True), (imagenet_d109, IMAGENET, True), (domainnet_126, IMAGENET, True),  # its folders here are ImageNet's
    (domainnet_126, headed(("a", "b", "c")), False),
]  # fmt: skip


def scenario_of(argv: list[str]) -> Scenario:
    made: Scenario = build(parse(["--scenario", *argv, "--method", "ncm", "--backbone", "glyph_vit"]))[0]
    return made


@pytest.mark.parametrize(("make", "backbone", "fits"), SHIPPED)
def test_shipped_scenarios_know_their_classes_by_name(make: Any, backbone: Any, fits: bool, tmp_path: Path) -> None:
    s = scenario_of(make(tmp_path))
    assert protocol.head_fits(backbone, s) is fits is protocol.head_fits(backbone, Wrapper(s))
    wrapped = find("cl_bench.scenarios", "episodic")(s)
    assert protocol.head_fits(backbone, wrapped) is fits


def test_rows_of_imagenet_do_not_answer_for_other_classes_of_the_same_numbers(tmp_path: Path) -> None:
    argv = imagenet_d109(tmp_path)
    without_map = argv[: argv.index("--scenario.label_map")]
    s = scenario_of(without_map)
    assert s.space.ids == (0, 1, 2) and not protocol.head_fits(IMAGENET, s)
    p = plan(s)
    p.backbone = IMAGENET
    with pytest.raises(UserError, match="label_map"):
        fingerprint(p)
    for label in ("0", "2", "10"):
        picture(tmp_path / "v2" / label / "x.png", 7)
    v2 = find("cl_bench.scenarios", "imagenet_v2")(root=str(tmp_path / "v2"))
    assert v2.space.ids == (0, 2, 10) and protocol.head_fits(IMAGENET, v2), "folders of V2 are ImageNet's numbers"
    class_folders(tmp_path / "some", "fog/5")
    (tmp_path / "classes.txt").write_text("n01443537\nn01440764\nn01484850\n")  # another order than ImageNet's
    turned = find("cl_bench.scenarios", "imagenet_c")(root=str(tmp_path / "some"), corruptions="fog",
                                                      class_list=str(tmp_path / "classes.txt"))
    assert not protocol.head_fits(IMAGENET, turned)


def test_a_scenario_that_learns_never_starts_from_the_weights_head() -> None:
    digits = find("cl_bench.scenarios", "split_digits")()
    assert not protocol.head_fits(headed(digits.space.names), digits)


# ---------------------------------------------------------------------------------------------- from weights to a head
def test_a_backbone_makes_the_head_that_came_with_it_or_a_growing_one() -> None:
    grows = tiny_backbone().make_head()
    assert isinstance(grows, LinearHead) and grows.num_features == 8 and not len(grows.space)
    own = headed(("a", "b")).make_head()
    assert isinstance(own, FixedHead) and own.space == LabelSpace((0, 1), ("a", "b"))
    assert headed((), outputs=7).make_head().space.ids == tuple(range(7)), "a nameless head has columns too"
    kept = tiny_backbone()
    kept.head = LinearHead(8)
    assert kept.make_head() is kept.head and Method(kept).head is kept.head
    strange = tiny_backbone()
    strange.head = torch.nn.Sequential(torch.nn.Linear(8, 2))
    with pytest.raises(ValueError, match="names of its classes"):
        strange.make_head()


def test_learning_other_classes_drops_the_weights_head_instead_of_taking_its_rows() -> None:
    method = Method(headed(("A", "B", "C")))
    data = Plain().stream()[0].data
    method.begin(Experience("one", LabelSpace((0, 1), ("zero", "one")), data))
    assert isinstance(method.head, LinearHead) and method.head.space.ids == (0, 1)
    same = Method(headed(("A", "B", "C")))
    same.begin(Experience("one", LabelSpace((0, 1), ("A", "B")), data))
    assert isinstance(same.head, FixedHead)
