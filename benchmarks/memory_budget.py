"""What AnomalySD needs with Stable Diffusion 1.5 inpainting at 512 pixels, ADP's words with Stable Diffusion 2.1 at 768, or TGVIG's integrator with
the ImageNet VQGAN, memory and work, computed without a GPU and without allocating it.

    python benchmarks/memory_budget.py
    python benchmarks/memory_budget.py --method adp
    python benchmarks/memory_budget.py --method tgvig

Tensors are fake (shapes without numbers); PyTorch's tracker adds up what two training steps would hold at their peak: batch 1, AdamW in
float32 parameter by parameter (as on a CPU) or on all of them at once (``foreach``, as on a GPU), autocast to bfloat16, with and without gradient
checkpointing. A GPU adds its context, kernels' workspace and fragmentation, and text encoder, VAE and LPIPS (0.8 GiB in float32) stay beside it.
Work: floating-point operations of the U-Net's evaluations and of the VAE's encodings and decodings of an image, at a speed that is assumed, not measured.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parent))
from paper_sizes import UNET, UNET_15, _clip, _unet, _vae, _vqgan  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.distributed._tools.mem_tracker import MemTracker  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_map_only  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

from fsad_lib.anomalysd.detector import AnomalySD, Category, Cost, Settings  # noqa: E402
from fsad_lib.datasets import mvtec_ad, visa  # noqa: E402
from fsad_lib.foundation.diffusion import count_steps  # noqa: E402
from fsad_lib.foundation.vqgan import VQGAN, PatchDiscriminator, VggLpips  # noqa: E402
from fsad_lib.profiles import load_profile  # noqa: E402

SPEED, SPEED_FLOAT32 = 100e12, 20e12
"""Operations per second assumed, in bfloat16 and in float32."""
IMAGES = {"MVTec AD": mvtec_ad.COUNTS, "VisA": visa.COUNTS}


def cost(image_size: int = 512) -> Cost:
    """The work for one image in the paper profile, of a model that has nothing but a size."""
    a = load_profile("paper").anomalysd
    settings = Settings(**{name: getattr(a, name) for name in Settings.__dataclass_fields__ if name != "seed"})
    model = SimpleNamespace(image_size=image_size, factor=8, steps=count_steps, encode_prompt=lambda prompts: None)
    return AnomalySD(model, None, {"part": Category("", memory=object())}, settings).cost


def peak(checkpointing: bool, side: int = 64, batch: int = 1, config: dict = UNET_15, foreach: bool = False) -> dict[str, float]:
    """GiB at the peak of a training step by kind, "Total" included. side: of the latent, an eighth of the image's; foreach: of AdamW."""
    with FakeTensorMode():
        unet = _unet(config).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, foreach=foreach)
        tracker = MemTracker()
        tracker.track_external(unet, optimizer)
        with tracker:
            for step in range(2):  # AdamW's state exists from the second step on
                z, text = torch.randn(batch, config["in_channels"], side, side), torch.randn(batch, 77, config["cross_attention_dim"])
                with torch.autocast("cpu", torch.bfloat16):
                    loss = unet(z, torch.full((batch,), 500), text).sample.float().square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if step == 0:
                    tracker.reset_mod_stats()
        (found,) = tracker.get_tracker_snapshot("peak").values()
    return {getattr(kind, "value", str(kind)): size / 2**30 for kind, size in found.items()}


def flops(side: int = 64, config: dict = UNET_15) -> int:
    """Floating-point operations of one U-Net evaluation; a multiplication and an addition count as two."""
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        _unet(config)(torch.randn(1, config["in_channels"], side, side), torch.full((1,), 500), torch.randn(1, 77, config["cross_attention_dim"]))
    return counter.get_total_flops()


def vae_flops(image_size: int = 512) -> tuple[int, int]:
    """Floating-point operations of one encoding and of one decoding."""
    found = []
    with FakeTensorMode(), torch.no_grad():
        vae = _vae()
        for work in (lambda: vae.encode(torch.randn(1, 3, image_size, image_size)), lambda: vae.decode(torch.randn(1, 4, image_size // 8, image_size // 8))):
            with FlopCounterMode(display=False) as counter:
                work()
            found.append(counter.get_total_flops())
    return found[0], found[1]


class Live(TorchDispatchMode):
    """Bytes of the tensors that are alive, and their peak: what is held at the beginning, and every output while it lives. MemTracker counts by kind, and
    takes no module that is called twice in a step, as a discriminator is."""

    def __init__(self, held: list[torch.Tensor]) -> None:
        super().__init__()
        self.now, self.seen = 0, weakref.WeakSet()
        for tensor in held:
            self._add(tensor)
        self.peak = self.now

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.seen:
            self.seen.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, out)
        self.peak = max(self.peak, self.now)
        return out


def iteration(augmented: int, images: int, checkpointing: bool, side: int = 256, make=_vqgan, clip: str | None = "ViT-B-16") -> tuple[float, float]:
    """GiB at the peak of one iteration of TGVIG's integrator from one original (``tgvig/integrator.py``), and its floating-point operations. Left out are
    the augmentations.

    Args:
        augmented, images: N and M. side: of the images. make: the VQGAN's model. clip: open_clip's name of the model that scores; None: none does.
    """
    with FakeTensorMode():
        vqgan = VQGAN(make(), PatchDiscriminator(), VggLpips())
        for part in (vqgan.model.encoder, vqgan.model.decoder) if checkpointing else ():
            part.gradient_checkpointing, part._gradient_checkpointing_func = True, partial(checkpoint, use_reentrant=False)
        parts = [vqgan.model, vqgan.discriminator]
        optimizers = [torch.optim.Adam(part.requires_grad_().parameters(), lr=1e-5) for part in parts]
        judge = _clip(clip)() if clip else None
        x = torch.rand(augmented, 3, side, side)

        def step() -> None:
            z = vqgan.model.encode(2 * x - 1).latents  # not vqgan.encode(), which looks at the numbers first
            codes = vqgan.model.quantize(z)[0]
            made, x_hat = (vqgan.model.decode(h, force_not_quantize=True).sample / 2 + 0.5 for h in (codes[:1].expand(images, -1, -1, -1), codes))
            likeness, fooled = (x_hat - x).abs().mean() + vqgan.perceptual.distance(x, x_hat).mean(), -vqgan.discriminator(x_hat).mean()
            for part in (likeness, fooled):  # whose gradients at the last layer set the adaptive weight
                torch.autograd.grad(part, vqgan.model.decoder.conv_out.weight, retain_graph=True)
            (likeness + fooled + (codes - z).square().mean() + (made - x[:1]).square().mean()).backward()
            (vqgan.discriminator(x_hat.detach()).mean() - vqgan.discriminator(x).mean()).backward()
            if judge:
                with torch.no_grad():
                    judge.encode_image(torch.rand(images, 3, 224, 224))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        step()  # Adam's state exists from the second step on
        held = [t for part in [*parts, vqgan.perceptual, *([judge] if judge else [])] for t in part.state_dict().values()]
        held += [t for optimizer in optimizers for state in optimizer.state.values() for t in state.values()]
        with Live(held) as live, FlopCounterMode(display=False) as counter:
            step()
    return live.peak / 2**30, counter.get_total_flops()


def concept_step(checkpointing: bool, batch: int = 4, side: int = 96, config: dict = UNET, layers: int = 23, clip: str | None = "ViT-H-14") -> tuple[float, float]:
    """GiB at the peak of one step of ADP's word in float32 (``adp/concepts.py``), all models held, and its floating-point operations. Adam works on
    one vector, so that there are no moments to count.

    Args:
        batch: samples of the denoising loss. side: of the latent. config, layers: of U-Net and text encoder. clip: open_clip's name of the model that
            reads 27 templates in two states; None: none does.
    """
    width = config["cross_attention_dim"]
    text_config = CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=max(1, width // 64))
    with FakeTensorMode():
        unet, encoder, judge = _unet(config), CLIPTextModel(text_config), _clip(clip)() if clip else None
        models = [model.eval().requires_grad_(False) for model in (unet, encoder, _vae(), *([judge] if judge else []))]
        if checkpointing:
            unet.enable_gradient_checkpointing()
        held = [tensor for model in models for tensor in model.state_dict().values()]
        with Live(held) as live, FlopCounterMode(display=False) as counter:
            c = torch.randn(width, requires_grad=True)
            hook = encoder.get_input_embeddings().register_forward_hook(lambda module, given, out: out + c)
            text = encoder(torch.zeros(batch, 77, dtype=torch.long)).last_hidden_state
            hook.remove()
            z = torch.randn(batch, config["in_channels"], side, side)
            loss = (unet(z, torch.full((batch,), 500), text).sample - z).square().mean()
            if judge:
                length = 14  # the longest template; texts are cut to it
                x = torch.randn(2 * 27, length, c.numel()) + c + judge.positional_embedding[:length]
                loss = loss + judge.transformer(x, attn_mask=judge.attn_mask[:length, :length]).square().mean()
            loss.backward()
    return live.peak / 2**30, counter.get_total_flops()


def adp() -> None:
    a = load_profile("paper").adp
    for checkpointing in (False, True):
        peaked, work = concept_step(checkpointing, a.batch_size)
        print(f"batch {a.batch_size}, float32, gradient checkpointing {'on' if checkpointing else 'off'}: {peaked:.1f} GiB, {work / 1e12:.1f} TFLOP a step", flush=True)
    steps = a.steps_ti + a.steps_normal + a.steps_anomaly
    print(f"{steps} steps for the three words: {steps * work / SPEED_FLOAT32 / 3600:.1f} hours at {SPEED_FLOAT32 / 1e12:.0f} TFLOP/s")


def tgvig() -> None:
    q = load_profile("paper").tgvig
    for augmented, images in ((4, 4), (q.augmented, q.images)):
        for checkpointing in (False, True):
            peaked, work = iteration(augmented, images, checkpointing)
            print(f"{augmented} augmented, {images} generated, gradient checkpointing {'on' if checkpointing else 'off'}: {peaked:.1f} GiB, {work / 1e12:.1f} TFLOP an iteration", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--method", choices=("anomalysd", "adp", "tgvig"), default="anomalysd")
    args = parser.parse_args()
    if args.method != "anomalysd":
        return {"adp": adp, "tgvig": tgvig}[args.method]()
    for foreach in (False, True):
        for checkpointing in (True, False):
            found = peak(checkpointing, args.image_size // 8, args.batch_size, foreach=foreach)
            parts = ", ".join(f"{kind} {size:.1f}" for kind, size in found.items() if size > 0.05 and kind != "Total")
            of = f"AdamW {'on all parameters at once' if foreach else 'parameter by parameter'}, gradient checkpointing {'on' if checkpointing else 'off'}"
            print(f"{of}: {found['Total']:.1f} GiB ({parts})", flush=True)
    work, unet, (encoding, decoding) = cost(args.image_size), flops(args.image_size // 8), vae_flops(args.image_size)
    vae = work.encodings * encoding + work.decodings * decoding
    seconds = (work.unet * unet + vae) / SPEED
    print(f"{unet / 1e12:.2f} TFLOP a U-Net evaluation, {encoding / 1e12:.2f} an encoding, {decoding / 1e12:.2f} a decoding")
    print(
        f"an image: {work.passes} passes, {work.unet} evaluations, {work.encodings} encodings, {work.decodings} decodings: {work.unet * unet / 1e15:.2f} + {vae / 1e15:.2f} PFLOP, "
        f"{seconds:.0f} s at {SPEED / 1e12:.0f} TFLOP/s"
    )
    for name, counts in IMAGES.items():
        images = sum(good + bad for _, good, bad in counts.values())
        print(f"{name}'s {images:,} test images: {images * seconds / 3600:.0f} hours")


if __name__ == "__main__":
    main()
