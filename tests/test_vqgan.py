"""VQGAN: the original architecture, written out independently on its own weight names; files; the loss."""

import re
import sys
import types

import pytest
import torch
import torch.nn.functional as F
import yaml
from tiny_vqgan import tiny_vqgan

from fsad_lib.errors import FsadError
from fsad_lib.foundation import vqgan as v
from fsad_lib.foundation.perceptual import Lpips


# ---------------------------------------------------------------- the reference: taming-transformers' layers, from their description
class Reference:
    """The original encoder and decoder as plain functions of a dictionary of weights under the original names."""

    def __init__(self, state, mult, blocks, attention_levels, groups=32):
        self.w, self.mult, self.blocks, self.attention_levels, self.groups = state, mult, blocks, attention_levels, groups

    def conv(self, name, x, stride=1, padding=1):
        return F.conv2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], stride, padding)

    def norm(self, name, x):
        """Group norm in full: mean and biased variance over a group's channels and pixels, epsilon 1e-6 inside the root."""
        b, c, h, w = x.shape
        g = x.reshape(b, self.groups, -1)
        g = (g - g.mean(2, keepdim=True)) / torch.sqrt(g.var(2, keepdim=True, unbiased=False) + 1e-6)
        return g.reshape(b, c, h, w) * self.w[f"{name}.weight"].view(1, -1, 1, 1) + self.w[f"{name}.bias"].view(1, -1, 1, 1)

    @staticmethod
    def swish(x):
        return x / (1 + torch.exp(-x))

    def block(self, name, x):
        h = self.conv(f"{name}.conv1", self.swish(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", self.swish(self.norm(f"{name}.norm2", h)))
        return h + (self.conv(f"{name}.nin_shortcut", x, padding=0) if f"{name}.nin_shortcut.weight" in self.w else x)

    def attention(self, name, x):
        q, k, u = (self.conv(f"{name}.{n}", self.norm(f"{name}.norm", x), padding=0).flatten(2) for n in "qkv")
        share = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5, dim=2)  # pixel i looks at pixels j
        return x + self.conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", share, u).view_as(x), padding=0)

    def middle(self, part, h):
        return self.block(f"{part}.mid.block_2", self.attention(f"{part}.mid.attn_1", self.block(f"{part}.mid.block_1", h)))

    def encode(self, x):
        h = self.conv("encoder.conv_in", x)
        for i in range(len(self.mult)):
            for j in range(self.blocks):
                h = self.block(f"encoder.down.{i}.block.{j}", h)
                if i in self.attention_levels:
                    h = self.attention(f"encoder.down.{i}.attn.{j}", h)
            if i != len(self.mult) - 1:  # one column and one row of zeros, at the right and at the bottom only
                h = self.conv(f"encoder.down.{i}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
        h = self.conv("encoder.conv_out", self.swish(self.norm("encoder.norm_out", self.middle("encoder", h))))
        return self.conv("quant_conv", h, padding=0)

    def quantize(self, z):
        cells = z.permute(0, 2, 3, 1)
        nearest = (cells.unsqueeze(-2) - self.w["quantize.embedding.weight"]).square().sum(-1).argmin(-1)
        return self.w["quantize.embedding.weight"][nearest].permute(0, 3, 1, 2), nearest

    def decode(self, codes):
        h = self.middle("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", codes, padding=0)))
        for i in reversed(range(len(self.mult))):
            for j in range(self.blocks + 1):
                h = self.block(f"decoder.up.{i}.block.{j}", h)
                if i in self.attention_levels:
                    h = self.attention(f"decoder.up.{i}.attn.{j}", h)
            if i != 0:
                h = self.conv(f"decoder.up.{i}.upsample.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self.conv("decoder.conv_out", self.swish(self.norm("decoder.norm_out", h)))


def taming_state(ch=32, mult=(1, 2, 4), blocks=2, attention_levels=(2,), z=8, dim=6, codes=64, judge=(8, 2), seed=0, perceptual="vgg"):
    """Random weights under the original's names: its structure, listed from its description."""
    g, w = torch.Generator().manual_seed(seed), {}

    def conv(name, a, b, k, bias=True):
        w[f"{name}.weight"] = torch.randn(b, a, k, k, generator=g) / (a * k * k) ** 0.5
        if bias:
            w[f"{name}.bias"] = torch.randn(b, generator=g) * 0.1

    def norm(name, a):
        w[f"{name}.weight"], w[f"{name}.bias"] = 1 + 0.2 * torch.randn(a, generator=g), 0.2 * torch.randn(a, generator=g)

    def block(name, a, b):
        norm(f"{name}.norm1", a), conv(f"{name}.conv1", a, b, 3), norm(f"{name}.norm2", b), conv(f"{name}.conv2", b, b, 3)
        if a != b:
            conv(f"{name}.nin_shortcut", a, b, 1)

    def attention(name, a):
        norm(f"{name}.norm", a), [conv(f"{name}.{n}", a, a, 1) for n in ("q", "k", "v", "proj_out")]

    def middle(part, a):
        block(f"{part}.mid.block_1", a, a), attention(f"{part}.mid.attn_1", a), block(f"{part}.mid.block_2", a, a)

    widths = [ch * m for m in mult]
    conv("encoder.conv_in", 3, ch, 3)
    now = ch
    for i, width in enumerate(widths):
        for j in range(blocks):
            block(f"encoder.down.{i}.block.{j}", now, width)
            now = width
            if i in attention_levels:
                attention(f"encoder.down.{i}.attn.{j}", now)
        if i != len(widths) - 1:
            conv(f"encoder.down.{i}.downsample.conv", now, now, 3)
    middle("encoder", now), norm("encoder.norm_out", now), conv("encoder.conv_out", now, z, 3)
    conv("quant_conv", z, dim, 1), conv("post_quant_conv", dim, z, 1)
    w["quantize.embedding.weight"] = torch.randn(codes, dim, generator=g)
    conv("decoder.conv_in", z, now, 3), middle("decoder", now)
    for i in reversed(range(len(widths))):
        for j in range(blocks + 1):
            block(f"decoder.up.{i}.block.{j}", now, widths[i])
            now = widths[i]
            if i in attention_levels:
                attention(f"decoder.up.{i}.attn.{j}", now)
        if i != 0:
            conv(f"decoder.up.{i}.upsample.conv", now, now, 3)
    norm("decoder.norm_out", now), conv("decoder.conv_out", now, 3, 3)

    width, layers = judge
    conv("loss.discriminator.main.0", 3, width, 4)
    for n in range(1, layers + 1):
        a, b, at = width * min(2 ** (n - 1), 8), width * min(2**n, 8), 3 * n - 1
        conv(f"loss.discriminator.main.{at}", a, b, 4, bias=False), norm(f"loss.discriminator.main.{at + 1}", b)
        w[f"loss.discriminator.main.{at + 1}.running_mean"] = torch.randn(b, generator=g) * 0.1
        w[f"loss.discriminator.main.{at + 1}.running_var"] = torch.rand(b, generator=g) + 0.5
        w[f"loss.discriminator.main.{at + 1}.num_batches_tracked"] = torch.tensor(7)
    conv(f"loss.discriminator.main.{3 * layers + 2}", width * min(2**layers, 8), 1, 4)

    wide, sides = ((64, 128, 256, 512, 512), [3] * 5) if perceptual == "vgg" else ((64, 192, 384, 256, 256), [11, 5, 3, 3, 3])
    a = 3
    for i, (convs, b, k) in enumerate(zip(v.VGG_CONVS if perceptual == "vgg" else v.ALEX_CONVS, wide, sides)):
        for at in convs:
            conv(f"loss.perceptual_loss.net.slice{i + 1}.{at}", a, b, k)
            a = b
        w[f"loss.perceptual_loss.lin{i}.model.1.weight"] = torch.rand(1, b, 1, 1, generator=g)
    w["loss.perceptual_loss.scaling_layer.shift"] = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    w["loss.perceptual_loss.scaling_layer.scale"] = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    return w


@pytest.fixture(scope="module")
def state():
    return taming_state()


def images(n=2, side=32, seed=3):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- exactness
@pytest.mark.parametrize(
    "shape",
    [
        dict(), dict(mult=(1, 1, 2), blocks=1, z=6, dim=8), dict(mult=(1, 2), attention_levels=()),
        dict(mult=(1, 1, 2, 2), attention_levels=(2, 3), blocks=1, codes=7),
    ],
)  # fmt: skip
def test_the_architecture_is_the_originals(shape):
    w = taming_state(**shape)
    shape = dict(mult=(1, 2, 4), blocks=2, attention_levels=(2,)) | {k: n for k, n in shape.items() if k in ("mult", "blocks", "attention_levels")}
    reference, ours, x = Reference(w, **shape), v.from_taming(w), images()
    assert ours.factor == 2 ** (len(shape["mult"]) - 1)
    with torch.no_grad():
        z = ours.encode(x)
        assert torch.allclose(z, reference.encode(2 * x - 1), atol=2e-5, rtol=1e-4)
        codes, _, index = ours.quantize(z)
        expected, nearest = reference.quantize(z)
        assert torch.equal(index, nearest) and torch.allclose(codes, expected, atol=1e-6)
        for latents in (expected, expected + 0.3 * torch.randn(expected.shape)):  # also between the codes: no look-up
            assert torch.allclose(ours.decode(latents), reference.decode(latents) / 2 + 0.5, atol=2e-5, rtol=1e-4)


def test_every_layer_counts(state):
    """A reference that differs in one detail is told apart: the comparison above could fail."""
    ours, x = v.from_taming(state), images()

    class Symmetric(Reference):
        def conv(self, name, x, stride=1, padding=1):
            return super().conv(name, x[:, :, :-1, :-1] if stride == 2 else x, stride, 1 if stride == 2 else padding)

    class Epsilon(Reference):
        def norm(self, name, x):
            b, c, h, w = x.shape
            g = x.reshape(b, self.groups, -1)
            g = (g - g.mean(2, keepdim=True)) / torch.sqrt(g.var(2, keepdim=True, unbiased=False) + 1e-3)
            return g.reshape(b, c, h, w) * self.w[f"{name}.weight"].view(1, -1, 1, 1) + self.w[f"{name}.bias"].view(1, -1, 1, 1)

    class Transposed(Reference):
        def attention(self, name, x):
            q, k, u = (self.conv(f"{name}.{n}", self.norm(f"{name}.norm", x), padding=0).flatten(2) for n in "qkv")
            share = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5, dim=1)
            return x + self.conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", share, u).view_as(x), padding=0)

    with torch.no_grad():
        for wrong in (Symmetric, Epsilon, Transposed):
            z = wrong(state, (1, 2, 4), 2, (2,)).encode(2 * x - 1)
            assert (ours.encode(x) - z).abs().max() > 1e-3, wrong.__name__


@pytest.mark.parametrize("codes", [1024, 16384])
def test_the_imagenet_models_sizes(codes):
    """The published models: 128 channels, multipliers 1 1 2 2 4, two blocks, attention at 16 x 16 of 256 pixels, 256 numbers a code."""
    with torch.device("meta"):
        w = taming_state(ch=128, mult=(1, 1, 2, 2, 4), blocks=2, attention_levels=(4,), z=256, dim=256, codes=codes, judge=(64, 3))
        model = v._architecture(w, v.Path("last.ckpt"), v.GROUPS)
    assert model.config.num_vq_embeddings == codes and list(model.config.block_out_channels) == [128, 128, 256, 256, 512]
    assert list(model.config.down_block_types) == ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"]
    assert list(model.config.up_block_types) == ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4
    names = {v.taming_name(n, 5): t for n, t in model.state_dict().items()}
    assert names.keys() == {n for n in w if n.startswith(v.PARTS)}
    assert all(v._squeezed(t) == v._squeezed(w[n]) for n, t in names.items())


def test_perceptual_distance_of_the_checkpoint(state):
    x, y = images(2, 48), images(2, 48, seed=4)
    ours = v.from_taming(state).perceptual
    assert isinstance(ours, v.VggLpips)
    w = {n.removeprefix("loss.perceptual_loss."): t for n, t in state.items() if n.startswith("loss.perceptual_loss.")}
    feats = []
    for image in (x, y):
        h, maps = (2 * image - 1 - w["scaling_layer.shift"]) / w["scaling_layer.scale"], []
        for i, convs in enumerate(v.VGG_CONVS, start=1):
            h = F.max_pool2d(h, 2, 2) if i > 1 else h
            for at in convs:
                h = torch.relu(F.conv2d(h, w[f"net.slice{i}.{at}.weight"], w[f"net.slice{i}.{at}.bias"], padding=1))
            maps.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        feats.append(maps)
    expected = sum(F.conv2d((a - b) ** 2, w[f"lin{i}.model.1.weight"]).mean((1, 2, 3)) for i, (a, b) in enumerate(zip(*feats)))
    assert torch.allclose(ours.distance(x, y), expected, rtol=1e-4) and expected.min() > 0
    assert not any(p.requires_grad for p in ours.parameters())


def test_discriminator_of_the_checkpoint(state):
    judge, x = v.from_taming(state).discriminator.eval(), images()
    h = 2 * x - 1
    w = {n.removeprefix("loss.discriminator.main."): t for n, t in state.items() if n.startswith("loss.discriminator.")}
    h = F.leaky_relu(F.conv2d(h, w["0.weight"], w["0.bias"], 2, 1), 0.2)
    for at, stride in ((2, 2), (5, 1)):
        h = F.conv2d(h, w[f"{at}.weight"], None, stride, 1)
        norm = [w[f"{at + 1}.{n}"].view(1, -1, 1, 1) for n in ("running_mean", "running_var", "weight", "bias")]
        h = F.leaky_relu((h - norm[0]) / torch.sqrt(norm[1] + 1e-5) * norm[2] + norm[3], 0.2)
    assert torch.allclose(judge(x), F.conv2d(h, w["8.weight"], w["8.bias"], 1, 1), atol=1e-5)


# ---------------------------------------------------------------- files
def test_export_and_load_give_the_same_numbers(tmp_path):
    ours, x = tiny_vqgan(), images()
    path = v.export_taming(ours, tmp_path / "paper")
    for where in (path, path.parent):
        again = v.load_vqgan(where)
        assert torch.equal(again.reconstruct(x), ours.reconstruct(x)) and isinstance(again.perceptual, Lpips)
        a, b = again.loss(x), ours.loss(x)
        assert torch.allclose(a.total, b.total, rtol=1e-5) and a.parts == pytest.approx(b.parts, rel=1e-4)
    ddconfig = yaml.safe_load((tmp_path / "paper/model.yaml").read_text())["model"]["params"]["ddconfig"]
    assert all(isinstance(m, int) for m in ddconfig["ch_mult"]) and ddconfig["ch"] * ddconfig["ch_mult"][-1] == ours.model.config.block_out_channels[-1]
    assert len(ddconfig["attn_resolutions"]) == sum("Attn" in kind for kind in ours.model.config.down_block_types)
    # an independent reading of what was written
    w = torch.load(path, weights_only=True)["state_dict"]
    with torch.no_grad():
        z = Reference(w, (1, 2, 3), 1, (2,), groups=4).encode(2 * x - 1)
    assert torch.allclose(z, ours.encode(x), atol=2e-5, rtol=1e-4)
    (tmp_path / "paper/model.yaml").unlink()
    with pytest.raises(FsadError, match="model.yaml missing"):
        v.load_vqgan(path)
    (tmp_path / "paper/model.yaml").write_text("model: 3")
    with pytest.raises(FsadError, match="configuration"):
        v.load_vqgan(path)


def test_the_miniatures_form(tmp_path):
    from safetensors.torch import save_file

    ours, x = tiny_vqgan(), images()
    lpips = tmp_path / "lpips_alex.safetensors"
    save_file({n: t.contiguous() for n, t in ours.perceptual.state_dict().items()}, lpips)
    v.save_vqgan(ours, tmp_path / "mini", torch.float32)
    again = v.load_vqgan(tmp_path / "mini", lpips)
    assert torch.equal(again.reconstruct(x), ours.reconstruct(x))
    assert torch.allclose(again.loss(x).total, ours.loss(x).total)
    v.save_vqgan(ours, tmp_path / "mini")
    half = v.load_vqgan(tmp_path / "mini", lpips)
    assert next(half.model.parameters()).dtype == torch.float32
    assert torch.allclose(half.encode(x), ours.encode(x), atol=2e-2)
    with pytest.raises(FsadError, match="needs the LPIPS weights"):
        v.load_vqgan(tmp_path / "mini")
    (tmp_path / "mini/discriminator.safetensors").unlink()
    with pytest.raises(FsadError, match="lacks discriminator.safetensors"):
        v.load_vqgan(tmp_path / "mini", lpips)


@pytest.mark.parametrize(
    "gone,match",
    [
        ("encoder.down.1.block.0.norm2.weight", "autoencoder is not complete"), ("quantize.embedding.weight", "lacks quantize"),
        ("quant_conv.bias", "autoencoder is not complete"), ("post_quant_conv.weight", "autoencoder is not complete"),
        ("decoder.mid.attn_1.q.weight", "autoencoder is not complete"), ("loss.discriminator.main.0.weight", "discriminator is missing"),
        ("loss.discriminator.main.3.running_var", "discriminator is not complete"), ("encoder.", "lacks encoder"),
        ("loss.perceptual_loss.lin3.model.1.weight", "perceptual distance is not complete"), ("loss.perceptual_loss.net.slice4.19.weight", "not complete"),
        ("loss.perceptual_loss.", "perceptual distance is missing"), ("loss.discriminator.", "discriminator is missing"), ("decoder.up.2.attn.1.", "not complete"),
    ],
)  # fmt: skip
def test_a_missing_part_is_an_error(state, gone, match):
    with pytest.raises(FsadError, match=match):
        v.from_taming({n: t for n, t in state.items() if not n.startswith(gone)})


def test_other_models_are_refused(state):
    for change, match in (
        ({"quantize.proj.weight": torch.zeros(3)}, "Gumbel"),
        ({"decoder.up.0.attn.0.q.weight": torch.zeros(32, 32, 1, 1)}, "does not have"),
        ({"encoder.conv_out.weight": torch.zeros(16, 128, 3, 3)}, "other sizes"),  # mean and variance, as of a KL autoencoder
        ({"loss.perceptual_loss.scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, "not LPIPS's own"),
        ({"encoder.conv_in.weight": torch.zeros(32, 1, 3, 3)}, "3 colours"),
    ):
        with pytest.raises(FsadError, match=match):
            v.from_taming(state | change)


def test_only_weights_are_unpickled(tmp_path, monkeypatch, state):
    class Callback:
        pass

    Callback.__module__, Callback.__qualname__ = "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["pytorch_lightning.callbacks.model_checkpoint"].ModelCheckpoint = Callback
    torch.save({"state_dict": state, "callbacks": {Callback: {"best": 1.0}}, "epoch": 3}, tmp_path / "old.ckpt")
    del sys.modules["pytorch_lightning.callbacks.model_checkpoint"].ModelCheckpoint  # never looked up
    assert v.load_vqgan(tmp_path / "old.ckpt").codes == 64

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": state, "x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(FsadError, match=r"holds more than weights: .*open"):
        v.load_vqgan(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "broken.ckpt").write_bytes(b"PK\3\4" + bytes(50))
    with pytest.raises(FsadError, match="cannot be read"):
        v.load_vqgan(tmp_path / "broken.ckpt")
    torch.save({"epoch": 1}, tmp_path / "empty.ckpt")
    with pytest.raises(FsadError, match="no weights"):
        v.load_vqgan(tmp_path / "empty.ckpt")
    with pytest.raises(FsadError, match="taming-transformers"):
        v.load_vqgan(tmp_path / "none")


# ---------------------------------------------------------------- loss
def test_loss_parts_add_up_and_reach_every_weight():
    ours, x = tiny_vqgan(), images(3)
    weights = v.LossWeights(perceptual=0.5, codebook=2.0, adversarial=0.3)
    loss = ours.loss(x, weights)
    p = loss.parts
    expected = p["absolute"] + 0.5 * p["perceptual"] + 2 * p["codebook"] + 0.3 * p["adversarial_scale"] * p["adversarial"]
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        assert p["absolute"] == pytest.approx(2 * float((x - ours.decode(ours.quantize(ours.encode(x))[0])).abs().mean()), rel=1e-5)
    loss.total.backward()
    without = [n for n, w in ours.model.named_parameters() if w.grad is None]
    assert not without and ours.model.quantize.embedding.weight.grad.abs().sum() > 0


def test_the_adversarial_part_pulls_as_hard_as_the_others_at_the_last_layer():
    ours, x = tiny_vqgan(), images(3)
    with torch.no_grad():  # gradients far above the 1e-4 that guards the division
        ours.discriminator.main[-1].weight.mul_(100)
    last = ours.model.decoder.conv_out.weight
    lengths = []
    for weights in (v.LossWeights(codebook=0, adversarial=0), v.LossWeights(codebook=0, adversarial=1)):
        lengths.append(torch.autograd.grad(ours.loss(x, weights).total, last)[0])
    assert (lengths[1] - lengths[0]).norm() == pytest.approx(float(lengths[0].norm()), rel=2e-2)


def test_discriminator_learns_to_tell_and_leaves_the_autoencoder_alone():
    ours, x = tiny_vqgan(), images(4)
    ours.discriminator.train()
    x_hat = ours.loss(x, v.LossWeights(0, 0, 0)).x_hat
    optimizer = torch.optim.Adam(ours.discriminator.parameters(), 1e-2)
    before = float(ours.discriminator_loss(x, x_hat).detach())
    for _ in range(20):
        optimizer.zero_grad()
        loss = ours.discriminator_loss(x, x_hat)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3 * before and all(w.grad is None for w in ours.model.parameters())


def test_codes_pass_the_gradient_straight_through():
    ours = tiny_vqgan()
    z = torch.randn(1, 5, 4, 4, requires_grad=True)
    codes, _, index = ours.quantize(z)
    assert torch.allclose(codes, ours.model.quantize.embedding(index).permute(0, 3, 1, 2), atol=1e-6)
    pull = torch.randn_like(codes)
    (codes * pull).sum().backward()
    assert torch.allclose(z.grad, pull)


@pytest.mark.parametrize("x", [torch.rand(1, 3, 30, 32), torch.rand(1, 1, 32, 32), torch.rand(3, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)])
def test_bad_images_are_refused(x):
    with pytest.raises(FsadError, match="multiples of 4|float image batch"):
        tiny_vqgan().encode(x)
    bare = v.VQGAN(tiny_vqgan().model)
    with pytest.raises(FsadError, match="without its perceptual"):
        bare.loss(torch.rand(1, 3, 32, 32))
    assert re.search("discriminator", str(pytest.raises(FsadError, bare.discriminator_loss, x, x).value))
