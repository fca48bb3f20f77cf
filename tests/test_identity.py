"""Labels, folder names and fingerprints: made of content, never of places; every field counts."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cl_toys import mnist_files
from folder_toys import MAKERS, cifar_c, picture
from hypothesis import given, settings
from plan_toys import Plain, plan
from toys import coded, tiny_backbone

from cl_bench import TensorData
from cl_bench.command.config import parse, plan_from
from cl_bench.data.digest import digest_of
from cl_bench.engine import protocol
from cl_bench.engine.protocol import Plan, fingerprint, protocol_name
from cl_bench.identity import arguments, is_place, normal
from cl_bench.records.writer import new_id
from cl_bench.registry import entries, find
from cl_bench.scenario import Wrapper

# ---------------------------------------------------------------------------------------------- values
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(plain)
def test_normal_values_stay_and_survive_a_record(value: Any) -> None:
    once = normal(value)
    assert normal(once) == once and normal(json.loads(json.dumps(once))) == once


def test_one_value_has_one_form() -> None:
    assert normal((1, (2.5, None))) == normal([np.int64(1), np.array([2.5, np.nan])[:1].tolist() + [None]])
    assert normal({"b": 1, "a": {2, 1}}) == {"a": [1, 2], "b": 1} and list(normal({"b": 1, "a": 2})) == ["a", "b"]
    assert normal(np.arange(3)) == normal(torch.arange(3)) == [0, 1, 2] and normal(float("inf")) == "inf"
    assert normal(np.bool_(True)) is True and normal(np.float32(0.5)) == 0.5
    assert normal(len) == "builtins.len" and normal(object()) == "object", "an address in memory says nothing"

    @dataclasses.dataclass
    class Crop:
        size: int = 3
        cache: Path = Path("/tmp/x")

    assert normal(Crop())["size"] == 3 and "cache" not in normal(Crop())


@pytest.mark.parametrize("value", [Path("x"), PurePosixPath("/a"), "/data/a", "~/data", "~me/data", "./a", "../a", "C:\\data",
                                   "c:/data", "local-dir:vit", "file:///a"])
def test_what_is_written_like_a_path_is_a_place(value: Any) -> None:
    assert is_place(value) and normal([value, 1]) == [1] and normal({"a": value, "b": 1}) == {"b": 1}


@pytest.mark.parametrize("value", ["a/b", "split_digits", "train", "~", ".", "vit_b/16", "", "http", 3, None, "a.b", "c:d"])
def test_what_is_not_is_none(value: Any) -> None:
    assert not is_place(value) and normal(value) == value


def test_arguments_leave_out_places_by_name_type_and_declaration() -> None:
    def build(size: int, root: str, clean_root: str, checkpoint_path: str, typed: Path | None, listed: str, files: str,
              file_format: str, nested: dict[str, Any]) -> None: ...

    given = {"nested": {"dataset_root": "a", "deep": {"cache_dir": "b", "k": (1, 2)}}, "root": "data", "clean_root": "x",
             "checkpoint_path": None, "typed": "t", "listed": "l", "files": "t10k", "file_format": "png", "size": 3, "more": 1}
    assert arguments(build, given, {"listed"}) == {
        "size": 3, "files": "t10k", "file_format": "png", "nested": {"deep": {"k": [1, 2]}}, "more": 1,
    }  # fmt: skip
    assert next(iter(arguments(build, given))) == "size", "in the order of the signature, however they were given"


# ---------------------------------------------------------------------------------------------- data sets in folders
def stub_plan(scenario: list[str], tiny: Any = None) -> Plan:
    """The plan of a command line, on a network that costs nothing to build."""
    config = parse(["--scenario", *scenario, "--method", "ncm", "--backbone", "glyph_vit", "--backbone.pretrained", "false"])
    plan = plan_from(config)
    plan.backbone = tiny or tiny_backbone()
    return plan


def identity(scenario: list[str]) -> dict[str, Any]:
    plan = stub_plan(scenario)
    made = fingerprint(plan)
    assert made == fingerprint(plan), "two calls differ"
    return {"label": plan.names["scenario"]["name"], **made}


def three_places(tmp_path: Path, make: Callable[[Path], list[str]]) -> list[list[str]]:
    out = []
    for where in ("place_a", "place_b/deep er", "place_c+speed"):
        root = tmp_path / where
        root.mkdir(parents=True)
        out.append(make(root))
    return out


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_the_same_files_in_three_places_are_one_protocol(tmp_path: Path, make: Callable[[Path], list[str]]) -> None:
    found = [identity(argv) for argv in three_places(tmp_path, make)]
    assert found[0] == found[1] == found[2]
    text = json.dumps(found[0]) + new_id(found[0]["label"], "ncm", 0)
    assert not [word for word in (str(tmp_path), "place_", "deep") if word in text], text


WRAPPERS = sorted(name for name, entry in entries("cl_bench.scenarios").items() if issubclass(entry.load(), Wrapper)
                  and "of" in inspect.signature(entry.load()).parameters)


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_same_files_in_a_wrapper_are_one_protocol(tmp_path: Path, name: str) -> None:
    def make(root: Path) -> list[str]:
        inner = cifar_c(root)
        extra = ["--scenario.source_imbalance", "1"] if name == "long_tailed" else []
        return [name, "--scenario.of", inner[0], *(a.replace("--scenario.", "--scenario.of.") for a in inner[1:]), *extra]

    found = [identity(argv) for argv in three_places(tmp_path, make)]
    assert found[0] == found[1] == found[2] and str(tmp_path) not in json.dumps(found[0])
    assert name in found[0]["label"] and "cifar10c(corruptions=fog,snow)" in found[0]["label"]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_other_content_is_another_protocol(tmp_path: Path, make: Callable[[Path], list[str]]) -> None:
    argv = make(tmp_path)
    before = identity(argv)
    images = [f for f in sorted(tmp_path.rglob("*")) if f.suffix in (".npy", ".png", ".tar", ".gz")]
    file = next(f for f in images if "labels" not in f.name)
    size = file.stat().st_size
    if file.suffix == ".png":
        picture(file, 255)
    elif file.suffix == ".npy":
        np.save(file, np.load(file) + np.uint8(9))
    elif file.suffix == ".tar":
        file.write_bytes(file.read_bytes().replace(b"\x03", b"\x04"))
    else:
        mnist_files(tmp_path, seed=9)
    assert file.stat().st_size == size or file.suffix == ".gz"
    after = identity(argv)
    assert after["label"] == before["label"] and after["id"] != before["id"], f"another {file.name}, the same protocol"


def test_a_tuple_and_the_list_that_a_record_made_of_it_are_one_protocol() -> None:
    config = parse(["--scenario", "deployed_digits", "--scenario.corruptions", "[fog, contrast]", "--method", "ncm"])
    config["scenario"]["init_args"]["corruptions"] = ("fog", "contrast")
    again = json.loads(json.dumps(config))
    assert isinstance(again["scenario"]["init_args"]["corruptions"], list)
    first, second = plan_from(config), plan_from(again)
    label = "deployed_digits(corruptions=['fog', 'contrast'])"
    assert first.names["scenario"]["name"] == second.names["scenario"]["name"] == label
    assert fingerprint(first) == fingerprint(second)


def test_the_order_in_which_arguments_were_written_is_no_difference() -> None:
    base = parse(["--scenario", "split_digits", "--scenario.increment", "5", "--scenario.per_class", "9", "--method", "ncm"])
    turned = json.loads(json.dumps(base))
    turned["scenario"]["init_args"] = dict(reversed(turned["scenario"]["init_args"].items()))
    names = [plan_from(c).names["scenario"]["name"] for c in (base, turned)]
    assert names == ["split_digits(increment=5, per_class=9)"] * 2


# ---------------------------------------------------------------------------------------------- fields
CHANGES: dict[str, Callable[[], Plan]] = {
    "scenario": lambda: plan(label="other"),
    "weights": lambda: plan(info={"sha256": "0" * 64}),
    "backbone": lambda: plan(network="other"),
    "preprocess": lambda: plan(info={"preprocess": {"size": 5}}),
    "answers": lambda: plan(Plain(answers="all")),
    "reset": lambda: plan(Plain(reset="domain")),
    "test_batch_size": lambda: plan(Plain(test_batch_size=9)),
    "max_epochs": lambda: plan(Plain(max_epochs=1)),
    "stream_speed": lambda: plan(Plain(stream_speed=0.5)),
    "label_delay": lambda: plan(Plain(label_delay=3)),
    "source_recipe": lambda: plan(recipe=protocol.SourceRecipe(epochs=11)),
    "source_data": lambda: plan(Plain(light=1)),
    "scenario.data": lambda: plan(Plain(facts={"data": "e", "split": "domains"})),
    "scenario.split": lambda: plan(Plain(facts={"data": "d", "split": "classes"})),
}
CONSTANTS = {"protocol_version": "PROTOCOL_VERSION", "metrics": "METRICS", "seed_policy": "SEED_POLICY"}


def test_the_fingerprint_has_exactly_these_fields() -> None:
    assert set(fingerprint(plan())["fields"]) == {*CHANGES, *CONSTANTS}


@pytest.mark.parametrize("field", [*CHANGES, *CONSTANTS])
def test_each_field_alone_makes_another_protocol(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(plan())
    if field in CONSTANTS:
        monkeypatch.setattr(protocol, CONSTANTS[field], "another")
    after = fingerprint(CHANGES[field]() if field in CHANGES else plan())
    differing = {k for k in before["fields"] if before["fields"][k] != after["fields"][k]}
    assert differing == {field} and before["id"] != after["id"]


def test_the_source_counts_where_it_is_trained_on_and_only_there() -> None:
    fields = fingerprint(stub_plan(["split_digits"]))["fields"]
    assert fields["source_recipe"] is None and "source_data" not in fields


def test_a_field_of_a_scenario_that_is_a_path_is_left_out() -> None:
    one, two = (fingerprint(plan(Plain(facts={"data": "d", "file": Path(p), "where": str(p)}))) for p in ("/a/b", "/c/d"))
    assert one == two and "scenario.file" not in one["fields"] and "/a" not in json.dumps(one)


def test_a_protocol_has_a_short_name_made_of_its_fields() -> None:
    sha = find("cl_bench.backbones", "glyph_vit")().info["sha256"][:6]

    def name(*argv: str) -> str:
        return str(fingerprint(plan_from(parse(["--method", "ncm", "--scenario", *argv])))["name"])

    assert name("split_digits") == f"split_digits B0-Inc2 seen natural glyph_vit@{sha}"
    assert name("online", "--scenario.of", "split_digits", "--scenario.of.order", "3", "--scenario.of.base", "4").startswith(
        "online(of=split_digits(base=4, order=drawn)) B4-Inc2 seen drawn 1 pass glyph_vit@")
    stream = name("constant_speed", "--scenario.of", "per_domain")
    assert "batch 60 reset per domain speed 1 layout images_last source 10 epochs glyph_resnet@" in stream
    fields = fingerprint(plan())["fields"]
    assert protocol_name(fields) == protocol_name(json.loads(json.dumps(fields)))


# ---------------------------------------------------------------------------------------------- digests
class Items(torch.utils.data.Dataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.targets = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return self.x[k], int(self.targets[k])


def test_digests_cover_pixels_and_labels_whatever_the_data_set() -> None:
    data = coded(6)
    shapes: list[Callable[[torch.Tensor, torch.Tensor], Any]] = [
        TensorData, Items, lambda x, y: torch.utils.data.ConcatDataset([Items(x[:3], y[:3]), Items(x[3:], y[3:])]),
        lambda x, y: torch.utils.data.Subset(Items(x, y), [0, 5]),
        lambda x, y: [(a, int(b)) for a, b in zip(x, y, strict=True)],
    ]
    x, y = data.x.clone(), data.y.clone()
    x[5, 2, 1, 1] += 1
    y[5] += 1
    for make in shapes:
        first = digest_of(make(data.x, data.y))
        assert first == digest_of(make(data.x.clone(), data.y.clone())) and len(first) == 16
        assert len({first, digest_of(make(x, data.y)), digest_of(make(data.x, y))}) == 3, make
    assert digest_of(torch.utils.data.Subset(Items(data.x, data.y), [5, 0])) != digest_of(shapes[3](data.x, data.y))
