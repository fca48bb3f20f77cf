"""Labels, folder names and fingerprints: made of content, never of places; every field counts."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cl_toys import mnist_files
from hypothesis import given, settings
from PIL import Image
from toys import coded, tiny_backbone

from cl_bench import Experience, LabelSpace, Method, Scenario, TensorData, TestSet, UserError
from cl_bench.command.config import parse, plan_from
from cl_bench.data.digest import digest_of
from cl_bench.engine import protocol
from cl_bench.engine.protocol import Plan, fingerprint, protocol_name
from cl_bench.identity import arguments, is_place, normal
from cl_bench.records.writer import new_id
from cl_bench.registry import entries, find
from cl_bench.scenario import Wrapper

WNIDS = ("n01440764", "n01443537", "n01484850")


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
def picture(path: Path, value: int, size: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value % 256, 90, 30)).save(path, compress_level=0)  # every picture has one size in bytes


def classes(root: Path, *where: str, n: int = 2) -> None:
    for k, part in enumerate(where):
        for c, name in enumerate(WNIDS):
            for i in range(n):
                picture(root / part / name / f"{i}.png", 40 * c + 7 * i + k)


def cifar_c(root: Path) -> list[str]:
    for k, name in enumerate(("fog", "snow", "original")):
        np.save(root / f"{name}.npy", np.full((20, 32, 32, 3), k, np.uint8))
    np.save(root / "labels.npy", np.arange(20) % 10)
    return ["cifar10c", "--scenario.root", str(root), "--scenario.corruptions", "fog,snow"]


def cifar_101(root: Path) -> list[str]:
    np.save(root / "cifar10.1_v6_data.npy", np.zeros((12, 32, 32, 3), np.uint8))
    np.save(root / "cifar10.1_v6_labels.npy", np.arange(12, dtype=np.int32) % 10)
    return ["cifar10_1", "--scenario.root", str(root)]


def imagenet_list(root: Path) -> Path:
    (root / "classes.txt").write_text("\n".join(f"{w} name of {w}" for w in WNIDS))
    return root / "classes.txt"


def imagenet_c(root: Path) -> list[str]:
    classes(root / "c", "fog/5", "snow/5")
    (root / "images.txt").write_text("\n".join(f"{w}/{i}.png" for w in WNIDS for i in (1, 0)))
    return ["imagenet_c", "--scenario.root", str(root / "c"), "--scenario.corruptions", "fog,snow",
            "--scenario.class_list", str(imagenet_list(root)), "--scenario.image_list", str(root / "images.txt")]


def imagenet_r(root: Path) -> list[str]:
    classes(root / "r", "")
    return ["imagenet_r", "--scenario.root", str(root / "r"), "--scenario.class_list", str(imagenet_list(root))]


def domainnet_126(root: Path, name: str = "domainnet126") -> list[str]:
    for domain in ("real", "clipart", "painting", "sketch", "infograph"):
        classes(root, domain)
        lines = [f"{domain}/{w}/{i}.png {c}" for c, w in enumerate(WNIDS) for i in (0, 1)]
        (root / "lists").mkdir(exist_ok=True)
        (root / "lists" / f"{domain}_list.txt").write_text("\n".join(lines))
    return [name, "--scenario.root", str(root), "--scenario.lists", str(root / "lists")]


def imagenet_d109(root: Path) -> list[str]:
    (root / "map.txt").write_text("310\n309\n4")
    return [*domainnet_126(root, "imagenet_d109"), "--scenario.label_map", str(root / "map.txt")]


def ccc(root: Path) -> list[str]:
    folder = root / "baseline_20_transition+speed_2000_seed_43"
    folder.mkdir()
    with tarfile.open(folder / "serial_00000.tar", "w") as tar:
        for i in range(2):
            buffer = io.BytesIO()
            Image.new("RGB", (224, 224), (40 * i, 3, 3)).save(buffer, "JPEG")
            for name, content in ((f"{i:06d}.input.jpg", buffer.getvalue()), (f"{i:06d}.output.cls", b"%d" % i)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return ["ccc", "--scenario.root", str(root)]


def split_mnist(root: Path) -> list[str]:
    mnist_files(root)
    return ["split_mnist", "--scenario.root", str(root)]


def split_folders(root: Path) -> list[str]:
    classes(root, "train", "test", n=3)
    return ["split_imagenet_r", "--scenario.root", str(root), "--scenario.increment", "2"]


def office_home(root: Path) -> list[str]:
    classes(root, "Art", "Clipart", "Product", "Real World", n=5)
    return ["office_home", "--scenario.root", str(root)]


def domainnet(root: Path) -> list[str]:
    for domain in ("real", "quickdraw", "painting", "sketch", "infograph", "clipart"):
        classes(root, domain)
        for i, part in enumerate(("train", "test")):
            (root / f"{domain}_{part}.txt").write_text("\n".join(f"{domain}/{w}/{i}.png {c}" for c, w in enumerate(WNIDS)))
    return ["domainnet", "--scenario.root", str(root)]


MAKERS: list[Callable[[Path], list[str]]] = [cifar_c, cifar_101, imagenet_c, imagenet_r, domainnet_126, imagenet_d109, ccc,
                                             split_mnist, split_folders, office_home, domainnet]


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


WRAPPERS = sorted(name for name, entry in entries("cl_bench.scenarios").items() if issubclass(entry.load(), Wrapper))


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
class Plain(Scenario):
    """A stream whose every fact can be changed."""

    test_batch_size = 8

    def __init__(self, light: int = 0, **facts: Any) -> None:
        self.light, self.facts = light, {"data": "d", "split": "domains"}
        for name, value in facts.items():
            setattr(self, name, value)

    @property
    def source(self) -> Experience | None:
        data = coded(8)
        return Experience("source", LabelSpace((0, 1, 2, 3)), TensorData(data.x + self.light, data.y))

    def stream(self) -> list[TestSet]:
        return [TestSet("a", LabelSpace((0, 1, 2, 3)), coded(8))]

    def protocol(self) -> dict[str, Any]:
        return self.facts


def plan(scenario: Scenario | None = None, label: str = "plain", network: str = "tiny", **changes: Any) -> Plan:
    backbone = tiny_backbone()
    backbone.info.update(changes.pop("info", {}))
    names = {"scenario": {"name": label}, "method": {"name": "m", "label": "m"}, "backbone": {"name": network}}
    return Plan(scenario or Plain(), backbone, Method, Method, names, **changes)


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
    assert "batch 60 reset per domain speed 1 source 10 epochs glyph_resnet@" in stream
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


# ---------------------------------------------------------------------------------------------- heads by name
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
