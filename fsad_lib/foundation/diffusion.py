"""The text-to-image latent diffusion model: p_t2i(x | s) of ADP's equations 2 to 4, and its image-to-image edit.

Stable Diffusion's parts are loaded from a folder in the hub's layout and kept frozen::

    <checkpoint>/
      unet/       config.json  diffusion_pytorch_model.safetensors
      vae/        config.json  diffusion_pytorch_model.safetensors
      scheduler/  scheduler_config.json
      text_encoder/  config.json  model.safetensors       absent: built from CLIP's text tower
      tokenizer/  vocab.json  merges.txt  tokenizer_config.json  special_tokens_map.json   absent: made from open_clip's word list

Images x are (B, 3, H, W) in [0, 1]; latents z are scaled by the VAE's ``scaling_factor``; text states are (B, 77, C).
Every random number comes from ``generator(seed, index)``, drawn on the CPU, so that neither the batch size nor the
device changes which noise an image gets.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fsad_lib.errors import FsadError
from fsad_lib.foundation.images import check_images, resize
from fsad_lib.foundation.tokens import inject, insert_concepts

__all__ = [
    "Diffusion",
    "clip_tokenizer",
    "generator",
    "load_diffusion",
    "text_encoder_from_clip",
    "write_tokenizer",
]

CONTEXT = 77
START, END = "<|startoftext|>", "<|endoftext|>"
SLICED = 512  # from this side on the VAE works on one image at a time: the activations of a batch would set the peak of memory


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by a key of numbers and words, e.g. ``(seed, "sdedit", index)``.

    Example:
        >>> a, b = (torch.rand(1, generator=generator(0, "sdedit", i)).item() for i in (3, 3))
        >>> a == b
        True
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Diffusion:
    """A frozen Stable Diffusion whose text encoder accepts learned words.

    Args:
        tokenizer: transformers ``CLIPTokenizer``; its pad token fills prompts up to 77 (SD 1.x: end of text, SD 2.x: id 0).
        text_encoder: transformers ``CLIPTextModel``.
        vae: diffusers ``AutoencoderKL``.
        unet: diffusers ``UNet2DConditionModel``.
        scheduler: any diffusers scheduler made for the U-Net; noise levels and prediction type are read from it.
        image_size: side of the images that are encoded and made; default: the U-Net's ``sample_size`` in pixels.

    Attributes:
        image_size: int, pixels. factor: int, pixels per latent cell and side. prediction_type: "epsilon" or "v_prediction".
        alphas_cumprod: (num_train_timesteps,), the products of alpha_t.

    Raises:
        FsadError: a prediction type other than the two, a latent shift, an image size that the VAE cannot divide, or a text
            encoder of another width than the U-Net's cross attention.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> clip = load_clip("data/models/mini/clip")
        >>> diffusion = load_diffusion("data/models/mini/diffusion", clip)
        >>> known, learned = diffusion.encode_prompt(["a red gear", "a red <c>"], {"<c>": clip.token_embedding("gear")})
        >>> torch.allclose(known, learned, atol=1e-4)
        True
        >>> diffusion.sdedit(torch.rand(1, 3, 50, 60), ["a red gear"], strength=0.5, num_inference_steps=2).shape
        torch.Size([1, 3, 128, 128])
    """

    def __init__(
        self, tokenizer: Any, text_encoder: nn.Module, vae: nn.Module, unet: nn.Module, scheduler: Any,
        image_size: int | None = None,
    ):  # fmt: skip
        from diffusers import DDIMScheduler

        self.tokenizer, self.text_encoder, self.vae, self.unet = tokenizer, text_encoder, vae, unet
        for module in (text_encoder, vae, unet):
            module.eval().requires_grad_(False)
        # Sampling is deterministic DDIM on the checkpoint's own noise levels, whatever sampler the folder names.
        self.scheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
        self.prediction_type: str = self.scheduler.config.prediction_type
        self.alphas_cumprod: Tensor = self.scheduler.alphas_cumprod.to(self.device)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        sample = unet.config.sample_size
        self.image_size = int(image_size or (sample if isinstance(sample, int) else sample[0]) * self.factor)
        self._check()
        if self.image_size >= SLICED:
            vae.enable_slicing()
        self._pipes: dict[str, Any] = {}
        self._empty: Tensor | None = None

    def _check(self) -> None:
        width, cross = self.text_encoder.config.hidden_size, self.unet.config.cross_attention_dim
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise FsadError(
                f"the scheduler's prediction_type is {self.prediction_type!r}; expected 'epsilon' or 'v_prediction'. "
                "Correct scheduler/scheduler_config.json, or use another checkpoint."
            )
        if width != cross:
            raise FsadError(
                f"the text encoder gives {width} numbers a token, the U-Net's cross attention expects {cross}: "
                "they belong to different models. Give the text encoder (or CLIP) that the U-Net was trained with."
            )
        if getattr(self.vae.config, "shift_factor", None):
            raise FsadError(
                "this VAE shifts its latents (shift_factor); only Stable Diffusion 1.x and 2.x are supported."
            )
        steps = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if self.image_size % steps:
            raise FsadError(
                f"image_size {self.image_size} is not a multiple of {steps}, as this VAE and U-Net need. Choose one."
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device

    @property
    def token_dim(self) -> int:
        """Length of a token embedding, hence of a learned word."""
        return self.text_encoder.config.hidden_size

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of noise levels that the U-Net was trained with."""
        return len(self.alphas_cumprod)

    # ---------------------------------------------------------------- text
    def tokenize(self, texts: list[str]) -> Tensor:
        """Ids (B, 77) of B texts, cut at 77 tokens and padded with the tokenizer's own pad token."""
        out = self.tokenizer(
            texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
        )
        return out.input_ids

    def encode_prompt(self, prompts: Sequence[str], concepts: Mapping[str, Tensor] | None = None) -> Tensor:
        """Text states that condition the U-Net.

        The U-Net attends to the padding too, so all 77 positions are kept. A learned word replaces the token embedding
        at its placeholder's position, which equals an added token with that embedding.

        Args:
            prompts: B sentences; placeholders such as ``"<c_n>"`` may occur.
            concepts: placeholder -> vector (token_dim,).

        Returns:
            (B, 77, C), differentiable in the concepts.

        Raises:
            FsadError: see :func:`fsad_lib.foundation.tokens.insert_concepts` and ``inject``.
        """
        ids, positions = insert_concepts(prompts, self.tokenize, concepts)

        def put(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
            return inject(out, positions, concepts)

        hook = self.text_encoder.get_input_embeddings().register_forward_hook(put)
        try:
            return self.text_encoder(ids.to(self.device)).last_hidden_state
        finally:
            hook.remove()

    # ---------------------------------------------------------------- latents
    @torch.no_grad()
    def posterior(self, x: Tensor, batch_size: int = 8) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images, to be sampled anew at each training step.

        Args:
            x: (B, 3, H, W) in [0, 1]; resized to ``image_size`` if it has another size.

        Returns:
            mean and std, each (B, 4, h, w), scaled; ``z = mean + std * eps`` is one sample.

        Raises:
            FsadError: images that are not as above.
        """
        x = resize(check_images(x).float(), self.image_size).to(self.device)
        parts = [self.vae.encode(2 * part - 1).latent_dist for part in x.split(batch_size)]
        scale = self.vae.config.scaling_factor
        return scale * torch.cat([p.mean for p in parts]), scale * torch.cat([p.std for p in parts])

    @torch.no_grad()
    def decode(self, z: Tensor, batch_size: int = 8) -> Tensor:
        """Images (B, 3, image_size, image_size) in [0, 1] of scaled latents (B, 4, h, w)."""
        parts = z.to(self.device).split(batch_size)
        x = torch.cat([self.vae.decode(part / self.vae.config.scaling_factor).sample for part in parts])
        return (x / 2 + 0.5).clamp(0, 1)

    # ---------------------------------------------------------------- training objective
    def denoising_loss(self, z: Tensor, text: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The bound on -log p_t2i(x | s) that textual inversion minimises (eq. 2), up to weighting and constants.

        Args:
            z: (B, 4, h, w) scaled latents. text: (B, 77, C) text states.
            t: (B,) timesteps in [0, num_train_timesteps). eps: (B, 4, h, w) standard normal noise.

        Returns:
            (B,) mean squared error of the U-Net's prediction of eps (or of v, for a v-prediction model).
        """
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        z_t = a.sqrt() * z + (1 - a).sqrt() * eps
        # v = sqrt(a) eps - sqrt(1 - a) z   (Salimans & Ho 2022)
        target = eps if self.prediction_type == "epsilon" else a.sqrt() * eps - (1 - a).sqrt() * z
        prediction = self.unet(z_t, t, encoder_hidden_states=text).sample
        return (prediction - target).square().flatten(1).mean(1)

    # ---------------------------------------------------------------- sampling
    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str] | Tensor, *, num_inference_steps: int = 40, guidance_scale: float = 7.5, seed: int | str = 0,
        concepts: Mapping[str, Tensor] | None = None, batch_size: int = 8, progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """One image for each prompt.

        Args:
            prompts: B sentences, or text states (B, 77, C). concepts: placeholder -> vector (token_dim,), for the learned words in them.
            num_inference_steps: denoising steps. guidance_scale: classifier-free guidance; 1 or less: none.
            seed: image i starts from the noise of ``generator(seed, "generate", i)``.
            progress: called with (images done, images in all) after each batch.

        Returns:
            (B, 3, image_size, image_size) in [0, 1].

        Raises:
            FsadError: less than one step, one string in place of a list, or a placeholder without a vector.
        """
        _check_steps(num_inference_steps)
        text = self._states(prompts, concepts)
        side = self.image_size // self.factor
        out = []
        for index in torch.arange(len(text)).split(batch_size) if len(text) else ():  # nothing splits into one empty part
            start = torch.cat(
                [torch.randn(1, self.unet.config.in_channels, side, side, generator=generator(seed, "generate", i))
                 for i in index.tolist()]
            )  # fmt: skip
            out.append(
                self._pipe("text2img")(
                    latents=start.to(self.device), height=self.image_size, width=self.image_size,
                    **self._arguments(text[index.to(text.device)], guidance_scale, num_inference_steps),
                ).images
            )  # fmt: skip
            if progress:
                progress(int(index[-1]) + 1, len(text))
        return torch.cat(out) if out else torch.empty(0, 3, self.image_size, self.image_size)

    @torch.no_grad()
    def sdedit(
        self, x: Tensor, prompts: Sequence[str] | Tensor, *, strength: float, guidance_scale: float = 7.5,
        num_inference_steps: int = 40, seed: int | str = 0, concepts: Mapping[str, Tensor] | None = None, batch_size: int = 8,
        first_index: int = 0, progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Images edited towards their prompts: noise is added up to ``strength`` and taken out again (SDEdit, Meng et al. 2021).

        Args:
            x: (B, 3, H, W) in [0, 1]; resized to ``image_size``.
            prompts: B sentences, or text states (B, 77, C). concepts: placeholder -> vector (token_dim,), for the learned words in them.
            strength: share of the noise schedule that is run, in [0, 1]. 0 leaves only the autoencoder's round trip;
                1 runs all of it, which on diffusers' schedule still begins with a little of the image left (:meth:`generate` begins with
                noise alone). The number of denoising steps is ``int(num_inference_steps * strength)``.
            guidance_scale: classifier-free guidance; 1 or less: none.
            seed, first_index: image i draws from ``generator(seed, "sdedit", first_index + i)``, whatever its batch.
            progress: called with (images done, images in all) after each batch.

        Returns:
            (B, 3, image_size, image_size) in [0, 1].

        Raises:
            FsadError: images that are not as above; a strength outside [0, 1], or above 0 but too small for one step; prompts and images of
                different number.
        """
        count_steps(strength, num_inference_steps)
        x = check_images(x).float()  # diffusers would take a batch with one negative value for images in [-1, 1]
        check_sentences(prompts)
        if len(prompts) != len(x):
            raise FsadError(
                f"found {len(x)} images and {len(prompts)} prompts; give one prompt for each image."
            )
        x = resize(x, self.image_size).to(self.device)
        if strength == 0:
            return self.decode(self.posterior(x, batch_size)[0], batch_size)
        text = self._states(prompts, concepts)
        out = []
        for index in torch.arange(len(x)).split(batch_size) if len(x) else ():
            rows = index.to(self.device)
            noise = [generator(seed, "sdedit", first_index + i) for i in index.tolist()]
            out.append(
                self._pipe("img2img")(
                    image=x[rows], strength=strength, generator=noise,
                    **self._arguments(text[rows], guidance_scale, num_inference_steps),
                ).images
            )  # fmt: skip
            if progress:
                progress(int(index[-1]) + 1, len(x))
        return torch.cat(out) if out else torch.empty(0, 3, self.image_size, self.image_size)

    def _states(self, prompts: Sequence[str] | Tensor, concepts: Mapping[str, Tensor] | None) -> Tensor:
        if isinstance(prompts, Tensor):
            return prompts.to(self.device)
        check_sentences(prompts)
        unique = sorted(set(prompts))
        if not unique:
            return torch.empty(0, CONTEXT, self.token_dim, device=self.device)
        states = self.encode_prompt(unique, concepts)
        return states[[unique.index(prompt) for prompt in prompts]]

    def _arguments(self, text: Tensor, guidance_scale: float, num_inference_steps: int) -> dict[str, Any]:
        if self._empty is None:
            self._empty = self.encode_prompt([""])
        return dict(
            prompt_embeds=text, negative_prompt_embeds=self._empty.expand_as(text), guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps, output_type="pt",
        )  # fmt: skip

    def _pipe(self, kind: str) -> Any:
        if kind not in self._pipes:
            from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

            make = StableDiffusionPipeline if kind == "text2img" else StableDiffusionImg2ImgPipeline
            pipe = make(
                vae=self.vae, text_encoder=self.text_encoder, tokenizer=self.tokenizer, unet=self.unet,
                scheduler=self.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
            )  # fmt: skip
            pipe.set_progress_bar_config(disable=True)
            self._pipes[kind] = pipe
        return self._pipes[kind]


def least_strength(steps: int) -> float:
    """The least strength of three places that runs one of so many steps.

    >>> least_strength(3), int(3 * least_strength(3))
    (0.334, 1)
    """
    return math.ceil(1000 / steps) / 1000


def count_steps(strength: float, num_inference_steps: int) -> int:
    """Denoising steps that are run: ``int(num_inference_steps * strength)``, diffusers' own rule.

    >>> count_steps(0.5, 20), count_steps(0.0, 20)
    (10, 0)

    Raises:
        FsadError: a strength outside [0, 1], or above 0 but too small for one step; no step at all.
    """
    if not 0 <= strength <= 1 or num_inference_steps < 1:
        raise FsadError(
            f"found strength {strength} and num_inference_steps {num_inference_steps}; expected a strength in [0, 1] (0: only the autoencoder) "
            "and at least 1 step."
        )
    count = int(num_inference_steps * strength)
    if strength > 0 and count == 0:
        raise FsadError(
            f"strength {strength} of {num_inference_steps} steps is less than one step. Raise num_inference_steps to at "
            f"least {math.ceil(1 / strength)}, or the strength to at least {least_strength(num_inference_steps)}."
        )
    return count


def check_sentences(prompts: Any) -> None:
    """Raise FsadError for a string where a list of sentences is meant: it would be read letter by letter."""
    if isinstance(prompts, str):
        raise FsadError(f"one string found, {prompts[:60]!r}; expected a list of sentences.")


def _check_steps(num_inference_steps: int) -> None:
    if num_inference_steps < 1:
        raise FsadError(f"num_inference_steps is {num_inference_steps}, expected at least 1.")


# -------------------------------------------------------------------- loading
def load_diffusion(
    checkpoint: str | Path,
    clip: Any = None,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    *,
    make: type[Diffusion] = Diffusion,
) -> Diffusion:
    """Load a Stable Diffusion from a folder in the hub's layout (see the module's text), in float32, without any network.

    Args:
        checkpoint: the folder.
        clip: the CLIP (or its open_clip model) whose text tower stands in for a missing ``text_encoder/``.
        device: where to put the models.
        image_size: overrides the U-Net's own size.
        make: the class that is made of the parts.

    Raises:
        FsadError: a missing folder or file, named together with what is expected; weights that are damaged, that lack some or that do not fit their
            config.json.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> from fsad_lib.foundation.miniatures.inspect import pairs
        >>> diffusion = load_diffusion("data/models/mini/diffusion", load_clip("data/models/mini/clip"))
        >>> x = pairs(1, nouns=["gear"]).good
        >>> z, _ = diffusion.posterior(x)
        >>> z.shape, bool((diffusion.decode(z) - x).abs().mean() < 0.1)  # there and back through the autoencoder
        (torch.Size([1, 4, 32, 32]), True)
    """
    import diffusers

    folder = Path(checkpoint)
    missing = [
        str(folder / part)
        for part in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
        if not (folder / part).is_file()
    ]
    if missing:
        raise FsadError(
            f"the diffusion checkpoint {folder} lacks {', '.join(missing)}. Expected a folder in the diffusers layout: "
            "unet/, vae/, scheduler/ and, unless CLIP's text tower is used, text_encoder/ and tokenizer/."
        )
    with _readable(folder / "scheduler"):
        config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        scheduler_class = getattr(diffusers, config.get("_class_name", "DDIMScheduler"), diffusers.DDIMScheduler)
        scheduler = scheduler_class.from_pretrained(folder / "scheduler", local_files_only=True)
    unet = _load(diffusers.UNet2DConditionModel, folder / "unet", "diffusion_pytorch_model", "torch_dtype")
    vae = _load(diffusers.AutoencoderKL, folder / "vae", "diffusion_pytorch_model", "torch_dtype")
    if (folder / "text_encoder").is_dir():
        from transformers import CLIPTextModel

        with _no_progress_bar():
            text_encoder = _load(CLIPTextModel, folder / "text_encoder", "model", "dtype", "pytorch_model")
    elif clip is not None:
        text_encoder = text_encoder_from_clip(clip)
    else:
        raise FsadError(
            f"{folder} has no text_encoder/. Put it there, or pass clip=, the CLIP that the U-Net was trained with."
        )
    if (folder / "tokenizer").is_dir():
        from transformers import CLIPTokenizer

        with _readable(folder / "tokenizer"):
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        check_tokenizer(tokenizer, folder / "tokenizer")
    else:
        tokenizer = clip_tokenizer()
    return make(tokenizer, text_encoder.to(device), vae.to(device), unet.to(device), scheduler, image_size)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """What a library says of damaged small files, as one error that names the folder."""
    try:
        yield
    except Exception as error:  # JSONDecodeError, AttributeError, a bare Exception of the tokenizer's reader
        raise FsadError(f"{folder} cannot be read: {error}. Copy the folder again from its source.") from error


def check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """FsadError for a tokenizer that does not cut "a photo" into CLIP's words: with files missing, transformers makes one that knows none."""
    if (found := list(tokenizer("a photo").input_ids)) != [49406, 320, 1125, 49407]:
        raise FsadError(
            f'{folder} turns "a photo" into {found}; CLIP\'s tokenizer gives [49406, 320, 1125, 49407]. Expected vocab.json and merges.txt (or '
            "tokenizer.json) beside tokenizer_config.json: copy the folder again from its source."
        )


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws a bar on stderr for each model that it reads; the user's own setting is put back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load(make: Any, folder: Path, stem: str, dtype: str, old_stem: str | None = None) -> nn.Module:
    """A model from its folder in float32: safetensors first, then .bin (weights only); the fp16 variant if it is the only one."""
    old_stem = old_stem or stem
    for variant in (None, "fp16", "bf16"):
        dot = f".{variant}" if variant else ""
        for name, safe in ((f"{stem}{dot}.safetensors", True), (f"{old_stem}{dot}.bin", False)):
            if (folder / name).is_file() or (folder / f"{name}.index.json").is_file():
                settings = {"variant": variant, "use_safetensors": safe, "local_files_only": True, dtype: torch.float32}
                try:
                    model, info = make.from_pretrained(folder, output_loading_info=True, **settings)
                except (OSError, RuntimeError, ValueError, SafetensorError) as error:
                    text = " ".join(str(error).split())[:300]
                    raise FsadError(f"{folder / name} cannot be loaded with the config.json beside it: {text} Copy the folder again.") from error
                if lacking := sorted(info["missing_keys"]):
                    raise FsadError(f"{folder / name} lacks {len(lacking)} of the weights that its config.json names, among them {lacking[0]}. Copy the folder again.")
                return model
    found = sorted(p.name for p in folder.iterdir())
    raise FsadError(
        f"no weights in {folder}: expected {stem}.safetensors (or {old_stem}.bin), found {', '.join(found) or 'nothing'}."
    )


def text_encoder_from_clip(clip: Any, skip_last: int = 1) -> nn.Module:
    """A transformers ``CLIPTextModel`` with the weights of an open_clip text tower, cut as SD 2.x cuts ViT-H/14's.

    Args:
        clip: a :class:`fsad_lib.foundation.clip.CLIP`, or the open_clip model in it.
        skip_last: blocks dropped at the end; the final norm follows the last block kept (SD 2.1: 1, 24 -> 23).

    Returns:
        CLIPTextModel in eval mode whose ``last_hidden_state`` (B, 77, C) equals the tower's without its last block.

    Raises:
        FsadError: a tower that CLIPTextModel cannot express (bidirectional, layer scale, other block types).

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> clip = load_clip("data/models/mini/clip")
        >>> encoder, ids = text_encoder_from_clip(clip, skip_last=0), clip_tokenizer()(["a gear"], return_tensors="pt").input_ids
        >>> g = encoder(ids).last_hidden_state[:, -1] @ clip.model.text_projection
        >>> torch.allclose(torch.nn.functional.normalize(g, dim=-1), clip.encode_text(["a gear"]), atol=1e-4)  # the whole tower: CLIP's own embedding
        True
        >>> text_encoder_from_clip(clip).config.num_hidden_layers, encoder.config.num_hidden_layers
        (3, 4)
    """
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock
    from transformers import CLIPTextConfig, CLIPTextModel

    model = getattr(clip, "model", clip)
    tower = getattr(model, "text", model)
    blocks = tower.transformer.resblocks
    activation = {nn.GELU: "gelu", QuickGELU: "quick_gelu"}.get(
        type(getattr(blocks[0], "mlp", [None] * 2)[1])
    )
    plain = all(type(b) is ResidualAttentionBlock and isinstance(b.ls_1, nn.Identity) for b in blocks)
    if (
        not plain
        or activation is None
        or tower.attn_mask is None
        or getattr(tower, "cls_emb", None) is not None
    ):
        raise FsadError(
            "this CLIP's text tower is not the standard causal transformer (GELU or QuickGELU) that Stable Diffusion uses."
        )
    if not 0 <= skip_last < len(blocks):
        raise FsadError(f"skip_last is {skip_last}; this text tower has {len(blocks)} blocks.")
    vocabulary, width = tower.token_embedding.weight.shape
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=blocks[0].mlp.c_fc.out_features,
        num_hidden_layers=len(blocks) - skip_last, num_attention_heads=blocks[0].attn.num_heads,
        max_position_embeddings=len(tower.positional_embedding), hidden_act=activation, layer_norm_eps=tower.ln_final.eps,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=0,
    )  # fmt: skip
    encoder = CLIPTextModel(config)
    root = getattr(encoder, "text_model", encoder)  # transformers 4 nests it
    with torch.no_grad():
        root.embeddings.token_embedding.weight.copy_(tower.token_embedding.weight)
        root.embeddings.position_embedding.weight.copy_(tower.positional_embedding)
        root.final_layer_norm.load_state_dict(tower.ln_final.state_dict())
        for layer, block in zip(root.encoder.layers, blocks, strict=False):
            for name, weight, bias in zip(
                ("q_proj", "k_proj", "v_proj"),
                block.attn.in_proj_weight.chunk(3),
                block.attn.in_proj_bias.chunk(3),
                strict=True,
            ):
                getattr(layer.self_attn, name).weight.copy_(weight)
                getattr(layer.self_attn, name).bias.copy_(bias)
            layer.self_attn.out_proj.load_state_dict(block.attn.out_proj.state_dict())
            layer.layer_norm1.load_state_dict(block.ln_1.state_dict())
            layer.layer_norm2.load_state_dict(block.ln_2.state_dict())
            layer.mlp.fc1.load_state_dict(block.mlp.c_fc.state_dict())
            layer.mlp.fc2.load_state_dict(block.mlp.c_proj.state_dict())
    return encoder.eval().requires_grad_(False)


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Words and merges of CLIP's byte-pair encoding, from the file that open_clip ships."""
    from open_clip.tokenizer import SimpleTokenizer

    source = SimpleTokenizer()
    rename = {"<start_of_text>": START, "<end_of_text>": END}
    vocab = {rename.get(word, word): index for word, index in source.encoder.items()}
    return vocab, sorted(source.bpe_ranks, key=source.bpe_ranks.get)


def clip_tokenizer(pad_token: str = "!") -> Any:
    """A transformers ``CLIPTokenizer`` made offline from open_clip's word list; it gives open_clip's ids.

    Args:
        pad_token: "!" (id 0) as in SD 2.x, or ``"<|endoftext|>"`` as in SD 1.x. As in SD 2.x's own tokenizer, an
            exclamation mark in a prompt then becomes id 0 as well.

    Example:
        >>> clip_tokenizer()("a photo", padding="max_length", max_length=6).input_ids
        [49406, 320, 1125, 49407, 0, 0]
    """
    from transformers import CLIPTokenizer

    vocab, merges = _vocabulary()
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=CONTEXT)


def write_tokenizer(folder: str | Path, pad_token: str = "!") -> Path:
    """Write the tokenizer in the files that Stable Diffusion's hub folders hold (vocab.json, merges.txt, two configs; 1.6 MB).

    Example:
        >>> import tempfile
        >>> from transformers import CLIPTokenizer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(folder))
        >>> tokenizer("a damaged gear").input_ids == clip_tokenizer()("a damaged gear").input_ids
        True
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = _vocabulary()
    special = {"bos_token": START, "eos_token": END, "pad_token": pad_token, "unk_token": END}
    config = {
        **special, "add_prefix_space": False, "do_lower_case": True, "model_max_length": CONTEXT, "errors": "replace",
        "tokenizer_class": "CLIPTokenizer",
    }  # fmt: skip
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8"
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder
