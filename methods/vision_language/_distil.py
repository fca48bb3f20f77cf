"""Distillation of image-text similarities, which ZSCL and LwF-VR share, and what they distil on."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_bench import TensorData, UserError
from cl_bench.backbones.vision_language import VisionLanguageBackbone
from cl_bench.data.described import described, sentences
from cl_bench.data.files import existing_folder
from cl_bench.data.folder import images_below
from cl_bench.data.lists import lines_of
from cl_bench.data.pixels import rgb_picture


def frozen_copy(backbone: VisionLanguageBackbone) -> VisionLanguageBackbone:
    """A teacher: its weights are its own and stay."""
    teacher = copy.deepcopy(backbone).eval()
    return teacher.requires_grad_(False)


def similarity_losses(student: Tensor, teacher: Tensor, text: Tensor, scale: Tensor | float, temperature: float
                      ) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Image and text loss of Zheng et al. (finetune.py, helpers.py): cross-entropy of the softened similarities of
    student images (N, d) against those of teacher images, both to the teacher's texts (M, d); by rows and by columns.

    No gradient reaches a text tower: both matrices have the teacher's texts.
    """
    text = F.normalize(text, dim=-1)
    ours, theirs = (scale * F.normalize(v, dim=-1) @ text.T for v in (student, teacher))

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return temperature**2 * F.cross_entropy(a / temperature, (b / temperature).softmax(1))

    return loss(ours, theirs.detach()), loss(ours.T, theirs.T.detach())


def reference_pairs(count: int, images: str, captions: str, rng: torch.Generator) -> tuple[TensorData, list[str]]:
    """Images and sentences that stand for all that the model knows: a folder and a text file, or without them embedded
    ones (rendered characters and textures with sentences about others of their kind).

    Raises:
        UserError: a place is missing or empty.
    """
    x, facts = described(count, rng)
    data = TensorData(x.mul(255).round_().to(torch.uint8), torch.zeros(count, dtype=torch.int64))
    texts, _ = sentences(facts[torch.randperm(count, generator=rng)], rng)
    if images:
        data = _pictures(images, count)
    if captions:
        texts = lines_of(captions)
    return data, texts


def _pictures(folder: str, count: int, size: int = 224) -> TensorData:
    from PIL.Image import Resampling
    from PIL.ImageOps import fit
    from torchvision.transforms.functional import pil_to_tensor

    where = existing_folder(folder, "it should hold images.")
    files = images_below(where, where)[:count]
    if not files:
        raise UserError(f'"{folder}" holds no image: name a folder that does.')
    made = [pil_to_tensor(fit(rgb_picture(f, f'"{f}"'), (size, size), Resampling.BICUBIC)) for f in files]
    return TensorData(torch.stack(made), torch.zeros(len(made), dtype=torch.int64))
