"""CLIP models from local files: image, patch and text embeddings, with learned words in the prompts.

One class serves the paper's ViT-H/14 and the miniature: both are open_clip models, read from a folder in the hub's
layout or from a weights file and an architecture name. Nothing is ever downloaded.
"""

import difflib
import json
import pickle
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fsad_lib.errors import FsadError
from fsad_lib.foundation.device import best_device
from fsad_lib.foundation.images import check_images, resize
from fsad_lib.foundation.tokens import end_positions, inject, insert_concepts

__all__ = ["CLIP", "END_OF_TEXT", "check_windows", "expand_token_rows", "load_clip", "patch_grid"]

END_OF_TEXT = 49407
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


class _Before(NamedTuple):
    """first: (B,) column of each sentence's first learned word. kept: keys and values of the tokens before it, for each layer
    (B, heads, columns, width)."""

    first: Tensor
    kept: list[tuple[Tensor, Tensor]]


class CLIP:
    """An open_clip model with frozen weights, in evaluation mode and float32.

    Args:
        model: ``open_clip.CLIP`` or ``open_clip.CustomTextCLIP`` with a token-pooled ``VisionTransformer``.
        mean: channel means that the image tower was trained with, for images in [0, 1].
        std: channel standard deviations, likewise.

    Attributes:
        model: the open_clip model; its parameters do not require gradients.
        image_size: side of the square input in pixels.
        grid: side of the square patch grid.
        token_dim: length d of a token embedding, hence of a learned word.
        embed_dim: length D of the joint embeddings.
        logit_scale: the learned inverse temperature: about 100 in published models, 23.48 in the miniature.

    Raises:
        FsadError: an image or text tower of a kind whose mechanics differ from what is assumed here.

    Example:
        >>> vision = dict(image_size=32, layers=1, width=32, head_width=16, patch_size=8)
        >>> text = dict(width=16, heads=2, layers=1)
        >>> clip = CLIP(open_clip.CLIP(24, vision, text))
        >>> clip.encode_image(torch.rand(2, 3, 50, 50)).shape
        torch.Size([2, 24])
        >>> clip.encode_text(["a damaged <c_n>"], {"<c_n>": clip.token_embedding("gear")}).shape
        torch.Size([1, 24])
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] = open_clip.OPENAI_DATASET_MEAN,
        std: Sequence[float] = open_clip.OPENAI_DATASET_STD,
    ) -> None:
        self.model = model.float().eval().requires_grad_(False)
        self._text = getattr(model, "text", model)
        self._visual = model.visual
        _check_towers(self._visual, self._text)
        self.image_size = self._visual.image_size[0]
        self.grid = self._visual.grid_size[0]
        self.token_dim = self._text.token_embedding.weight.shape[1]
        self.embed_dim = self._visual.output_dim
        self.logit_scale = float(model.logit_scale.exp())
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._std = torch.tensor(std).view(1, 3, 1, 1)
        self._tokenizer = open_clip.SimpleTokenizer(context_length=self._text.context_length)
        self._tokenized = lru_cache(maxsize=512)(self._tokenize)
        self._before = lru_cache(maxsize=4)(self._keys_before)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._text.positional_embedding.device

    # Images

    def preprocess(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the image tower wants them: (B, 3, image_size, image_size).

        Resized directly to the square (bicubic, antialiased, clamped to [0, 1]) and normalised.
        """
        x = resize(check_images(x).to(self.device, torch.float32), self.image_size)
        return (x - self._mean.to(x)) / self._std.to(x)

    def embed_patches(self, x: Tensor) -> Tensor:
        """The image tower's input tokens (B, 1 + N, width) for images (B, 3, H, W) in [0, 1].

        Class token first, positional embeddings added, first layer norm applied. All of it works token by token,
        so that any subset of these tokens is what the tower would see of that subset alone.
        """
        v = self._visual
        patches = v.conv1(self.preprocess(x)).flatten(2).transpose(1, 2)
        tokens = torch.cat([v.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        return v.ln_pre(tokens + v.positional_embedding)

    def encode_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the transformer on the tokens (B, 1 + n, width) that :meth:`embed_patches` gives, or on a subset of them.

        Returns:
            f (B, D), of unit norm, and the patch features (B, n, width) after the last layer norm.
        """
        v = self._visual
        tokens = v.ln_post(v.transformer(tokens))
        return F.normalize(tokens[:, 0] @ v.proj, dim=-1), tokens[:, 1:]

    @torch.no_grad()
    def encode_subsets(self, tokens: Tensor, index: Tensor) -> Tensor:
        """Image embeddings of many subsets of the same tokens: each is what :meth:`encode_tokens` gives for it alone.

        Two savings change nothing: in the first block a token's query, key and value are the same in every subset, and in the
        last block only the class token is read.

        Args:
            tokens: (B, 1 + N, width) of :meth:`embed_patches`. index: (W, n) token numbers; the first column is the class token, 0.

        Returns:
            f (B, W, D), of unit norm.
        """
        v, blocks = self._visual, list(self._visual.transformer.resblocks)
        count = len(index)
        if not all(map(_is_plain, blocks)):
            return self.encode_tokens(tokens[:, index].flatten(0, 1))[0].unflatten(0, (-1, count))
        x = tokens[:, index].flatten(0, 1)
        for i, block in enumerate(blocks):
            attention, last = block.attn, block is blocks[-1]
            if i == 0:  # (B, heads, 1 + N, width) of each token once -> (B W, heads, n, width)
                once = _heads(attention, block.ln_1(tokens))
                q, k, u = (part[:, :, index].transpose(1, 2).flatten(0, 1) for part in once)
            else:
                q, k, u = _heads(attention, block.ln_1(x), first_query=last)
            if last:
                x, q = x[:, :1], q[:, :, :1]
            x = x + block.ls_1(attention.out_proj(F.scaled_dot_product_attention(q, k, u).transpose(1, 2).flatten(2)))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return F.normalize(v.ln_post(x[:, 0]) @ v.proj, dim=-1).unflatten(0, (-1, count))

    @torch.no_grad()
    def encode_image(self, x: Tensor, batch_size: int = 64) -> Tensor:
        """Image embeddings f (B, D) of unit norm, for images (B, 3, H, W) in [0, 1] of any size, ``batch_size`` at once."""
        return torch.cat([self.encode_tokens(self.embed_patches(part))[0] for part in check_images(x).split(batch_size)])

    # Text

    def encode_text(self, prompts: Sequence[str], concepts: Mapping[str, Tensor] | None = None) -> Tensor:
        """Text embeddings of prompts that may hold learned words.

        The context is cut to the longest prompt of the batch: behind a causal mask nothing after the end-of-text
        token can change the embedding that is read there.

        Args:
            prompts: B sentences; a learned word is written as its placeholder, for example ``"<c_n>"``.
            concepts: placeholder -> vector (token_dim,).

        Returns:
            g (B, D) of unit norm, differentiable in the vectors and in nothing else.

        Raises:
            FsadError: see :func:`fsad_lib.foundation.tokens.insert_concepts`.
        """
        concepts = dict(concepts or {})
        ids, positions, end = self._tokenized(_as_tuple(prompts), tuple(concepts))
        ids, end = ids.to(self.device), end.to(self.device)
        text = self._text
        if (before := self._before(_as_tuple(prompts), tuple(concepts), self.device)) is not None:
            return self._encode_from_words(ids, positions, end, concepts, before)
        embeddings = inject(text.token_embedding(ids), positions, concepts)
        length = ids.shape[1]
        mask = None if text.attn_mask is None else text.attn_mask[:length, :length]
        hidden = text.transformer(embeddings + text.positional_embedding[:length], attn_mask=mask)
        # The position of the end token comes from the ids, never from the largest id.
        return self._project(hidden[torch.arange(len(ids), device=self.device), end])

    def _project(self, hidden: Tensor) -> Tensor:
        pooled, projection = self._text.ln_final(hidden), self._text.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return F.normalize(pooled, dim=-1)

    # The tokens before a learned word cannot see it (causal mask): their keys and values are computed once, and each
    # training step runs, forwards and backwards, over the tokens from the word to the end of the sentence only.

    @torch.no_grad()
    def _keys_before(self, prompts: tuple[str, ...], names: tuple[str, ...], device: torch.device) -> _Before | None:
        """None where the shortcut does not apply: a sentence without a learned word, or an unusual text tower."""
        ids, positions, _ = self._tokenized(prompts, names)
        text = self._text
        blocks = text.transformer.resblocks
        plain = text.attn_mask is not None and getattr(text.transformer, "batch_first", True)
        if not plain or not positions or {row for row, _, _ in positions} != set(range(len(ids))) or not all(map(_is_plain, blocks)):
            return None
        first = [min(column for row, column, _ in positions if row == i) for i in range(len(ids))]
        width = max(first)
        hidden = text.token_embedding(ids[:, :width].to(device)) + text.positional_embedding[:width]
        kept = []
        for block in blocks:
            kept.append(_heads(block.attn, block.ln_1(hidden))[1:])
            hidden = block(hidden, attn_mask=text.attn_mask[:width, :width])
        return _Before(torch.tensor(first, device=device), kept)

    def _encode_from_words(
        self, ids: Tensor, positions: list, end: Tensor, concepts: dict[str, Tensor], before: _Before
    ) -> Tensor:
        text, first = self._text, before.first
        last = end - first
        columns = first[:, None] + torch.arange(int(last.max()) + 1, device=first.device)
        columns = columns.clamp_max(ids.shape[1] - 1)  # behind a shorter sentence's end, where nothing looks
        starts = first.tolist()
        embeddings = text.token_embedding(ids.gather(1, columns))
        x = inject(embeddings, [(row, column - starts[row], name) for row, column, name in positions], concepts)
        x = x + text.positional_embedding[columns]
        batch, length = columns.shape
        width = before.kept[0][0].shape[2]
        earlier = (torch.arange(width, device=first.device) < first[:, None])[:, None].expand(-1, length, -1)
        causal = torch.ones(length, length, dtype=torch.bool, device=first.device).tril().expand(batch, -1, -1)
        mask = torch.cat([earlier, causal], dim=2)[:, None]
        for block, (k, v) in zip(text.transformer.resblocks, before.kept, strict=True):
            q, own_k, own_v = _heads(block.attn, block.ln_1(x))
            seen = F.scaled_dot_product_attention(q, torch.cat([k, own_k], 2), torch.cat([v, own_v], 2), attn_mask=mask)
            x = x + block.ls_1(block.attn.out_proj(seen.transpose(1, 2).flatten(2)))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return self._project(x[torch.arange(batch, device=first.device), last])

    def token_embedding(self, word: str) -> Tensor:
        """The embedding (token_dim,) of a word that is exactly one token: where a learned word may start.

        Raises:
            FsadError: the word is several tokens, or none.

        Example:
            >>> vision = dict(image_size=16, layers=1, width=32, head_width=16, patch_size=8)
            >>> clip = CLIP(open_clip.CLIP(24, vision, dict(width=16, heads=2, layers=1)))
            >>> clip.token_embedding("object").shape
            torch.Size([16])
        """
        ids = self._tokenizer([word])[0].tolist()
        tokens = ids[1 : ids.index(END_OF_TEXT)]
        if len(tokens) != 1:
            raise FsadError(f"{word!r} is {len(tokens)} tokens; a start word must be one, such as 'object'.")
        return self._text.token_embedding.weight[tokens[0]].clone()

    def _tokenize(self, prompts: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, list, Tensor]:
        ids, positions = insert_concepts(prompts, self._tokenizer, names)
        end = end_positions(ids, END_OF_TEXT)
        if self._text.attn_mask is not None and len(ids):
            ids = ids[:, : int(end.max()) + 1]
        return ids, positions, end


def clip_of(profile: Any, section: str = "clip") -> "CLIP":
    """The CLIP of a profile's section ("clip", "winclip_clip" or "tgvig_clip"), read once a process; on the GPU if there is one.

    Example:
        >>> from fsad_lib.profiles import load_profile
        >>> clip_of(load_profile("mini")) is clip_of(load_profile("mini"), "winclip_clip")  # the miniatures share one
        True
    """
    return _read_once(str(profile.path(section)), getattr(profile, section).architecture, best_device())


@lru_cache(maxsize=4)
def _read_once(checkpoint: str, architecture: str | None, device: str) -> "CLIP":
    return load_clip(checkpoint, architecture if Path(checkpoint).is_file() else None, device)


def load_clip(
    checkpoint: str | Path, architecture: str | None = None, device: str | torch.device = "cpu"
) -> CLIP:
    """Reads a CLIP model from disk.

    Args:
        checkpoint: a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors`` (or
            ``open_clip_pytorch_model.bin``), as on the hub; or one weights file (.safetensors, .bin, .pt).
        architecture: for a file, open_clip's name of the architecture, e.g. ``"ViT-H-14"``. Weights published by
            OpenAI were trained with QuickGELU: name them ``"ViT-B-16-quickgelu"``; nothing in the file itself
            tells, and plain ``"ViT-B-16"`` would load without a word and score wrongly.
        device: where to put the model.

    Returns:
        the model, in float32 whatever the file's precision.

    Raises:
        FsadError: missing files, an unknown architecture, weights that do not fit, an unsupported tower.

    Example:
        >>> from fsad_lib.foundation.miniatures.inspect import pairs
        >>> clip = load_clip("data/models/mini/clip")
        >>> clip.image_size, clip.grid
        (96, 12)
        >>> words = ["a photo of a carpet", "a photo of a gear", "a photo of a key"]
        >>> words[(clip.encode_image(pairs(1, nouns=["gear"]).good) @ clip.encode_text(words).T).argmax()]
        'a photo of a gear'
    """
    path = Path(checkpoint)
    if path.is_dir():
        config = _read_config(path / "open_clip_config.json")
        model_config, preprocess = config["model_cfg"], config.get("preprocess_cfg", {})
        if "openai" in path.name.lower() and not model_config.get("quick_gelu"):
            raise FsadError(
                f"{path} holds OpenAI's weights, which were trained with QuickGELU, but its open_clip_config.json does not say so; "
                'set "quick_gelu": true in its model_cfg.'
            )
        weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if weights is None:
            raise FsadError(f"no CLIP weights in {path}: expected {' or '.join(WEIGHTS)}. Put the file there.")
    elif path.is_file():
        model_config, preprocess, weights = _architecture(architecture, path), {}, path
    else:
        raise FsadError(
            f"no CLIP checkpoint at {path}: expected a folder with open_clip_config.json and {WEIGHTS[0]}, or a "
            "weights file and its architecture. Download it there, or set the path in the profile."
        )
    model = _build(model_config, path)
    state = _adapt(_read_state(weights), model)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise FsadError(
            f"the weights in {weights} do not fit the architecture {architecture or 'of its configuration'}: "
            f"{_shorten(str(error))} Name the architecture that the weights were trained with."
        ) from error
    kwargs = {key: preprocess[key] for key in ("mean", "std") if preprocess.get(key)}
    return CLIP(model.to(device), **kwargs)


def patch_grid(checkpoint: str | Path, architecture: str | None = None) -> int | None:
    """Side of the patch grid that :func:`load_clip` would find, without reading weights; None where it cannot be told in advance.

    >>> patch_grid("/models/vit-h.safetensors", "ViT-H-14"), patch_grid("/models/vit-h.safetensors")
    (16, None)
    """
    path = Path(checkpoint)
    if path.is_dir():
        config = _read_config(path / "open_clip_config.json")["model_cfg"]
    elif (config := open_clip.get_model_config(architecture) if architecture else None) is None:
        return None
    size, patch = (config["vision_cfg"].get(*key) for key in (("image_size", 224), ("patch_size", 16)))  # open_clip's own defaults
    return size // patch if isinstance(size, int) and isinstance(patch, int) and patch > 0 else None


def check_windows(profile: Any, *sections: str) -> None:
    """Raise FsadError where a window of ``winclip.scales`` is larger than the patch grid of one of the profile's CLIPs; reads no weights.

    Args:
        profile: a :class:`fsad_lib.profiles.Profile`. sections: its sections with a CLIP, e.g. "clip", "winclip_clip".
    """
    largest = max(profile.winclip.scales)
    for section in sections:
        grid = patch_grid(profile.path(section), getattr(profile, section).architecture)
        if grid is not None and largest > grid:
            raise FsadError(
                f"winclip.scales: found a window of {largest} patches a side; expected at most {grid}, as many as {section} has. Lower it."
            )


def expand_token_rows(rows: Tensor, ids: Tensor, vocab_size: int) -> Tensor:
    """The whole token table of a model that ships only the rows it trained.

    Args:
        rows: (n, d) trained token embeddings.
        ids: (n,) their token ids.
        vocab_size: number of rows of the whole table.

    Returns:
        (vocab_size, d) float32; every other row is drawn from N(0, 0.02²) by a generator seeded with 0, so that
        it is the same on every machine.

    Example:
        >>> table = expand_token_rows(torch.ones(1, 4), torch.tensor([2]), 5)
        >>> table.shape, table[2].tolist()
        (torch.Size([5, 4]), [1.0, 1.0, 1.0, 1.0])
    """
    table = torch.randn(vocab_size, rows.shape[1], generator=torch.Generator().manual_seed(0)) * 0.02
    table[ids.long()] = rows.float()
    return table


def _is_plain(block: nn.Module) -> bool:
    attention = getattr(block, "attn", None)
    return (
        type(block) is ResidualAttentionBlock
        and type(attention) is nn.MultiheadAttention
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


def _heads(attention: nn.MultiheadAttention, x: Tensor, first_query: bool = False) -> list[Tensor]:
    """Queries, keys and values, each (B, heads, L, width of a head); with ``first_query`` the first token's query alone."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if first_query:
        width = x.shape[-1]
        parts = [F.linear(x[:, :1], weight[:width], bias[:width]), *F.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)]
    else:
        parts = F.linear(x, weight, bias).chunk(3, dim=-1)
    return [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts]


def _check_towers(visual: nn.Module, text: nn.Module) -> None:
    if not isinstance(visual, VisionTransformer):
        found = f"an image tower of type {type(visual).__name__}"
    elif visual.attn_pool is not None or visual.pool_type != "tok":
        pooling = "attention" if visual.attn_pool is not None else visual.pool_type
        found = f"a VisionTransformer with {pooling!r} pooling"
    elif visual.proj is None:
        found = "a VisionTransformer without a projection"
    elif visual.grid_size[0] != visual.grid_size[1]:
        found = f"a patch grid of {visual.grid_size[0]}x{visual.grid_size[1]}"
    elif not hasattr(text, "token_embedding"):
        found = f"a text tower of type {type(text).__name__}"
    elif getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False):
        found = "a text tower with a class token or a padding mask"
    elif (pool := getattr(text, "text_pool_type", getattr(text, "pool_type", None))) not in ("argmax", "eos"):
        found = f"a text tower with {pool!r} pooling"
    elif text.token_embedding.num_embeddings <= END_OF_TEXT:
        found = f"a vocabulary of {text.token_embedding.num_embeddings} tokens"
    else:
        return
    raise FsadError(
        f"found {found}; supported are open_clip models with a square, token-pooled VisionTransformer and CLIP's "
        "own text tower and tokenizer, such as ViT-B-16, ViT-B-16-plus-240, ViT-L-14 or ViT-H-14."
    )


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"], config["model_cfg"]["embed_dim"]
    except FileNotFoundError:
        raise FsadError(f"no {path.name} in {path.parent}; copy it from where the weights came from.") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise FsadError(
            f"{path} is not an open_clip configuration ({error}); expected model_cfg with embed_dim, vision_cfg and "
            "text_cfg. Copy it again from where the weights came from."
        ) from error
    return config


def _architecture(name: str | None, path: Path) -> dict:
    known = open_clip.list_models()
    if name is None:
        raise FsadError(f"{path} is a file: name its architecture too, for example architecture='ViT-H-14'.")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or ["ViT-B-16", "ViT-B-16-plus-240", "ViT-H-14"]
        raise FsadError(f"open_clip knows no architecture {name!r}; did you mean {', '.join(close)}?")
    if "openai" in path.name.lower() and "quickgelu" not in name and f"{name}-quickgelu" in known:
        raise FsadError(
            f"{path.name} holds OpenAI's weights, which were trained with QuickGELU, but {name!r} uses GELU; "
            f"set architecture='{name}-quickgelu'."
        )
    return open_clip.get_model_config(name)


def _build(config: dict, path: Path) -> nn.Module:
    config = dict(config)
    custom = config.pop("custom_text", False)
    foreign = [
        key
        for part in ("vision_cfg", "text_cfg")
        for key in ("timm_model_name", "hf_model_name", "hf_tokenizer_name")
        if config[part].get(key)
    ]
    if foreign:
        raise FsadError(
            f"the model at {path} is made with {', '.join(foreign)}; supported are open_clip's own VisionTransformer "
            "and text tower, such as ViT-B-16 or ViT-H-14."
        )
    try:
        return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    except TypeError as error:
        raise FsadError(f"the model at {path} is not a plain open_clip CLIP ({error}).") from error


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise FsadError(
            f"{path} cannot be read as a file of weights ({_shorten(str(error))}). It may be incomplete, or a "
            "TorchScript archive such as OpenAI's own; use a .safetensors or state-dict file of the same model."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise FsadError(f"{path} holds no named weights; expected a state dict of an open_clip model.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _adapt(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    for key in ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask"):
        state.pop(key, None)
    for prefix in ("", "text."):
        rows = state.pop(f"{prefix}token_embedding.rows", None)
        ids = state.pop(f"{prefix}token_embedding.ids", None)
        if rows is not None and ids is not None:
            state[f"{prefix}token_embedding.weight"] = expand_token_rows(rows, ids, model.vocab_size)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    elif "text.positional_embedding" in state and hasattr(model, "positional_embedding"):
        state = {key.removeprefix("text."): value for key, value in state.items()}
    if "logit_scale" in state:
        state["logit_scale"] = state["logit_scale"].reshape(model.logit_scale.shape)
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _as_tuple(prompts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(prompts, str):
        raise FsadError(f"prompts must be a list of strings, found the string {prompts!r}. Write [{prompts!r}].")
    return tuple(prompts)


def _shorten(text: str, length: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length] + " ..."
