"""Equations 2 and 3: augmentations that keep the grid, the latents' mean and variance, samples, several originals."""

import pytest
import torch
from tiny_vqgan import tiny_vqgan

from fsad_lib.errors import FsadError
from fsad_lib.tgvig.generator import (
    Augmentation,
    LatentDistribution,
    augment,
    images_each,
    latent_distribution,
    sample,
    synthesize,
)

STILL = Augmentation(0, 0, 0, 0, 0)


def image(side=32, seed=0):
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- augmentations
def test_augmented_images_are_determined_one_by_one():
    x = image()
    a, b = augment(x, 8, 4, seed=3), augment(x, 5, 4, seed=3)
    assert torch.equal(a[:5], b) and torch.equal(a[0], x)
    assert len({round(float(v.mean()), 6) for v in a}) == 8 and not torch.equal(a[1], augment(x, 2, 4, seed=4)[1])
    assert a.min() >= 0 and a.max() <= 1
    assert torch.equal(augment(x, 4, 4, settings=STILL), x.expand(4, -1, -1, -1))


def test_shifts_stay_within_a_cell_and_move_exact_pixels():
    x = image()
    found = set()
    for part in augment(x, 40, 8, settings=Augmentation(0, 0, 0, 0, 3)):
        inner = part[:, 4:-4, 4:-4]
        matches = [(d, r) for d in range(-4, 5) for r in range(-4, 5) if torch.equal(inner, x[:, 4 - d : 28 - d, 4 - r : 28 - r])]
        assert len(matches) == 1
        found |= set(matches)
    assert {max(abs(d), abs(r)) for d, r in found} == {0, 1, 2, 3}
    assert torch.equal(augment(x, 3, 1), augment(x, 3, 1, settings=Augmentation(shift=0))), "a cell of one pixel cannot be shifted"


def test_light_and_colour_draw_no_spot():
    """A flat part stays flat: nothing local is added, so no defect can appear."""
    flat = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1).expand(3, 32, 32).contiguous()
    for part in augment(flat, 20, 4):
        assert (part - part[:, :1, :1]).abs().max() < 1e-6 and (part - flat).abs().max() < 0.12
    ramp = torch.linspace(0.1, 0.9, 32).expand(3, 32, 32).contiguous()
    for part in augment(ramp, 20, 4, settings=Augmentation(shift=0)):
        assert (part.diff(dim=2) > 0).all(), "order of brightness is kept"


def test_flips_blur_the_mean_and_aligned_augmentations_do_not():
    x = torch.zeros(3, 32, 32)
    x[:, 4:12, 6:14] = 1.0  # a part that stands off the centre
    kept = {}
    for kind in ("aligned", "flips"):
        mean = augment(x, 64, 4, settings=Augmentation(kind=kind)).mean(0)
        kept[kind] = float((mean[:, 6:10, 8:12]).mean() - mean[:, 20:28, 20:28].mean())
    assert kept["aligned"] > 0.9 and kept["flips"] < 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: augment(torch.rand(1, 3, 8, 8), 2, 4), lambda: augment(torch.rand(3, 8, 8) + 1, 2, 4), lambda: augment(torch.rand(3, 8, 8) * torch.nan, 2, 4),
        lambda: augment(torch.rand(3, 8, 8), 0, 4), lambda: augment(torch.rand(3, 8, 8), True, 4), lambda: augment(torch.rand(3, 8, 8), 2, 4, settings=Augmentation(shift=4)),
        lambda: augment(torch.rand(3, 8, 8), 2, 4, settings=Augmentation(contrast=1.0)), lambda: augment(torch.rand(3, 8, 8), 2, 4, settings=Augmentation(brightness=-0.1)),
        lambda: augment(torch.rand(3, 8, 8), 2, 4, settings=Augmentation(kind="cutout")), lambda: augment(torch.rand(3, 8, 12), 2, 4, settings=Augmentation(kind="flips")),
        lambda: latent_distribution(torch.rand(1, 2, 3, 3)), lambda: latent_distribution(torch.rand(2, 2, 3)), lambda: latent_distribution(torch.rand(2, 2, 3, 3), "two"),
        lambda: images_each(0, 1), lambda: images_each(5, 0),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call):
    with pytest.raises(FsadError):
        call()


# ---------------------------------------------------------------- distributions and samples
def test_mean_and_column_wise_variance_against_loops():
    z = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    d = latent_distribution(z)
    for c in range(3):
        for i in range(4):
            for j in range(5):
                values = [float(v) for v in z[:, c, i, j]]
                mean = sum(values) / 7
                assert float(d.mean[c, i, j]) == pytest.approx(mean, abs=1e-6)
                assert float(d.variance[c, i, j]) == pytest.approx(sum((v - mean) ** 2 for v in values) / 6, rel=1e-4)
    assert torch.equal(latent_distribution(z, "unit").variance, torch.ones(3, 4, 5))
    assert torch.equal(latent_distribution(z, "none").variance, torch.zeros(3, 4, 5))
    assert torch.equal(latent_distribution(z[:1], "unit").mean, z[0])


def test_samples_follow_the_distribution_and_do_not_depend_on_how_many_are_drawn():
    d = LatentDistribution(torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[9.0, 0.0]]]))
    z = sample(d, 4000, 0)
    assert float(z[..., 0].mean()) == pytest.approx(2, abs=0.15) and float(z[..., 0].var()) == pytest.approx(9, rel=0.06)
    assert (z[..., 1] == -1).all()
    assert torch.equal(sample(d, 3, 5, 1), sample(d, 9, 5, 1)[:3]) and not torch.equal(sample(d, 3, 5, 1), sample(d, 3, 5, 2))


def test_samples_are_reparameterised():
    """dz/dE = 1 and dz/dSigma = eps / (2 sqrt(Sigma)); zero variance gives a zero gradient, not infinity."""
    mean, variance = torch.zeros(1, 1, 2, requires_grad=True), torch.tensor([[[4.0, 0.0]]], requires_grad=True)
    z = sample(LatentDistribution(mean, variance), 1, 7)
    z.sum().backward()
    eps = float(z.detach()[0, 0, 0, 0]) / 2
    assert torch.equal(mean.grad, torch.ones(1, 1, 2))
    assert variance.grad.tolist()[0][0] == pytest.approx([eps / 4, 0.0])


def test_zero_variance_of_the_samples_is_the_plain_reconstruction_of_the_mean():
    vqgan, x = tiny_vqgan(), image()
    same = synthesize(vqgan, x[None], 3, n=4, augmentation=STILL)
    assert torch.allclose(same, vqgan.reconstruct(x[None]).expand(3, -1, -1, -1), atol=1e-6), "all augmentations alike: variance 0"
    still = synthesize(vqgan, x[None], 2, n=4, variance="none")
    assert torch.allclose(still[0], still[1]) and not torch.allclose(still[0], same[0], atol=1e-4)


def test_latents_are_decoded_without_another_look_up():
    vqgan = tiny_vqgan()
    z = torch.randn(1, 5, 4, 4)
    with torch.no_grad():
        assert not torch.allclose(vqgan.decode(z), vqgan.decode(vqgan.quantize(z)[0]), atol=1e-3)
        assert torch.allclose(vqgan.decode(z), vqgan.model.decoder(vqgan.model.post_quant_conv(z)) / 2 + 0.5)


def test_more_variation_of_the_originals_gives_more_variation_of_the_images():
    vqgan, x = tiny_vqgan(), image()[None]
    spread = [float(synthesize(vqgan, x, 6, n=8, augmentation=a).var(0).mean()) for a in (Augmentation(0.01, 0.01, 0, 0, 0), Augmentation(0.2, 0.4, 0.2, 0.2, 0))]
    assert spread[0] < spread[1]
    assert spread[1] < float(synthesize(vqgan, x, 6, n=8, variance="unit").var(0).mean())


def test_every_original_has_its_own_distribution():
    vqgan = tiny_vqgan()
    x = torch.stack([torch.full((3, 32, 32), 0.1), torch.full((3, 32, 32), 0.9), image()])
    made = synthesize(vqgan, x, 7, n=4)
    assert len(made) == 9 and images_each(7, 3) == 3
    alone = torch.cat([synthesize(vqgan, x[:1], 3, n=4)])
    assert torch.allclose(made[:3], alone, atol=1e-5), "the others make no difference to the first"
    mixed = vqgan.reconstruct(x.mean(0, keepdim=True))
    distance = [(made[3 * k : 3 * k + 3] - vqgan.reconstruct(x[k : k + 1])).abs().mean() for k in range(3)]
    assert all(d < (made[3 * k : 3 * k + 3] - mixed).abs().mean() for k, d in enumerate(distance))
    assert not torch.allclose(synthesize(vqgan, x, 7, n=4, quantized=False), made, atol=1e-3)


def test_where_all_codes_agree_the_root_of_rounding_errors_sends_no_gradient():
    """Codes that agree, behind the straight-through sum, differ by rounding: a variance above 0, whose root would have a gradient of any size."""
    draw = torch.Generator().manual_seed(0)
    z_q, z = torch.randn(1, 64, 4, 4, generator=draw), torch.randn(16, 64, 4, 4, generator=draw).requires_grad_()
    d = latent_distribution(z + (z_q - z).detach())
    assert 0 < d.variance.max() < 1e-12, "rounding, and nothing else"
    (found,) = torch.autograd.grad(sample(d, 3, 0).sum(), z, retain_graph=True)
    (mean,) = torch.autograd.grad(3 * d.mean.sum(), z)
    assert torch.allclose(found, mean, atol=1e-6)
