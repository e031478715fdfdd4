"""The inpainting diffusion model: repaints a masked region so that it fits its surroundings and a prompt.

Stable Diffusion inpainting is an ordinary Stable Diffusion whose U-Net sees nine channels: the noisy latent, the mask and the latent of
the image without the masked region, in this order. Masks m are 1 where the image is to be repainted. A folder in the hub's layout is
read as :mod:`fsad_lib.foundation.diffusion` says; the miniature's text encoder is that of the mini CLIP, as the mini text-to-image model's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fsad_lib.errors import FsadError
from fsad_lib.foundation.diffusion import Diffusion, count_steps, load_diffusion

__all__ = ["Inpainting", "load_inpainting"]


class Inpainting(Diffusion):
    """A Stable Diffusion with a nine-channel inpainting U-Net; arguments and attributes are those of ``Diffusion``.

    Attributes:
        amp: torch.bfloat16 to run the U-Net in that precision; None: float32.

    Raises:
        FsadError: a U-Net without the nine input channels, and everything that ``Diffusion`` refuses.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> model = load_inpainting("data/models/mini/inpainting", load_clip("data/models/mini/clip"))
        >>> x, m = torch.rand(1, 3, 128, 128), torch.zeros(1, 1, 128, 128)
        >>> m[..., 32:64, 32:96] = 1
        >>> y = model.inpaint(x, m, ["A perfect gear."], strength=1.0, noise=torch.randn(1, 4, 32, 32), num_inference_steps=2)
        >>> changed = (y != x).any(1, keepdim=True)
        >>> bool(changed[m == 1].any()), bool(changed[m == 0].any())
        (True, False)
    """

    amp: torch.dtype | None = None

    def __init__(self, *args: Any, **settings: Any) -> None:
        from diffusers import DDIMScheduler

        super().__init__(*args, **settings)
        # Of n "trailing" steps the last i begin at noise level i/n T - 1, hence at T~ = lambda T. The "leading" ones of most checkpoints begin
        # a whole step lower, which with few steps is far from what lambda says.
        self.scheduler = DDIMScheduler.from_config(self.scheduler.config, timestep_spacing="trailing")

    def _check(self) -> None:
        latent = self.vae.config.latent_channels
        found, out = self.unet.config.in_channels, self.unet.config.out_channels
        if (found, out) != (2 * latent + 1, latent):
            raise FsadError(
                f"this U-Net takes {found} channels and gives {out}; inpainting needs {2 * latent + 1} (noisy latent, mask, masked "
                f"latent) and {latent}. Use an inpainting checkpoint such as stable-diffusion-inpainting."
            )
        super()._check()

    # ---------------------------------------------------------------- the U-Net's view
    @torch.no_grad()
    def masked_latents(self, x: Tensor, m: Tensor, batch_size: int = 8) -> tuple[Tensor, Tensor]:
        """What the U-Net is told about the rest of the image.

        As in the checkpoint's own pipeline, the masked region is painted mid-grey (0 in [-1, 1]) before encoding, and the mask is
        reduced to the latents' size by nearest neighbour; unlike there, the posterior's mean is taken instead of a sample.

        Args:
            x: (B, 3, H, W) in [0, 1], H = W = ``image_size``. m: (B, 1, H, W), 1 = to repaint.

        Returns:
            mask (B, 1, h, w) and masked latent (B, 4, h, w), scaled.

        Raises:
            FsadError: a mask of another shape than its image's, or with values other than 0 and 1.
        """
        m = self._mask(x, m)
        z_masked = self.posterior(torch.where(m > 0, 0.5, x.to(m)), batch_size)[0]
        return F.interpolate(m, scale_factor=1 / self.factor), z_masked

    def _mask(self, x: Tensor, m: Tensor) -> Tensor:
        size = (self.image_size, self.image_size)
        if tuple(m.shape) != (len(x), 1, *size) or tuple(x.shape[-2:]) != size:
            raise FsadError(
                f"found images {tuple(x.shape)} and masks {tuple(m.shape)}; expected (B, 3, {size[0]}, {size[0]}) and one mask "
                f"(1, {size[0]}, {size[0]}) for each. Resize the images first (fsad_lib.foundation.images.resize)."
            )
        m = m.to(self.device, torch.float32)
        if not ((m == 0) | (m == 1)).all():
            raise FsadError("a mask holds values other than 0 (keep) and 1 (repaint); threshold it first, e.g. m > 0.5.")
        return m

    def predict(self, z_t: Tensor, t: Tensor, m_z: Tensor, z_masked: Tensor, text: Tensor) -> Tensor:
        """The U-Net on [z_t, mask, masked latent]: its prediction of eps (or v), (B, 4, h, w) float32.

        Args:
            z_t, z_masked: (B, 4, h, w). m_z: (B, 1, h, w). t: (B,) or one timestep for all. text: (B, 77, C).
        """
        with torch.autocast(z_t.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None):
            out = self.unet(torch.cat([z_t, m_z, z_masked], dim=1), t, encoder_hidden_states=text).sample
        return out.float()

    def denoising_loss(
        self, z: Tensor, text: Tensor, t: Tensor, eps: Tensor, m_z: Tensor | None = None, z_masked: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of the predicted noise, E || eps - eps_theta([z_t, m, z_masked], t, tau(y)) ||^2.

        Args:
            z: (B, 4, h, w) scaled latents of the whole image. text: (B, 77, C). t: (B,). eps: (B, 4, h, w).
            m_z, z_masked: see :meth:`masked_latents`; the loss cannot do without them.

        Returns:
            (B,); for a v-prediction model the error of v.

        Raises:
            FsadError: no mask or no masked latent.
        """
        if m_z is None or z_masked is None:
            raise FsadError("an inpainting model's loss needs the mask and the masked latent; see masked_latents.")
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        z_t = a.sqrt() * z + (1 - a).sqrt() * eps
        # v = sqrt(a) eps - sqrt(1 - a) z   (Salimans & Ho 2022)
        target = eps if self.prediction_type == "epsilon" else a.sqrt() * eps - (1 - a).sqrt() * z
        return (self.predict(z_t, t, m_z, z_masked, text) - target).square().flatten(1).mean(1)

    # ---------------------------------------------------------------- repainting
    def steps(self, strength: float, num_inference_steps: int) -> int:
        """Denoising steps that are run, see :func:`fsad_lib.foundation.diffusion.count_steps`."""
        return count_steps(strength, num_inference_steps)

    @torch.no_grad()
    def inpaint(
        self, x: Tensor, m: Tensor, prompts: Sequence[str] | Tensor, *, strength: float, noise: Tensor,
        guidance_scale: float = 1.0, num_inference_steps: int = 40, z: Tensor | None = None, composite: bool = True,
        decode: bool = True, batch_size: int = 8,
    ) -> Tensor:  # fmt: skip
        """Repaint the masked regions: noise is added up to step T~ = strength * T, rounded down to whole steps, as diffusers does, and taken out
        again by deterministic DDIM.

        Args:
            x: (B, 3, H, W) in [0, 1], H = W = ``image_size``; the same image may occur with many masks.
            m: (B, 1, H, W), 1 = to repaint.
            prompts: B sentences, or text states (B, 77, C), or (1, 77, C) for all.
            strength: lambda in [0, 1]; 1 starts from pure noise, 0 leaves the autoencoder's round trip.
            noise: (B, 4, h, w) standard normal; the caller decides what it depends on.
            guidance_scale: classifier-free guidance; 1 or less: none, and half the cost.
            z: (B, 4, h, w) latents of x where the caller has them (posterior mean).
            composite: keep the image's own pixels outside the mask; otherwise the decoder's.
            decode: False returns the repainted latents instead of images.
            batch_size: images repainted at once. Matrix products round differently for different numbers of rows, so that it can
                change the last bits of the result.

        Returns:
            (B, 3, H, W) in [0, 1]; without ``decode`` (B, 4, h, w), scaled.

        Raises:
            FsadError: shapes that do not belong together, masks that are not 0 and 1, a strength or steps out of range.
        """
        count, m = self.steps(strength, num_inference_steps), self._mask(x, m)
        x, noise = x.to(m), noise.to(m)
        side = self.image_size // self.factor
        z = self.posterior(x, batch_size)[0] if z is None else z.to(m)
        text = self._states(prompts, None)
        text = text.expand(len(x), -1, -1) if len(text) == 1 else text
        expected = (len(x), self.vae.config.latent_channels, side, side)
        if tuple(noise.shape) != expected or tuple(z.shape) != expected or len(text) != len(x):
            raise FsadError(
                f"found {len(x)} images, {len(text)} prompts, noise {tuple(noise.shape)} and latents {tuple(z.shape)}; expected one "
                f"prompt for each image (or one for all), noise and latents of shape {expected}."
            )
        out = []
        for part in torch.arange(len(x), device=m.device).split(batch_size):
            m_z, z_masked = self.masked_latents(x[part], m[part], batch_size)
            z_0 = self._denoise(z[part], noise[part], m_z, z_masked, text[part], count, num_inference_steps, guidance_scale)
            if not decode:
                out.append(z_0)
                continue
            x_hat = self.decode(z_0, batch_size)
            out.append(torch.where(m[part] > 0, x_hat, x[part]) if composite else x_hat)
        return torch.cat(out) if out else x if decode else z

    def _denoise(
        self, z: Tensor, noise: Tensor, m_z: Tensor, z_masked: Tensor, text: Tensor, count: int, num_inference_steps: int,
        guidance_scale: float,
    ) -> Tensor:  # fmt: skip
        if count == 0:
            return z
        self.scheduler.set_timesteps(num_inference_steps, device=z.device)
        timesteps = self.scheduler.timesteps[num_inference_steps - count :]
        # z_T~ = sqrt(abar) z + sqrt(1 - abar) eps;  at strength 1 nothing of the image is kept
        z_t = noise if count == num_inference_steps else self.scheduler.add_noise(z, noise, timesteps[:1])
        guided = guidance_scale > 1
        if guided:
            if self._empty is None:
                self._empty = self.encode_prompt([""])
            text = torch.cat([self._empty.expand_as(text), text])
            m_z, z_masked = torch.cat([m_z, m_z]), torch.cat([z_masked, z_masked])
        for t in timesteps:
            prediction = self.predict(torch.cat([z_t, z_t]) if guided else z_t, t, m_z, z_masked, text)
            if guided:
                without, given = prediction.chunk(2)
                prediction = without + guidance_scale * (given - without)
            z_t = self.scheduler.step(prediction, t, z_t).prev_sample
        return z_t

    def generate(self, *_: Any, **__: Any) -> Tensor:
        """Always raises FsadError: an inpainting model does not draw from text alone."""
        raise FsadError("an inpainting model cannot draw from text alone; use inpaint, or load a text-to-image model.")

    def sdedit(self, *_: Any, **__: Any) -> Tensor:
        """Always raises FsadError: an inpainting model edits by :meth:`inpaint`."""
        raise FsadError("an inpainting model edits by inpaint(x, m, ...); a mask of ones edits the whole image.")


def load_inpainting(
    checkpoint: str | Path, clip: Any = None, device: str | torch.device = "cpu", image_size: int | None = None
) -> Inpainting:
    """Load an inpainting Stable Diffusion from a folder in the hub's layout, in float32, without any network.

    Args:
        checkpoint: the folder. A tokenizer in it pads as it says: SD 1.5 inpainting with the end of text.
        clip: the CLIP whose text tower stands in for a missing ``text_encoder/``. device: where to put the models.
        image_size: overrides the U-Net's own size.

    Raises:
        FsadError: missing files, or a U-Net that is not made for inpainting.

    Example:
        >>> from fsad_lib.foundation.clip import load_clip
        >>> model = load_inpainting("data/models/mini/inpainting", load_clip("data/models/mini/clip"))
        >>> x, m = torch.rand(2, 3, 128, 128), torch.zeros(2, 1, 128, 128)
        >>> m[..., 32:64, 32:96] = 1
        >>> x[1] = torch.where(m[1] > 0, 1 - x[0], x[0])
        >>> _, z = model.masked_latents(x, m)
        >>> model.unet.config.in_channels, torch.allclose(z[0], z[1], atol=1e-4)  # the U-Net cannot see what lies under the mask
        (9, True)
    """
    return load_diffusion(checkpoint, clip, device, image_size, make=Inpainting)
