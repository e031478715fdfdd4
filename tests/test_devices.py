"""Every method's calculations on a second device, without one: no tensor stays behind on the CPU, and the numbers are the CPU's."""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_inpainting
import tiny_models
import torch
from tiny_vqgan import tiny_vqgan
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SIDE = 32  # of the baselines' images
ANY = None  # what an operation made for itself within torch: it would have made it where its inputs are
COPIES = ("aten::copy_", "aten::_foreach_copy_")
INDEXING = ("aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index_put")


class SecondDevice(TorchDispatchMode):
    """Tensors stay in the CPU's memory and are computed there, but their storages are known to lie on one of two devices, and an operation on
    both fails, as on a GPU: only single numbers (of the CPU's) may be mixed with anything, and a GPU's tensor may be indexed by the CPU's."""

    def __init__(self):
        super().__init__()
        self.places, self.asked = {}, 0  # storage -> (weak reference, so that its address is not used again; device)

    def where(self, x):
        return self.places.get(x.untyped_storage()._cdata, (None, CPU))[1]

    def put(self, x, device):
        self.places[x.untyped_storage()._cdata] = StorageWeakRef(x.untyped_storage()), device
        return x

    def common(self, name, tensors):
        places = {self.where(x) for x in tensors if x.ndim or self.where(x) != CPU or name in ("aten::cat", "aten::stack")} - {ANY}
        if len(places) > 1:
            raise RuntimeError(f"{name}: expected all tensors on the same device, found {[(str(self.where(x)), tuple(x.shape)) for x in tensors]}")
        return places.pop() if places else CPU if any(self.where(x) == CPU for x in tensors) else ANY

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, inputs = func._schema.name, [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name in COPIES:
            return func(*args, **kwargs or {})
        if name in INDEXING:
            device = self.common(name, [args[0], *(x for x in args[2:3] if isinstance(x, Tensor))])
            if device == CPU and any(self.where(x) == GPU for x in tree_leaves(args[1]) if isinstance(x, Tensor)):
                raise RuntimeError(f"{name}: indices on the GPU of a tensor on the CPU")
        elif "_foreach" in name or "_fused" in name:  # an optimizer's, on many tensors: the n-th of each list belong together
            for together in zip(*(a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)), strict=True):
                device = self.common(name, together)
        else:
            device = self.common(name, inputs) if inputs else CPU if self.asked else ANY
        out = func(*args, **kwargs or {})
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.places:
                self.put(x, device)
        return out


class Devices(TorchFunctionMode):
    """What Python asks about devices, answered for :class:`SecondDevice`."""

    def __init__(self, second):
        super().__init__()
        self.second = second

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, second = dict(kwargs or {}), self.second
        if func == Tensor.device.__get__:
            return second.where(args[0]) or CPU
        if func == Tensor.is_cuda.__get__:
            return second.where(args[0]) == GPU
        if func in (Tensor.numpy, Tensor.__array__) and second.where(args[0]) == GPU:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.__deepcopy__:
            return second.put(func(*args, **kwargs), second.where(args[0]))
        if func in (Tensor.to, Tensor.cpu):
            return self.moved(*(args if func is Tensor.to else (args[0], CPU)), **kwargs)
        asked = kwargs.get("device") is not None
        if asked:
            device, kwargs["device"] = torch.device(kwargs["device"]), CPU
            if device.type == "cuda" and kwargs.get("generator") is not None:
                raise RuntimeError("expected a generator on the GPU")
        second.asked += (named := asked or func in _device_constructors())
        try:
            out = func(*args, **kwargs)
        finally:
            second.asked -= named
        if asked and isinstance(out, Tensor):
            second.put(out, GPU if device.type == "cuda" else CPU)
        return out

    def moved(self, x, *how, **named):
        for value in (*how, *named.values()):
            if isinstance(value, Tensor):
                named |= {"device": self.second.where(value) or CPU, "dtype": value.dtype}
            elif isinstance(value, torch.device | str):
                named["device"] = torch.device(value)
            elif isinstance(value, torch.dtype):
                named["dtype"] = value
        kept = {key: named[key] for key in ("dtype", "memory_format") if named.get(key) is not None}
        here, there = self.second.where(x), named.get("device")
        out = x.to(**kept) if kept else x
        return out if there is None or (here == GPU) == (there.type == "cuda") else self.second.put(out.clone(), GPU if there.type == "cuda" else CPU)


@contextlib.contextmanager
def devices(name):
    """The calculations of one of two devices; at the first, nothing is changed."""
    with contextlib.ExitStack() as stack:
        if name == "cuda":
            second = stack.enter_context(SecondDevice())
            stack.enter_context(Devices(second))
        yield


def both(calculate, **tolerance):
    """calculate(device) on each device: results, tensors and numbers, that are the same."""
    found = []
    for name in ("cpu", "cuda"):
        torch.manual_seed(0)
        with devices(name):
            found.append([x.detach().cpu() if isinstance(x, Tensor) else torch.tensor(float(x)) for x in calculate(name)])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a.double(), b.double(), equal_nan=True, **{"rtol": 1e-3, "atol": 1e-4} | tolerance)


def moved(model, device, *names):
    """One of our models that has no `to` of its own, its networks on a device."""
    for name in names:
        getattr(model, name).to(device)
    if hasattr(model, "alphas_cumprod"):
        model.alphas_cumprod = model.alphas_cumprod.to(device)
    return model


def clip_on(device):
    return moved(tiny_models.clip(), device, "model")


def test_the_second_device_is_told_from_the_first():
    with devices("cuda"):
        layer, x = torch.nn.Linear(3, 2).to("cuda"), torch.rand(4, 3)
        assert layer(x.to("cuda")).device == GPU and x.device == CPU and layer.weight.new_zeros(3).device == GPU
        for wrong in (lambda: layer(x), lambda: x[torch.arange(2, device="cuda")], lambda: x.to("cuda") + torch.ones(3),
                      lambda: torch.stack([x.to("cuda").mean(), torch.tensor(1.0)]), lambda: torch.rand(2, device="cuda", generator=torch.Generator())):  # fmt: skip
            with pytest.raises(RuntimeError):
                wrong()
        with pytest.raises(TypeError):
            x.to("cuda").numpy()
        assert (x.to("cuda")[torch.tensor([0])] * torch.tensor(2.0)).device == GPU


def test_adp():
    from fsad_lib.adp.concepts import learn_concept
    from fsad_lib.adp.detector import ADP
    from fsad_lib.adp.probes import denoising_probe, gradient_sweep
    from fsad_lib.adp.prompts import embed, templates
    from fsad_lib.adp.pseudo_anomalies import pseudo_anomalies
    from fsad_lib.adp.self_tuning import prototypes, weight
    from fsad_lib.patch_memory import PatchMemory
    from fsad_lib.winclip.detector import WinCLIP

    def calculate(device):
        clip, x = clip_on(device), tiny_models.images(2)
        diffusion = moved(tiny_models.diffusion(clip), device, "text_encoder", "vae", "unet")
        pseudo = pseudo_anomalies(diffusion, x, ["a photo with damage"], 2, strength=0.5, guidance_scale=4.0, num_inference_steps=2)
        c, trace = learn_concept(clip, diffusion, x, alpha=1.0, tau=0.1, steps=2, lr=0.01, batch_size=2, templates=templates(2), pseudo=pseudo, gamma=0.1)
        g = embed(clip, ["object", "<c>"], {"<c>": c}, templates(2))
        f, f_pseudo = clip.encode_image(x), clip.encode_image(pseudo)
        weights = {word: weight(f, f_pseudo, *(side.mean(0) for side in pair), 0.1) for word, pair in g.items()}
        p_n, p_a = (p.cpu() for p in prototypes(g, weights))  # as they come from disk
        scores, rival = ADP(clip, p_n, p_a, x, tau=0.1)(pseudo), WinCLIP(clip, "gear").add_shots(x)(pseudo)
        backbone = moved(tiny_inpainting.backbone(), device, "model")
        drawn = diffusion.generate(["a gear"], num_inference_steps=2)
        probe = denoising_probe(diffusion, x, ["gear", "<c>"], {"<c>": c}, draws=1)
        sweep = gradient_sweep(clip, diffusion, x, c, (0.1,), pseudo=pseudo, gamma=0.1, draws=1, templates=templates(2))
        return [c, *trace.p_normal, scores.image, scores.maps, rival.image, rival.maps, *PatchMemory(backbone).add_shots(x)(pseudo), drawn, *probe.values(), *sweep.iloc[0]]

    both(calculate)


def test_anomalysd():
    from fsad_lib.anomalysd.detector import AnomalySD, Category, Settings
    from fsad_lib.anomalysd.finetune import finetune_decoder, finetune_unet
    from fsad_lib.anomalysd.masks import foreground
    from fsad_lib.patch_memory import PatchMemory

    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    from repainting_limit import maps

    def calculate(device):
        model = moved(tiny_inpainting.model(), device, "text_encoder", "vae", "unet")
        lpips, backbone, x = tiny_inpainting.lpips().to(device), moved(tiny_inpainting.backbone(), device, "model"), tiny_inpainting.images(2)
        losses = finetune_unet(model, x, [["a perfect gear."]] * 2, foreground(x), steps=2, lr=1e-4, batch_size=2).loss
        drawn = finetune_decoder(model, x, lpips, beta=0.1, steps=2, lr=1e-4, batch_size=2).loss
        settings = Settings(strength=0.5, scales=(1, 2), alpha=0.5, guidance_scale=2.0, num_inference_steps=4, perceptual_size=40)
        memories = {name: Category(f"a perfect {name}.", PatchMemory(backbone).add_shots(x[i : i + 1])) for i, name in enumerate(("gear", "nut"))}
        detector = AnomalySD(model, lpips, memories, settings)
        scores = detector(tiny_inpainting.images(1, seed=9), controls=True)
        merged = AnomalySD(model, lpips, memories, replace(settings, merged=True))(x[:1], "nut")
        return [*losses, *drawn, scores.image, scores.map, *scores.controls.values(), merged.map, *maps(detector, x[:1], x[1:], "gear").values()]

    both(calculate)


def test_tgvig(tmp_path):
    from fsad_lib.tgvig.image_quality import Classifier, quality
    from fsad_lib.tgvig.integrator import Settings, integrate
    from fsad_lib.tgvig.keyword_prompts import select
    from fsad_lib.tgvig.vqgan_clip import Settings as Rival
    from fsad_lib.tgvig.vqgan_clip import draw

    def calculate(device):
        clip, vqgan, x = clip_on(device), tiny_vqgan().to(device), tiny_models.images(1, 32)
        with torch.no_grad():
            chosen = select(clip.encode_image(x), clip.encode_text(["a gear", "a nut"]), ["a gear", "a nut"], "farthest", 0.5)
        for iterations in (1, 2):  # the second goes on from the first's state on disk
            found = integrate(vqgan, x, clip, chosen.best, Settings(iterations, 2, 2, lr=1e-4), tmp_path / device)
        image, _ = draw(vqgan, clip, "a gear", 32, settings=Rival(steps=2, cutouts=2))
        classifier = Classifier(moved(tiny_inpainting.backbone(), device, "model"))
        q = quality(found.images.to(device), x.to(device), found.origin.to(device), classifier, vqgan.perceptual)
        return [chosen.cosine, found.images, *found.similarity, image, q.ssim, q.psnr, q.lpips, q.inception]

    both(calculate, atol=2e-3)


@pytest.mark.parametrize("name", ["patchcore", "cflow", "reverse_distillation", "efficientad"])
def test_baselines(name, tmp_path):
    import timm

    from fsad_lib import baselines
    from fsad_lib.foundation.backbones import Backbone

    def detector(device):
        torch.manual_seed(0)
        if name == "efficientad":
            from anomalib.models.image.efficient_ad.torch_model import SmallPatchDescriptionNetwork

            return baselines.make(name, teacher=SmallPatchDescriptionNetwork(4).to(device), penalty=tiny_models.images(1, 256), device=device)
        settings = {"patchcore": {"coreset_size": 20}, "cflow": {"coupling_blocks": 1, "condition": 8, "batch_size": 2}, "reverse_distillation": {"batch_size": 2}}[name]
        return baselines.make(name, backbone=moved(Backbone(timm.create_model("resnet18"), "resnet18", SIDE), device, "model"), **settings)

    def calculate(device):
        x, made, more = tiny_models.images(2, SIDE), detector(device), {"checkpoint": tmp_path / f"{device}.pt"}
        if name == "efficientad":
            x = tiny_models.images(1, 256)
            more |= {"held_out": x}
        losses = made.fit(x, 1, **{} if name == "patchcore" else more)
        return [*losses, *detector(device).load(made.state())(x[:1])]  # as read from disk, where it lies on the CPU

    both(calculate, rtol=1e-2)


def test_training_of_the_miniatures():
    import numpy as np
    from diffusers import AutoencoderKL

    from fsad_lib.foundation.miniatures import train_vae, train_vqgan
    from fsad_lib.foundation.vqgan import LossWeights

    draw = np.random.default_rng(0)
    images, cells = [draw.integers(0, 256, (2, 2, 128, 128, 3), dtype=np.uint8)], draw.random((2, 16, 16))

    def calculate(device):
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, mid_block_add_attention=False).to(device)
        vqgan = tiny_vqgan().to(device)
        optimizers = {name: torch.optim.Adam(getattr(vqgan, name).parameters(), 1e-3) for name in ("model", "discriminator")}
        book, x = train_vqgan.Codebook(vqgan.model), tiny_models.images(2, 32).to(device)
        parts, z, index = train_vqgan.train_step(vqgan, optimizers, x, LossWeights())
        book.count(index)
        book.renew(z, np.random.default_rng(1), 0.5)
        return [*train_vae.quality(vae, images, cells, device, 1).values(), *parts.values(), *train_vqgan.quality(vqgan, images, 1).values()]

    both(calculate, atol=1e-2)


def test_last_bits_do_not_restart_a_training(tmp_path):
    """A teacher's means and deviations differ from device to device in their last bits: an unfinished training goes on all the same."""
    from fsad_lib.baselines._common import train

    steps = []
    for bit in (0.0, 1e-6):
        torch.manual_seed(0)
        model = torch.nn.ParameterDict({"weight": torch.ones(2), "mean_std": torch.full((2,), 1 + bit)})
        optimizer = torch.optim.Adam([model["weight"]])
        losses = train(
            model, optimizer, lambda row: steps.append(row) or 0.0, [torch.tensor([0])] * 2, [torch.zeros(1)], frozen="teacher.", derived=("mean_std",),
            checkpoint=tmp_path / "training.pt",
        )  # fmt: skip
    assert losses == [0.0, 0.0] and len(steps) == 2
