"""Backbones from timm, torchvision, OpenCLIP and files, and weight files that are not what they say."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cl_bench.backbones.checkpoints import load_exactly, read_weights
from cl_bench.backbones.cifar_resnet import CifarResNet, cifar_resnet
from cl_bench.backbones.open_clip_models import open_clip_model
from cl_bench.backbones.timm_models import timm_model
from cl_bench.backbones.torchvision_models import torchvision_model
from cl_bench.errors import UserError


def images(n: int = 4, side: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


# --- timm, torchvision, OpenCLIP


@pytest.mark.parametrize(
    "name", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050", "efficientnet_lite0"]
)
def test_timm_models_split_into_features_and_head(name, tmp_path):
    """With weights from a file, head and features together are timm's own model."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    backbone = timm_model(name, checkpoint_path=str(tmp_path / "w.safetensors"))
    config = timm.data.resolve_model_data_config(model)
    x = images(2, config["input_size"][-1])
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        expected = model((x - mean) / std)
        assert torch.allclose(backbone(x), expected, atol=1e-5)
        assert backbone.forward_features(x).shape == (2, backbone.num_features)
    assert backbone.info["sha256"] == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert backbone.info["preprocess"]["mean"] == tuple(config["mean"])


def test_timm_takes_weights_and_preprocessing_from_one_folder(tmp_path):
    import timm

    model = timm.create_model("resnet10t", num_classes=3).eval()
    config = {
        "architecture": "resnet10t",
        "num_classes": 3,
        "pretrained_cfg": {
            "input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear",
            "num_classes": 3, "label_names": ["ant", "bee", "cow"], "first_conv": "conv1.0", "classifier": "fc",
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        timm_model(f"local-dir:{tmp_path}")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for backbone in (timm_model(f"local-dir:{tmp_path}"), timm_model("", local_dir=str(tmp_path))):
        how = backbone.info["preprocess"]
        assert (how["size"], how["mean"], how["interpolation"]) == (64, (0.1, 0.2, 0.3), "bilinear")
        assert backbone.classes == ("ant", "bee", "cow")
        with torch.no_grad():
            x = images(2, 64)
            assert torch.allclose(backbone(x), model((x - backbone.mean) / backbone.std), atol=1e-5)
    with pytest.raises(UserError, match="sha256"):
        timm_model(f"local-dir:{tmp_path}", sha256="0" * 64)


def test_timm_mistakes_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="did you mean"):
        timm_model("vit_tiny_patch16")
    with pytest.raises(UserError, match="several sources"):
        timm_model("resnet10t", pretrained=True, checkpoint_path="x")
    with pytest.raises(UserError, match=r"no folder"):
        timm_model(f"local-dir:{tmp_path}/none")
    (tmp_path / "w.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="torch file"):
        timm_model("resnet10t", checkpoint_path=str(tmp_path / "w.npz"))
    assert timm_model("resnet10t").head is None, "random weights have no classifier of their own"


def test_timm_without_a_network_says_how_to_go_on(monkeypatch):
    import timm

    def offline(*_: object, **__: object):
        raise OSError("cannot reach the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"cannot reach the hub.*checkpoint_path or local_dir"):
        timm_model("resnet10t", pretrained=True)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_torchvision_models_split_into_features_and_head(name, tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    if name == "squeezenet1_1":  # its classifier is a convolution before the pooling
        with pytest.raises(UserError, match="no linear classifier"):
            torchvision_model(name, checkpoint_path=str(tmp_path / "w.pth"))
        return
    backbone = torchvision_model(name, checkpoint_path=str(tmp_path / "w.pth"))
    x = images(2, 224)
    with torch.no_grad():
        expected = model((x - backbone.mean) / backbone.std)
        assert torch.allclose(backbone(x), expected, atol=1e-5)
        assert backbone.forward_features(x).shape == (2, backbone.num_features)
    assert len(backbone.classes) == 1000 and backbone.info["preprocess"]["size"] == 224


def test_torchvision_refuses_a_file_that_is_not_the_named_weights(tmp_path):
    from torchvision import models

    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="another version"):
        torchvision_model("resnet18", weights="IMAGENET1K_V1", checkpoint_path=str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match="IMAGENET1K_V1"):
        torchvision_model("resnet18", weights="IMAGENET1K_V7")
    with pytest.raises(UserError, match="no classifier"):
        torchvision_model("resnet19")


def clip_folder(folder: Path, **vision: object) -> Path:
    """A tiny CLIP as OpenCLIP writes it."""
    import open_clip

    tower = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": tower | vision, "text_cfg": text, "quick_gelu": True}
    how = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": how}))
    torch.manual_seed(0)
    model = open_clip.CLIP(24, tower | vision, text, quick_gelu=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def test_open_clip_keeps_preprocessing_and_quick_gelu_and_encodes_text(tmp_path):
    from open_clip.transformer import QuickGELU

    root = logging.getLogger()
    handlers = list(root.handlers)
    backbone = open_clip_model(f"local-dir:{clip_folder(tmp_path)}")
    assert root.handlers == handlers
    how = backbone.info["preprocess"]
    assert (how["size"], how["mean"], how["squash"]) == (16, (0.1, 0.2, 0.3), True)
    assert any(isinstance(m, QuickGELU) for m in backbone.model.modules())
    with torch.no_grad():
        assert backbone.forward_features(images(2, 40)).shape == (2, backbone.num_features) == (2, 24)
        texts = backbone.encode_text(["cat", "dog", "cat"])
        both = backbone.encode_text(["cat"], templates=["a photo of a {}.", "a drawing of a {}."])
    assert texts.shape == (3, 24) and torch.allclose(texts.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(texts[0], texts[2], atol=1e-6) and not torch.allclose(texts[0], texts[1], atol=1e-3)
    assert not torch.allclose(both[0], texts[0], atol=1e-4)
    assert (
        backbone.info["sha256"] == hashlib.sha256((tmp_path / "open_clip_model.safetensors").read_bytes()).hexdigest()
    )
    saved = load_file(tmp_path / "open_clip_model.safetensors")
    assert torch.equal(backbone.model.proj, saved["visual.proj"])
    twin = copy.deepcopy(backbone)
    assert torch.equal(twin.encode_text(["cat"]), backbone.encode_text(["cat"]))


def test_open_clip_mistakes_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="did you mean"):
        open_clip_model("ViT-B-33")
    with pytest.raises(UserError, match="one of the tags"):
        open_clip_model("ViT-B-32", pretrained=str(tmp_path / "none.pt"))
    with pytest.raises(UserError, match="without"):
        open_clip_model("ViT-B-32-quickgelu", pretrained="openai", quick_gelu=False)
    (tmp_path / "page.pt").write_bytes(b"<html>sign in</html>")
    with pytest.raises(UserError, match="web page"):
        open_clip_model("ViT-B-32", pretrained=str(tmp_path / "page.pt"))
    with pytest.raises(UserError, match="open_clip_config"):
        open_clip_model(f"local-dir:{tmp_path}")


# --- CIFAR ResNets and weight files


@pytest.fixture
def cifar_folder(tmp_path) -> Path:
    torch.manual_seed(0)
    state = dict(CifarResNet(3).state_dict())
    state |= {f"linear.{k}": v for k, v in nn.Linear(64, 10).state_dict().items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "model.safetensors")
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    config = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "sha256": digest}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_cifar_resnet_reads_its_folder(cifar_folder):
    backbone = cifar_resnet(depth=20, folder=str(cifar_folder))
    assert sum(p.numel() for p in backbone.parameters()) == 269_722
    with torch.no_grad():
        assert backbone(images()).shape == (4, 10) and backbone.forward_features(images()).shape == (4, 64)
    saved = load_file(cifar_folder / "model.safetensors")
    assert torch.equal(backbone.head.weight, saved["linear.weight"])
    assert torch.equal(backbone.model.layer2[0].conv1.weight, saved["layer2.0.conv1.weight"])


def test_cifar_resnet_refuses_other_files(cifar_folder):
    with pytest.raises(UserError, match=r'misses 180 \(first: "layer1\.3\.conv1\.weight"'):
        cifar_resnet(depth=56, folder=str(cifar_folder))
    with pytest.raises(UserError, match="6n"):
        cifar_resnet(depth=18, folder=str(cifar_folder))  # type: ignore[arg-type]
    file = cifar_folder / "model.safetensors"
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    for content, message in (
        (bytes(changed), "sha256"),
        (b"<html>", "web page"),
        (whole[:1000], "cut short|not a safe"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            cifar_resnet(depth=20, folder=str(cifar_folder))
    (cifar_folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="mean, std and sha256"):
        cifar_resnet(depth=20, folder=str(cifar_folder))


def test_torch_files_are_read_without_running_them(tmp_path):
    state = {"weight": torch.arange(3.0)}
    for content in (state, {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}):
        torch.save(content, tmp_path / "a.pth")
        loaded, digest = read_weights(tmp_path / "a.pth")
        assert loaded.keys() == {"weight"} and torch.equal(loaded["weight"], state["weight"])
        assert digest == hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()
    torch.save(nn.Linear(2, 2), tmp_path / "b.pth")
    with pytest.raises(UserError, match="more than tensors"):
        read_weights(tmp_path / "b.pth")
    torch.save({"epoch": 3}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="no weights"):
        read_weights(tmp_path / "c.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "cut short"),
        (b"<!doctype html>", "web page"),
        (b"text", "not a torch"),
    ):
        (tmp_path / "d.pth").write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_weights(tmp_path / "d.pth")


def test_weights_of_another_model_name_the_first_that_differs():
    model = nn.Sequential(nn.Linear(2, 3))
    good = model.state_dict()
    with pytest.raises(UserError, match=r'misses 1 \(first: "0.bias"\)'):
        load_exactly(model, {"0.weight": good["0.weight"]}, "w.pth")
    with pytest.raises(UserError, match=r'unexpected 1 \(first: "fc.bias"\)'):
        load_exactly(model, {**good, "fc.bias": good["0.bias"]}, "w.pth")
    with pytest.raises(UserError, match=r'"0.bias" in "w.pth" has shape \(4,\) where the model has \(3,\)'):
        load_exactly(model, {**good, "0.bias": torch.zeros(4)}, "w.pth")
    for kind in (torch.int8, torch.int64, torch.bool, torch.complex64):
        with pytest.raises(UserError, match=f'"0.bias" in "w.pth" holds {str(kind)[6:]} numbers'):
            load_exactly(model, {**good, "0.bias": torch.zeros(3, dtype=kind)}, "w.pth")
    load_exactly(model, {**good, "0.bias": torch.zeros(3, dtype=torch.float16)}, "w.pth")
