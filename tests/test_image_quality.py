"""Table 2's measures on cases with known answers, and VQGAN-CLIP."""

import math

import pytest
import torch
from tiny_clip import tiny_clip
from tiny_vqgan import tiny_vqgan
from torch import nn

from fsad_lib.errors import FsadError
from fsad_lib.foundation.perceptual import Lpips
from fsad_lib.tgvig import vqgan_clip
from fsad_lib.tgvig.image_quality import inception_score, load_classifier, quality


class Table(nn.Module):
    """Gives the i-th image the i-th row of logits, whatever it shows."""

    label = "table"

    def __init__(self, logits):
        super().__init__()
        self.logits, self.at = logits, 0

    def forward(self, x):
        self.at += len(x)
        return self.logits[self.at - len(x) : self.at]


def images(n=6, side=48, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_inception_score_against_its_definition_and_bounds():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    p = logits.softmax(1)
    kl = sum(float((row * (row / p.mean(0)).log()).sum()) for row in p) / 6
    for batch in (2, 6):
        assert inception_score(images(), Table(logits), batch) == pytest.approx(math.exp(kl), rel=1e-4)
    assert inception_score(images(), Table(50 * torch.eye(6))) == pytest.approx(6, rel=1e-4), "never more than n"
    assert inception_score(images(), Table(torch.randn(1, 5).expand(6, -1))) == pytest.approx(1, rel=1e-4)
    assert inception_score(images(1), Table(logits)) == pytest.approx(1, rel=1e-5), "Table 2's first row"


def test_quality_of_the_original_itself_and_of_noise():
    x, lpips = images(4), Lpips()
    same = quality(x, x, range(4), Table(torch.zeros(4, 3)), lpips)
    assert (same.n, same.inception_label) == (4, "table")
    assert same.ssim == pytest.approx(1) and same.psnr == math.inf and same.lpips == 0
    noisy = (x + 0.1).clamp(0, 1)
    found = quality(noisy, x, torch.arange(4), Table(torch.zeros(4, 3)), lpips, batch_size=3)
    expected = sum(-10 * math.log10(float(((a - b) ** 2).mean())) for a, b in zip(noisy, x)) / 4
    assert found.psnr == pytest.approx(expected, rel=1e-4) and found.ssim < 1
    assert found.lpips == pytest.approx(float(lpips.distance(noisy, x).mean()), rel=1e-4)


def test_ssim_against_its_definition_where_the_window_fits():
    x, y = images(2), (images(2) + 0.2 * torch.rand(2, 3, *images(1).shape[-2:], generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    places = torch.arange(11.0) - 5
    window = torch.exp(-(places[:, None] ** 2 + places**2) / (2 * 1.5**2))
    window = window / window.sum()

    def mean(v):
        return nn.functional.conv2d(v.flatten(0, 1)[:, None], window[None, None])  # no border: every window lies within

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    ssim = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2) / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2))
    found = quality(y, x, [0, 1], Table(torch.zeros(2, 3)), Lpips()).ssim
    assert found == pytest.approx(float(ssim.mean()), abs=1e-4) and 0 < found < 0.999


def test_each_image_is_compared_with_its_own_original():
    originals = images(2)
    made = originals[[0, 0, 1]]
    right = quality(made, originals, [0, 0, 1], Table(torch.zeros(3, 3)), Lpips())
    wrong = quality(made, originals, [1, 1, 0], Table(torch.zeros(3, 3)), Lpips())
    assert right.ssim == pytest.approx(1) and wrong.ssim < 0.5


def test_the_proxy_is_named_and_the_real_one_is_asked_for(tmp_path):
    classifier = load_classifier(image_size=64)
    assert classifier.label == "Inception Score (proxy: tf_efficientnet_lite0)"
    assert classifier(images(2)).shape == (2, 1000)
    assert 1 <= inception_score(images(5), classifier) <= 5
    with pytest.raises(FsadError, match="never downloaded.*inception_v3"):
        load_classifier("inception_v3")
    with pytest.raises(FsadError, match="no weights"):
        load_classifier("inception_v3", tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "call",
    [
        lambda: inception_score(torch.rand(0, 3, 8, 8), Table(torch.zeros(1, 2))), lambda: inception_score(images(2) + 1, Table(torch.zeros(2, 2))),
        lambda: quality(images(2), images(1), [0], Table(torch.zeros(2, 2)), Lpips()), lambda: quality(images(2), images(1), [0, 1], Table(torch.zeros(2, 2)), Lpips()),
        lambda: quality(images(2), images(2, 40), [0, 1], Table(torch.zeros(2, 2)), Lpips()),
    ],
)  # fmt: skip
def test_bad_images_are_refused(call):
    with pytest.raises(FsadError):
        call()


# ---------------------------------------------------------------- VQGAN-CLIP
SHORT = vqgan_clip.Settings(steps=12, cutouts=4, lr=0.3)


def test_vqgan_clip_comes_closer_to_its_prompt_and_changes_no_model():
    vqgan, clip = tiny_vqgan(), tiny_clip()
    before = {n: p.clone() for n, p in [*vqgan.model.state_dict().items(), *((f"clip.{n}", p) for n, p in clip.model.state_dict().items())]}
    x, distances = vqgan_clip.draw(vqgan, clip, "a nut", 32, settings=SHORT)
    assert x.shape == (3, 32, 32) and x.min() >= 0 and x.max() <= 1 and len(distances) == 12
    assert sum(distances[-3:]) < sum(distances[:3])
    after = {**vqgan.model.state_dict(), **{f"clip.{n}": p for n, p in clip.model.state_dict().items()}}
    assert all(torch.equal(before[n], after[n]) for n in before) and all(p.grad is None for p in vqgan.model.parameters())
    again, _ = vqgan_clip.draw(vqgan, clip, "a nut", 32, settings=SHORT)
    other, _ = vqgan_clip.draw(vqgan, clip, "a photo of a nut", 32, settings=SHORT)
    assert torch.equal(x, again) and not torch.equal(x, other)


def test_vqgan_clip_may_begin_from_an_image():
    vqgan, clip, start = tiny_vqgan(), tiny_clip(), images(1, 32)[0]
    near, _ = vqgan_clip.draw(vqgan, clip, "a nut", 32, start, vqgan_clip.Settings(steps=1, lr=1e-6))
    assert torch.allclose(near, vqgan.reconstruct(start[None])[0], atol=1e-3)


def test_cutouts_are_squares_of_the_image_and_pass_gradients():
    x = torch.arange(20 * 30.0).view(1, 1, 20, 30).expand(1, 3, 20, 30).clone().requires_grad_()
    parts = vqgan_clip.cutouts(x, 50, 16, 1.0, torch.Generator().manual_seed(0))
    assert parts.shape == (50, 3, 16, 16)
    spans = parts.detach()[:, 0, -1, -1] - parts.detach()[:, 0, 0, 0]
    assert spans.std() < 1e-2 * spans.mean(), "least=1: the whole height, only the place differs"
    parts.sum().backward()
    assert (x.grad.abs().sum((0, 1, 2)) > 0).all(), "every column is seen by some cut-out"
    with pytest.raises(FsadError):
        vqgan_clip.draw(tiny_vqgan(), tiny_clip(), "", 32)
    for change in (dict(steps=0), dict(cutouts=0), dict(lr=0.0), dict(least=0.0)):
        with pytest.raises(FsadError):
            vqgan_clip.draw(tiny_vqgan(), tiny_clip(), "a", 32, settings=vqgan_clip.Settings(**change))
    for size, start in ((30, None), (32, torch.rand(3, 16, 16))):
        with pytest.raises(FsadError):
            vqgan_clip.draw(tiny_vqgan(), tiny_clip(), "a", size, start)
