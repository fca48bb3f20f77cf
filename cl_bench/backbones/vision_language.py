"""A backbone with a text side: contrastive vision-language models (Radford et al., ICML 2021) as OpenCLIP builds them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.tensor import sent
from ..errors import UserError
from ..heads import Head, TextHead
from .base import Backbone

__all__: list[str] = []

_TOKENS: dict[tuple[str, str, int, tuple[str, ...]], Tensor] = {}  # of texts that every step reads again
KEPT_TOKENS = 1024  # lists of texts

# What transformers reads of a text tower beside its weights.
_TOKENIZER = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt")


class Vocabulary(NamedTuple):
    """Of a tokenizer, by the names that OpenCLIP's own has."""

    sot_token_id: int
    eot_token_id: int
    vocab_size: int


class VisionLanguageBackbone(Backbone):
    """A backbone that also places texts among its features.

    Attributes:
        language: the text side (and logit_scale) of the model; its image side is `model`.
    """

    def __init__(self, clip: nn.Module, *, context_name: str, config: Mapping[str, Any] | None = None, **facts: Any) -> None:
        self_keys = tuple(clip.state_dict())
        super().__init__(clip.visual, **facts)
        # One owner per module: otherwise copies and state dicts would hold the image tower twice.
        clip.visual = nn.Identity()
        self.language = clip
        self._context_name, self._keys, self._config = context_name, self_keys, dict(config or {})
        self._config_source = _config_text(context_name)

    @property
    def logit_scale(self) -> Tensor:
        """Factor of the cosine that the model was trained with (the exponential of its parameter)."""
        return self.language.logit_scale.exp()

    @property
    def context_length(self) -> int:
        """How many tokens the text side reads, those of start and end among them."""
        return int(getattr(self._text, "context_length", 0) or self.language.context_length)

    def make_head(self) -> Head:
        """The head that reads names: it answers for any named space, and follows every change of the text side."""
        return TextHead(self.num_features, self.encode_text, scale=self.logit_scale, version=self.text_version)

    def text_version(self) -> tuple[int, ...]:
        """Numbers that change whenever a weight of the text side is written, or is another tensor."""
        return tuple(n for p in self.language.parameters() for n in (_place(p), p._version))

    # ------------------------------------------------------------------ texts
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> tokens int64 (N, context_length) where the weights are.

        Raises:
            UserError: a text is longer than the context, or the tokenizer cannot be read.
        """
        tokenizer, limit = self.tokenizer(), self.context_length
        key = (self._context_name, self._config_source, limit, tuple(texts))
        if key not in _TOKENS:
            for text in texts:
                if (length := _length(tokenizer, text)) > limit:
                    raise UserError(f'"{text[:60]}" is {length} tokens long where {self.info["name"]} reads {limit}: '
                                    "shorten the name or template.")
            if len(_TOKENS) >= KEPT_TOKENS:
                _TOKENS.clear()
            _TOKENS[key] = tokenizer(list(texts), context_length=limit)
        return sent(_TOKENS[key].clone(), self.mean.device)

    def token_count(self, text: str) -> int:
        """How many tokens a text is, those of start and end among them; 0 where the tokenizer does not tell."""
        return _length(self.tokenizer(), text)

    def tokenizer(self) -> Any:
        """OpenCLIP's tokenizer of this model."""
        try:
            with root_logger_kept():
                return _tokenizer(self._context_name, self._config_source)
        except (OSError, ImportError) as error:
            raise UserError(
                f'The tokenizer of "{self._context_name}" cannot be read ({error}): fetch it where there is a network.'
            ) from error

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that begin and end a text, and how many tokens there are."""
        own = self.tokenizer()
        if self._padding is None:
            return Vocabulary(own.sot_token_id, own.eot_token_id, own.vocab_size)
        inner = own.tokenizer
        return Vocabulary(inner.cls_token_id, inner.sep_token_id, inner.vocab_size)

    @property
    def _text(self) -> nn.Module:
        """Who owns the parts of the text side: the model itself (CLIP), or its `text` (CustomTextCLIP)."""
        text = getattr(self.language, "text", None)
        return text if isinstance(text, nn.Module) else self.language

    @property
    def takes_embeddings(self) -> bool:
        """Whether learned vectors can stand in the place of words: a causal text tower of OpenCLIP's own, or one of
        transformers' that takes them."""
        tower = self._text
        if self._padding is not None:
            return True
        plain = getattr(tower, "cls_emb", None) is None and not getattr(tower, "use_pad_mask", False)
        return isinstance(getattr(tower, "token_embedding", None), nn.Module) and plain

    @property
    def _padding(self) -> int | None:
        """What fills up a text of a tower of transformers' (OpenCLIP's HFTextEncoder), which masks it; None of other towers."""
        inner, config = getattr(self._text, "transformer", None), getattr(self._text, "config", None)
        known = hasattr(inner, "get_input_embeddings") and not getattr(config, "is_encoder_decoder", False)
        return getattr(config, "pad_token_id", None) if known else None

    def ends(self, tokens: Tensor) -> Tensor:
        """Where the texts of tokens (N, L) end: positions (N,) of the tokens that say so."""
        return tokens.argmax(1) if self._padding is None else (tokens != self._padding).sum(1) - 1

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L) -> the vectors that the text tower reads, before positions (N, L, width)."""
        if not self.takes_embeddings:
            raise UserError(f"{self.info['name']} has no text tower that takes learned vectors; use one of OpenCLIP's own.")
        if self._padding is not None:
            return self._text.transformer.get_input_embeddings()(tokens)  # type: ignore[operator, union-attr]
        return self._text.token_embedding(tokens)  # type: ignore[operator]

    def encode_tokens(self, tokens: Tensor, embedded: Tensor | None = None, deeper: Sequence[Tensor] = ()) -> Tensor:
        """Tokens (N, L) -> features (N, num_features), not normalised; `embedded` (N, L, width) in place of the vectors
        of the tokens, which then only say where a text ends. `deeper` (n, width) each stand in the place of what positions
        1 to n came to, before the second block, the third, ...

        A causal tower that is read at the end token, and one that masks what fills up a text, compute no more positions than
        the longest text has: exact, and a fraction of the work.
        """
        if self._padding is not None:
            if len(deeper):
                _ = self.depths
            return self._encode_masked(tokens, embedded)
        if not self.takes_embeddings:
            if embedded is not None or len(deeper):
                self.embed_tokens(tokens)
            return self.language.encode_text(tokens)  # type: ignore[operator]
        from open_clip.transformer import text_global_pool

        tower: Any = self._text
        pool = getattr(tower, "text_pool_type", None) or tower.pool_type
        eos = getattr(tower, "text_eos_id", None) if hasattr(tower, "text_eos_id") else tower.eos_id
        mask = tower.attn_mask
        if pool == "argmax" and mask is not None:
            last = int(tokens.argmax(-1).max()) + 1
            tokens, embedded = tokens[:, :last], None if embedded is None else embedded[:, :last]
        x = tower.token_embedding(tokens) if embedded is None else embedded
        length = x.shape[1]
        x = x + tower.positional_embedding[:length].to(x)
        mask = None if mask is None else mask[:length, :length]
        x = through(tower.transformer, x, mask, deeper, 1) if len(deeper) else tower.transformer(x, attn_mask=mask)
        x = text_global_pool(tower.ln_final(x), tokens, pool, eos_token_id=eos)
        if tower.text_projection is None:
            return x
        return tower.text_projection(x) if isinstance(tower.text_projection, nn.Linear) else x @ tower.text_projection

    def _encode_masked(self, tokens: Tensor, embedded: Tensor | None) -> Tensor:
        """A tower of transformers', which masks what fills up a text: places that do so in all texts are left out."""
        tower: Any = self._text
        mask = tokens != self._padding
        last = int(mask.any(0).nonzero().max()) + 1
        mask = mask[:, :last].long()
        words = {"input_ids": tokens[:, :last]} if embedded is None else {"inputs_embeds": embedded[:, :last]}
        return tower.proj(tower.pooler(tower.transformer(**words, attention_mask=mask), mask))

    def encode_text(self, names: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)) -> Tensor:
        """Class names -> (C, num_features), unit length; the mean over `templates` (prompt ensembling, Radford et
        al., 3.1.4).

        Compare with `F.normalize(forward_features(x), dim=1)`.
        """
        vectors = [
            F.normalize(self.encode_tokens(self.tokenize([t.format(n.replace("_", " ")) for n in names])), dim=-1)
            for t in templates
        ]
        return F.normalize(torch.stack(vectors).mean(0), dim=-1)

    # ------------------------------------------------------------------ images
    @property
    def depths(self) -> tuple[int, int]:
        """Blocks of the image tower and of the text tower, where both are OpenCLIP's own transformers.

        Raises:
            UserError: they are not, and no learned vector can stand in their sequences.
        """
        sides = [getattr(getattr(side, "transformer", None), "resblocks", None) for side in (self.model, self._text)]
        if not self.takes_embeddings or any(s is None for s in sides) or not hasattr(self.model, "_embeds"):
            raise UserError(f"{self.info['name']} has no two transformers of OpenCLIP's own, in whose sequences learned "
                            "vectors can stand; use one that has, such as glyph_clip or ViT-B-16.")
        return len(sides[0]), len(sides[1])  # type: ignore[arg-type]

    def prompted_features(self, x: Tensor, prompts: Tensor, deeper: Sequence[Tensor] = ()) -> Tensor:
        """Images -> features (N, num_features), with `prompts` (n, width) behind the patches and `deeper` (n, width) each in
        the place of what those came to, before the second block, the third, ... (Jia et al., VPT, ECCV 2022)."""
        _ = self.depths
        tower: Any = self.model
        tokens = tower._embeds(self.preprocess(x).to(next(tower.parameters()).dtype))
        count = tokens.shape[1]
        tokens = torch.cat([tokens, tower.ln_pre(prompts.to(tokens)).expand(len(x), -1, -1)], 1)
        return _projected(tower, through(tower.transformer, tokens, None, deeper, count)[:, :count])

    def pooled_features(self, x: Tensor) -> Tensor:
        """Images -> what the image tower's last norm gives, before it is projected among texts (N, width); of towers that
        are not OpenCLIP's own, the features as they are."""
        tower: Any = self.model
        x = self.preprocess(x).to(next(tower.parameters()).dtype)
        if isinstance(trunk := getattr(tower, "trunk", None), nn.Module):
            return trunk(x)
        return tower._pool(tower.transformer(tower._embeds(x)))[0] if hasattr(tower, "_embeds") else tower(x)

    def patch_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> their features (N, num_features), as :meth:`forward_features` has them, and those of their patches, or of
        the places of a network's last map (N, L, num_features): what the tower ends with, norm, pooling and projection, of
        an image that is this patch all over. Not normalised.

        Raises:
            UserError: the tower is neither OpenCLIP's own vision transformer nor a network of timm's that pools by itself.
        """
        tower: Any = self.model
        x = self.preprocess(x).to(next(tower.parameters()).dtype)
        trunk: Any = getattr(tower, "trunk", None)
        if hasattr(tower, "_embeds"):
            tokens, before = tower.transformer(tower._embeds(x)), 1
        elif hasattr(trunk, "forward_head") and not hasattr(tower.head, "pool"):
            tokens, before = trunk.forward_features(x), int(getattr(trunk, "num_prefix_tokens", 0))
        else:
            raise UserError(f"{self.info['name']} has an image tower without patches among which one can choose; use a vision "
                            "transformer, such as glyph_clip or ViT-B-16.")

        def ended(t: Tensor) -> Tensor:
            return _projected(tower, t) if trunk is None else tower.head(trunk.forward_head(t))

        if tokens.ndim == 4:
            channels = -1 if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else 1
            each = tokens.movedim(channels, -1).flatten(0, 2)[:, None, None].movedim(-1, channels)
        else:
            each = tokens[:, before:].flatten(0, 1)[:, None].expand(-1, before + 1, -1)
        return ended(tokens), ended(each).unflatten(0, (len(x), -1))

    # ------------------------------------------------------------------ plain files
    def whole_state(self) -> dict[str, Tensor]:
        """Both towers under OpenCLIP's names, adapters of weights that are in use included as what they make of them.

        Raises:
            UserError: something is attached that no plain weight can hold.
        """
        found = _plain(self.language) | {f"visual.{k}": v for k, v in _plain(self.model).items()}
        state = {name: found[name] for name in self._keys if name in found}
        if len(state) != len(self._keys) or len(found) != len(self._keys):
            raise UserError("adapters that wrap layers are no change of weights: a plain OpenCLIP file cannot hold them.")
        return state

    def save_open_clip(self, folder: str | Path) -> Path:
        """Write weights, configuration and tokenizer so that OpenCLIP alone loads them:
        `open_clip.create_model("local-dir:FOLDER")` and `open_clip.get_tokenizer("local-dir:FOLDER")`."""
        from safetensors.torch import save_file

        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        config = json.loads(json.dumps(self._config))
        options = config.get("model_cfg", {}).get("text_cfg", {}).get("tokenizer_kwargs", {})
        if options.get("bpe_path"):
            source = _beside(self._context_name, options["bpe_path"])
            target = (where / source.name).resolve()
            if source.resolve() != target:
                copyfile(source, target)
            options["bpe_path"] = str(target)  # OpenCLIP takes it as it is, from wherever it runs
        _copy_towers(self._context_name, config.get("model_cfg", {}), where)
        save_file({k: v.contiguous().clone() for k, v in self.whole_state().items()}, where / "open_clip_model.safetensors")
        (where / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        return where


def _place(tensor: Tensor) -> int:
    """Where a tensor lies; inside of torch.func's transforms, which lend tensors without memory, which object it is."""
    return id(tensor) if torch._C._functorch.is_functorch_wrapped_tensor(tensor) else tensor.data_ptr()


def through(transformer: Any, x: Tensor, mask: Tensor | None, deeper: Sequence[Tensor], at: int) -> Tensor:
    """Tokens (N, L, width) through the blocks; before all but the first, as long as there are `deeper` ones, the tokens from
    position `at` on become them."""
    for k, block in enumerate(transformer.resblocks):
        if 0 < k <= len(deeper):
            new = deeper[k - 1].to(x).expand(len(x), -1, -1)
            x = torch.cat([x[:, :at], new, x[:, at + new.shape[1]:]], 1)
        x = block(x, attn_mask=mask) if transformer.batch_first else block(x.transpose(0, 1), attn_mask=mask).transpose(0, 1)
    return x


def _projected(tower: Any, tokens: Tensor) -> Tensor:
    pooled = tower._pool(tokens)[0]
    return pooled if tower.proj is None else pooled @ tower.proj


def _plain(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, parametrized ones as what they are now."""
    found: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        if "parametrizations" in name.split("."):
            continue
        held = {**part._parameters, **{k: v for k, v in part._buffers.items() if k not in part._non_persistent_buffers_set}}
        held |= {k: getattr(part, k) for k in getattr(part, "parametrizations", {})}
        found |= {f"{name}.{k}" if name else k: v.detach() for k, v in held.items() if v is not None}
    return found


@contextmanager
def root_logger_kept() -> Iterator[None]:
    """OpenCLIP logs through the root logger, whose first message would install a handler for the whole process."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _length(tokenizer: Any, text: str) -> int:
    if hasattr(tokenizer, "encode"):
        return len(tokenizer.encode(text)) + 2
    inner = getattr(tokenizer, "tokenizer", None)
    return len(inner(text)["input_ids"]) if callable(inner) else 0


def _beside(name: str, path: str) -> Path:
    """A file that a configuration names, beside which it lies."""
    return Path(name.removeprefix("local-dir:")) / path if name.startswith("local-dir:") else Path(path)


def towers_beside(name: str) -> dict[str, Any]:
    """Of the folder of a model: its `vision_cfg` and `text_cfg` where these name configurations that lie below it, by the
    places where they are; neither tower has weights of its own."""
    config, found = json.loads(_config_text(name))["model_cfg"], dict[str, Any]()
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    if (trunk := str(vision.get("timm_model_name", ""))).startswith("local-dir:"):
        place = _beside(name, trunk.removeprefix("local-dir:"))
        found["vision_cfg"] = {**vision, "timm_model_name": f"local-dir:{place}", "timm_model_pretrained": False}
    if text.get("hf_model_name") and (place := _beside(name, text["hf_model_name"])).is_dir():
        found["text_cfg"] = {**text, "hf_model_name": str(place), "hf_model_pretrained": False}
    return found


def _copy_towers(name: str, config: dict[str, Any], where: Path) -> None:
    """The configurations that :func:`towers_beside` finds, and the tokenizer that lies there, into another folder, which
    `config` then names."""
    for side, towers in (towers_beside(name) if name.startswith("local-dir:") else {}).items():
        key, files, target = ("hf_model_name", _TOKENIZER, where) if side == "text_cfg" else (
            "timm_model_name", ("config.json",), where / "image")
        source = Path(towers[key].removeprefix("local-dir:"))
        target.mkdir(exist_ok=True)
        for file in files:
            if (source / file).is_file() and (source / file).resolve() != (target / file).resolve():
                copyfile(source / file, target / file)
        config[side][key] = ("" if side == "text_cfg" else "local-dir:") + str(target.resolve())


def _config_text(name: str) -> str:
    """The configuration of a folder, so that another one in its place has another tokenizer."""
    where = Path(name.removeprefix("local-dir:")) / "open_clip_config.json"
    return where.read_text(encoding="utf-8") if name.startswith("local-dir:") else ""


@lru_cache(maxsize=8)
def _tokenizer(name: str, config: str) -> Any:
    import open_clip

    text = json.loads(config)["model_cfg"].get("text_cfg", {}) if config else {}
    path = (text.get("tokenizer_kwargs") or {}).get("bpe_path")
    return open_clip.get_tokenizer(name, **({"bpe_path": str(_beside(name, path))} if path else {}))
