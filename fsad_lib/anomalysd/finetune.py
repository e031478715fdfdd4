"""Fine-tuning on the K normal images of every category together: the U-Net's noise prediction, then the VAE's decoder.

Every random number of a step comes from ``(seed, step)``, so that an interrupted training that resumes from its checkpoint ends with the
very weights of one that was never interrupted (on a GPU, whose sums may come in another order, up to rounding).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fsad_lib.anomalysd.masks import random_rectangle
from fsad_lib.checkpoints import digest, read_state
from fsad_lib.errors import FsadError
from fsad_lib.foundation.diffusion import generator
from fsad_lib.foundation.images import check_images, resize
from fsad_lib.foundation.inpainting import Inpainting
from fsad_lib.foundation.perceptual import Lpips
from fsad_lib.runs import replacing

__all__ = ["decoder_parameters", "finetune_decoder", "finetune_unet"]

WEIGHT_DECAY, MAX_NORM = 0.01, 1.0  # AdamW's default; the gradient norm of diffusers' training scripts


def finetune_unet(
    model: Inpainting,
    x: Tensor,
    prompts: Sequence[Sequence[str]],
    foreground: Tensor | None = None,
    *,
    steps: int,
    lr: float,
    batch_size: int = 4,
    area: tuple[float, float] = (0.05, 0.5),
    seed: int = 0,
    gradient_checkpointing: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> pd.DataFrame:
    """Teach the U-Net, in place, what is normal: E || eps - eps_theta([z_t, m, z_masked], t, tau(y)) ||^2.

    Args:
        model: its ``amp`` says whether the U-Net runs in bfloat16 (weights and optimizer stay float32).
        x: (N, 3, H, W) in [0, 1], the normal images of all categories. None is seen a second time before every one was seen once.
        prompts: for each image the sentences y to draw from, :func:`fsad_lib.anomalysd.prompts.training_prompts`.
        foreground: (N, 1, H, W) bool, to which the random rectangles are restricted; None: no restriction.
        steps, lr, batch_size: AdamW with a constant learning rate.
        area: see :func:`fsad_lib.anomalysd.masks.random_rectangle`.
        seed: of everything random.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more time.
        checkpoint, checkpoint_every: file of the unfinished state; a checkpoint of other settings or images is ignored.
        progress: called with (step, steps, row) after each step.

    Returns:
        One row a step: step, loss (the batch's mean).

    Raises:
        FsadError: images, prompts and foregrounds of different number, settings out of range, a loss that is not finite.

    Example:
        >>> from fsad_lib.adp.probes import weights_digest
        >>> from fsad_lib.foundation.clip import load_clip
        >>> from fsad_lib.foundation.inpainting import load_inpainting
        >>> model = load_inpainting("data/models/mini/inpainting", load_clip("data/models/mini/clip"), image_size=64)
        >>> parts = model.unet, model.vae, model.text_encoder
        >>> before = [weights_digest(part) for part in parts]
        >>> trace = finetune_unet(model, torch.rand(2, 3, 64, 64), [["A perfect gear."], ["A perfect nut."]], steps=2, lr=3e-4, batch_size=1)
        >>> trace.step.tolist(), [weights_digest(part) == digest for part, digest in zip(parts, before)]
        ([1, 2], [False, True, True])
    """
    x = _images(model, x, steps, lr, batch_size)
    if len(prompts) != len(x) or not all(len(p) and not isinstance(p, str) for p in prompts):
        raise FsadError(f"found {len(x)} images and {len(prompts)} lists of prompts; each image needs its own list of at least one.")
    where = torch.ones(len(x), 1, *x.shape[-2:], dtype=torch.bool) if foreground is None else foreground.cpu()
    if tuple(where.shape) != (len(x), 1, *x.shape[-2:]):
        raise FsadError(f"the foregrounds are {tuple(where.shape)}; expected {(len(x), 1, *x.shape[-2:])}, one for each image.")
    mean, std = model.posterior(x)
    texts = sorted({y for sentences in prompts for y in sentences})
    with torch.no_grad():
        states = torch.cat([model.encode_prompt([y]) for y in texts])

    def losses(step: int) -> dict[str, Tensor]:
        chosen, draw = _deal(len(x), batch_size, step, lambda of: generator(seed, "unet", of))
        m = torch.stack([random_rectangle(where[i, 0], draw, area)[None] for i in chosen]).float()
        y = [prompts[i][int(torch.randint(len(prompts[i]), (1,), generator=draw))] for i in chosen]
        t = torch.randint(model.num_train_timesteps, (batch_size,), generator=draw).to(mean.device)
        shape = (batch_size, *mean.shape[1:])
        # z = E(x), sampled;  z_masked = E((1 - m) * x);  z_t and the loss: Inpainting.denoising_loss
        z = mean[chosen] + std[chosen] * torch.randn(shape, generator=draw).to(mean)
        eps = torch.randn(shape, generator=draw).to(mean)
        m_z, z_masked = model.masked_latents(x[chosen], m)
        text = states[[texts.index(sentence) for sentence in y]]
        return {"loss": model.denoising_loss(z, text, t, eps, m_z, z_masked).mean()}

    if gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    key = digest(x, where, prompts=[list(p) for p in prompts], lr=lr, batch=batch_size, area=list(area), seed=seed, amp=str(model.amp))
    try:
        return _train(model.unet, list(model.unet.parameters()), losses, steps, lr, key, checkpoint, checkpoint_every, progress)
    finally:
        if gradient_checkpointing:
            model.unet.disable_gradient_checkpointing()


def decoder_parameters(vae: nn.Module) -> list[nn.Parameter]:
    """The parameters that turn a latent into an image; the encoder's are not among them.

    Example:
        >>> from diffusers import AutoencoderKL
        >>> vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
        >>> own = {id(p) for p in decoder_parameters(vae)}
        >>> sorted({name.split(".")[0] for name, p in vae.named_parameters() if id(p) in own})
        ['decoder', 'post_quant_conv']
    """
    parts = [vae.decoder, *([vae.post_quant_conv] if getattr(vae, "post_quant_conv", None) is not None else [])]
    return [p for part in parts for p in part.parameters()]


def finetune_decoder(
    model: Inpainting,
    x: Tensor,
    lpips: Lpips,
    *,
    beta: float,
    steps: int,
    lr: float,
    batch_size: int = 4,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> pd.DataFrame:
    """Teach the VAE's decoder, in place, to draw the products sharply: L_D = || x - x_hat ||_2^2 + beta * LPIPS(x, x_hat).

    The encoder stays frozen, so that the latents, and with them the U-Net's work, do not change.

    Args:
        model, x, steps, lr, batch_size, gradient_checkpointing, checkpoint, checkpoint_every, progress: see :func:`finetune_unet`.
        lpips: the perceptual distance.
        beta: its weight, at least 0. The squared error is a mean over pixels in [0, 1].
        seed: of everything random.

    Returns:
        One row a step: step, mse, perceptual, loss (means of the batch).

    Raises:
        FsadError: no image, settings out of range, a loss that is not finite, or a checkpoint that cannot be read.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> from fsad_lib.foundation.inpainting import load_inpainting
        >>> from fsad_lib.foundation.perceptual import load_lpips
        >>> model = load_inpainting("data/models/mini/inpainting", load_clip("data/models/mini/clip"), image_size=64)
        >>> x = torch.tensor([0.9, 0.2, 0.1]).view(1, 3, 1, 1).expand(1, 3, 64, 64)  # a plain red
        >>> z, drawn = model.posterior(x)[0], model.decode(model.posterior(x)[0])
        >>> trace = finetune_decoder(model, x, load_lpips("data/models/mini/lpips"), beta=0.1, steps=5, lr=3e-4, batch_size=1)
        >>> bool((model.decode(z) - x).square().mean() < (drawn - x).square().mean()), torch.equal(model.posterior(x)[0], z)
        (True, True)
    """
    x = _images(model, x, steps, lr, batch_size)
    if not beta >= 0:
        raise FsadError(f"beta is {beta}, expected a weight of at least 0.")
    mean, std = model.posterior(x)

    def losses(step: int) -> dict[str, Tensor]:
        chosen, draw = _deal(len(x), batch_size, step, lambda of: generator(seed, "decoder", of))
        z = mean[chosen] + std[chosen] * torch.randn((batch_size, *mean.shape[1:]), generator=draw).to(mean)
        with torch.autocast(z.device.type, model.amp or torch.bfloat16, enabled=model.amp is not None):
            x_hat = model.vae.decode(z / model.vae.config.scaling_factor).sample
        x_hat, target = x_hat.float() / 2 + 0.5, x[chosen].to(mean)
        # L_D = || x - x_hat ||_2^2 + beta * LPIPS(x, x_hat)
        mse, perceptual = (x_hat - target).square().mean(), lpips.distance(x_hat, target).mean()
        return {"mse": mse, "perceptual": perceptual, "loss": mse + beta * perceptual}

    if gradient_checkpointing:
        model.vae.enable_gradient_checkpointing()
    key = digest(x, beta=beta, lr=lr, batch=batch_size, seed=seed, amp=str(model.amp))
    try:
        return _train(
            model.vae, decoder_parameters(model.vae), losses, steps, lr, key, checkpoint, checkpoint_every, progress
        )
    finally:
        if gradient_checkpointing:
            model.vae.disable_gradient_checkpointing()


# -------------------------------------------------------------------- the loop
def _train(
    module: nn.Module, parameters: list[nn.Parameter], losses: Callable[[int], dict[str, Tensor]], steps: int, lr: float, key: str,
    checkpoint: str | Path | None, every: int, progress: Callable[[int, int, dict[str, float]], None] | None,
) -> pd.DataFrame:  # fmt: skip
    """AdamW on some parameters of a frozen module, resumable; the module is frozen again at the end, come what may."""
    if checkpoint is not None:  # of the values themselves: their sum would depend on the device and on the number of threads
        key = f"{key}-{digest(*parameters)}"
    for p in parameters:
        p.requires_grad_(True)
    adamw = torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY)
    try:
        rows = _resume(checkpoint, key, steps, parameters, adamw)
        for step in range(len(rows), steps):
            # on a CPU the plain attention's backward pass is the fast one in bfloat16 (on processors made for it; in float32 it may cost a tenth)
            with sdpa_kernel(SDPBackend.MATH) if parameters[0].device.type == "cpu" else nullcontext():
                values = losses(step)
                if not torch.isfinite(values["loss"]):
                    raise FsadError(f"the loss is not finite ({values['loss'].item()}) at step {step + 1}; a smaller lr (now {lr}) usually helps.")
                adamw.zero_grad(set_to_none=True)
                values["loss"].backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            adamw.step()
            rows.append({name: value.item() for name, value in values.items()})
            if checkpoint and ((step + 1) % every == 0 or step + 1 == steps):
                state = {"key": key, "parameters": [p.detach() for p in parameters], "adamw": adamw.state_dict(), "rows": rows}
                with replacing(checkpoint) as temporary:
                    torch.save(state, temporary)
            if progress:
                progress(step + 1, steps, rows[-1])
    finally:
        for p in parameters:
            p.requires_grad_(False)
            p.grad = None
        module.eval()
    trace = pd.DataFrame(rows, dtype=float)
    trace.insert(0, "step", range(1, len(rows) + 1))
    return trace


def _resume(
    checkpoint: str | Path | None, key: str, steps: int, parameters: list[nn.Parameter], adamw: torch.optim.Optimizer
) -> list[dict[str, float]]:
    """Put a checkpoint's state into parameters and optimizer; its rows, none if there is no checkpoint of these settings."""
    state = read_state(checkpoint, key)  # Adam's step counts belong on the CPU; moments follow their parameters
    if state is None or len(state["rows"]) > steps:
        return []
    with torch.no_grad():
        for p, saved in zip(parameters, state["parameters"], strict=True):
            p.copy_(saved)
    adamw.load_state_dict(state["adamw"])
    return state["rows"]


def _deal(n: int, batch_size: int, step: int, stream: Callable[[int], torch.Generator]) -> tuple[list[int], torch.Generator]:
    """Image numbers of one step, and its stream after they are drawn: permutations of n images, one after the other, cut into batches.

    A permutation is drawn from the stream of the step that begins it; a later step that still has some of its images to show draws it again,
    so that a step needs nothing but its own number.
    """

    def begun(step: int) -> tuple[list[Tensor], torch.Generator]:
        draw, first, after = stream(step), -(-step * batch_size // n), -(-(step + 1) * batch_size // n)
        return [torch.randperm(n, generator=draw) for _ in range(first, after)], draw

    new, draw = begun(step)
    left = -step * batch_size % n  # images that the permutation before has yet to show
    old = [begun((step * batch_size - n + left) // batch_size)[0][-1][n - left :]] if left else []
    return torch.cat(old + new)[:batch_size].tolist(), draw


def _images(model: Inpainting, x: Tensor, steps: int, lr: float, batch_size: int) -> Tensor:
    x = check_images(x, empty=False).float()
    if steps < 0 or not lr > 0 or batch_size < 1:
        raise FsadError(f"found steps {steps}, lr {lr}, batch_size {batch_size}; expected at least 0, above 0, at least 1.")
    return resize(x, model.image_size)
