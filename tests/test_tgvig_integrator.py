"""Equations 4 to 7: the chosen set, the losses, what is updated, and going on after an interruption."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_clip import tiny_clip
from tiny_vqgan import tiny_vqgan

from fsad_lib.errors import FsadError
from fsad_lib.foundation.vqgan import VQGAN, LossWeights
from fsad_lib.tgvig import integrator
from fsad_lib.tgvig.generator import augment, latent_distribution, sample
from fsad_lib.tgvig.integrator import Settings, integrate

SMALL = Settings(iterations=4, images=3, augmented=3, lr=1e-3)
PROMPT = "a nut with cob"


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def images(k=1):
    return torch.rand(k, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_best_set_wins_and_without_text_the_last(clip):
    vqgan = tiny_vqgan()
    seen = []
    found = integrate(vqgan, images(), clip, PROMPT, SMALL, progress=lambda i, n: seen.append((i, n)))
    assert seen == [(i, 4) for i in range(1, 5)] and len(found.similarity) == len(found.losses) == 4
    assert found.chosen == 1 + max(range(4), key=lambda i: found.similarity[i])
    # eq. 4 and 5 for the chosen set
    z_v = clip.encode_image(found.images).mean(0)
    assert float(F.cosine_similarity(z_v, clip.encode_text([PROMPT])[0], dim=0)) == pytest.approx(max(found.similarity), abs=1e-5)
    # every prefix chooses the best of its own iterations
    for n in (1, 2, 3):
        part = integrate(vqgan, images(), clip, PROMPT, replace(SMALL, iterations=n))
        assert part.similarity == pytest.approx(found.similarity[:n], abs=1e-6)
        assert part.chosen == 1 + max(range(n), key=lambda i: found.similarity[i])
    last = integrate(vqgan, images(), settings=SMALL)
    assert last.chosen == 4 and last.similarity == [] and last.losses[0] == pytest.approx(found.losses[0])
    assert found.images.min() >= 0 and found.images.max() <= 1 and found.origin.tolist() == [0, 0, 0]


def test_the_loss_is_that_of_the_equations(clip):
    vqgan, x = tiny_vqgan(), images()
    s = replace(SMALL, iterations=1, lam=0.7, weights=LossWeights(1.0, 1.0, 0.0))
    found = integrate(vqgan, x, settings=s)
    parts = augment(x[0], 3, 4, "0/0")
    with torch.no_grad():
        d = latent_distribution(vqgan.quantize(vqgan.encode(parts))[0])
        made = vqgan.decode(sample(d, 3, 0, 1, 0))
        mse = sum(float(((x[0] - m) ** 2).mean()) for m in made) / 3
    assert torch.allclose(found.images, made.clamp(0, 1), atol=1e-5)
    assert found.losses[0]["mse"] == pytest.approx(mse, rel=1e-4)
    assert found.losses[0]["vq"] == pytest.approx(float(vqgan.loss(parts, s.weights).total.detach()), rel=1e-4)


def changed(before, after):
    return {n for n, v in after.state_dict().items() if not torch.equal(v, before[n])}


@pytest.mark.parametrize("update", [True, False])
def test_encoder_decoder_and_codebook_are_updated_and_the_callers_model_is_not(monkeypatch, update):
    vqgan = tiny_vqgan()
    before = copy.deepcopy(vqgan.model.state_dict())
    judge = copy.deepcopy(vqgan.discriminator.state_dict())
    perceptual = copy.deepcopy(vqgan.perceptual.state_dict())
    works = []
    real = integrator.VQGAN
    monkeypatch.setattr(integrator, "VQGAN", lambda *parts: works.append(real(*parts)) or works[-1])
    integrate(vqgan, images(2), settings=replace(SMALL, iterations=2, update_discriminator=update))
    assert not changed(before, vqgan.model) and not changed(judge, vqgan.discriminator) and not changed(perceptual, vqgan.perceptual)
    assert changed(before, works[0].model) == set(before), "all parameters, the codebook vectors among them"
    found = changed(judge, works[0].discriminator)
    assert (len(found) > 5) if update else not found


def test_lambda_zero_leaves_only_the_mean_squared_error():
    x = torch.linspace(0.2, 0.8, 32).expand(1, 3, 32, 32)
    found = integrate(tiny_vqgan(), x, settings=replace(SMALL, lam=0.0, iterations=12, lr=5e-3, variance="none"))
    assert set(found.losses[0]) == {"mse"} and found.losses[-1]["mse"] < 0.7 * found.losses[0]["mse"]


def test_several_originals():
    found = integrate(tiny_vqgan(), images(2), settings=replace(SMALL, images=3, iterations=1))
    assert found.images.shape == (4, 3, 32, 32) and found.origin.tolist() == [0, 0, 1, 1]
    one, two = (integrate(tiny_vqgan(), images(2)[k : k + 1], settings=replace(SMALL, images=2, iterations=1)) for k in (0, 1))
    assert torch.allclose(found.images[:2], one.images, atol=1e-5)  # before the first update the originals do not meet
    assert found.losses[0]["mse"] == pytest.approx((one.losses[0]["mse"] + two.losses[0]["mse"]) / 2, rel=0.3)


def test_the_discriminator_takes_one_step_an_iteration_whatever_the_number_of_originals(tmp_path):
    integrate(tiny_vqgan(), images(3), settings=replace(SMALL, iterations=2), folder=tmp_path)
    steps = torch.load(tmp_path / integrator.CHECKPOINT, weights_only=True)["optimizers"]["discriminator"]["state"]
    assert {int(state["step"]) for state in steps.values()} == {2}


def test_the_discriminator_learns_from_every_original_and_nothing_else(monkeypatch):
    """One Adam step along the mean gradient of its own loss; what the generator's step sends through it does not count."""
    vqgan, x, works, real = tiny_vqgan(), images(2), [], integrator.VQGAN
    monkeypatch.setattr(integrator, "VQGAN", lambda *parts: works.append(real(*parts)) or works[-1])
    integrate(vqgan, x, settings=replace(SMALL, iterations=1))
    judge = copy.deepcopy(vqgan.discriminator).train().requires_grad_()
    own = real(vqgan.model, judge, vqgan.perceptual)
    adam = torch.optim.Adam(judge.parameters(), SMALL.lr, betas=(0.5, 0.9))
    for k in range(2):
        parts = augment(x[k], SMALL.augmented, own.factor, f"{SMALL.seed}/{k}", SMALL.augmentation)
        with torch.no_grad():
            x_hat = own.decode(own.quantize(own.encode(parts))[0])
        (own.discriminator_loss(parts, x_hat) / 2).backward()
    adam.step()
    for found, expected in zip(works[0].discriminator.parameters(), judge.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_gradient_checkpointing_changes_memory_alone(tmp_path):
    plain, saving = SMALL, replace(SMALL, gradient_checkpointing=True)
    whole = integrate(tiny_vqgan(), images(), settings=plain)
    found = integrate(tiny_vqgan(), images(), settings=saving)
    assert torch.allclose(found.images, whole.images, atol=1e-6) and found.losses[-1] == pytest.approx(whole.losses[-1], rel=1e-4)
    integrate(tiny_vqgan(), images(), settings=replace(plain, iterations=2), folder=tmp_path)
    resumed = integrate(tiny_vqgan(), images(), settings=saving, folder=tmp_path)
    assert torch.allclose(resumed.images, whole.images, atol=1e-6)


def test_gradient_checkpointing_keeps_fewer_activations():
    def kept(**more):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda v: sizes.append(v.nbytes) or v, lambda v: v):
            integrate(tiny_vqgan(), images(), settings=replace(SMALL, iterations=1, lam=0.0, **more))
        return sum(sizes)

    assert kept(gradient_checkpointing=True) < 0.3 * kept()


def test_a_kept_state_is_read_to_the_cpu(tmp_path, clip, monkeypatch):
    """Scores of earlier iterations meet those of later ones on the CPU, wherever the models are."""
    s, real, places = replace(SMALL, iterations=1), torch.load, []
    integrate(tiny_vqgan(), images(), clip, PROMPT, s, tmp_path)
    monkeypatch.setattr(torch, "load", lambda *a, **k: places.append(k["map_location"]) or real(*a, **k))
    found = integrate(tiny_vqgan(), images(), clip, PROMPT, replace(s, iterations=2), tmp_path)
    assert places == ["cpu"] and found.z_v.shape[0] == 2


def test_an_interrupted_integration_goes_on_to_the_same_images(tmp_path, clip):
    whole = integrate(tiny_vqgan(), images(), clip, PROMPT, SMALL)

    def stop(done, n):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        integrate(tiny_vqgan(), images(), clip, PROMPT, SMALL, tmp_path, stop)
    done = []
    again = integrate(tiny_vqgan(), images(), clip, PROMPT, SMALL, tmp_path, lambda i, n: done.append(i))
    assert done == [3, 4] and again.chosen == whole.chosen
    assert torch.equal(again.images, whole.images) and again.similarity == whole.similarity and again.losses == whole.losses
    nothing = integrate(tiny_vqgan(), images(), clip, PROMPT, SMALL, tmp_path, lambda i, n: pytest.fail("nothing was left to do"))
    assert torch.equal(nothing.images, whole.images)
    further = integrate(tiny_vqgan(), images(), clip, PROMPT, replace(SMALL, iterations=5), tmp_path)
    assert further.similarity[:4] == whole.similarity and len(further.losses) == 5


def test_a_state_of_other_arguments_is_refused(tmp_path, clip):
    s, own = replace(SMALL, iterations=2), tiny_vqgan()
    integrate(own, images(), clip, PROMPT, s, tmp_path)
    for call, match in (
        (lambda: integrate(tiny_vqgan(), images(), clip, "a nut", s, tmp_path), "other .*prompt"),
        (lambda: integrate(tiny_vqgan(), images(), clip, PROMPT, replace(s, lr=1e-2), tmp_path), "other settings"),
        (lambda: integrate(tiny_vqgan(), images(2), clip, PROMPT, s, tmp_path), "other images"),
        (lambda: integrate(VQGAN(tiny_vqgan(seed=1).model, own.discriminator, own.perceptual), images(), clip, PROMPT, s, tmp_path), "other VQGAN\\."),
        (lambda: integrate(VQGAN(own.model, tiny_vqgan(seed=1).discriminator, own.perceptual), images(), clip, PROMPT, s, tmp_path), "other discriminator\\."),
        (lambda: integrate(VQGAN(own.model, own.discriminator, tiny_vqgan(seed=1).perceptual), images(), clip, PROMPT, s, tmp_path), "other perceptual distance\\."),
        (lambda: integrate(own, images(), settings=s, folder=tmp_path), "other CLIP, prompt\\."),
        (lambda: integrate(tiny_vqgan(), images(), clip, PROMPT, replace(s, iterations=1), tmp_path), "2 iterations old"),
    ):
        with pytest.raises(FsadError, match=match):
            call()
    (tmp_path / integrator.CHECKPOINT).write_bytes(b"no")
    with pytest.raises(FsadError, match="cannot be read"):
        integrate(tiny_vqgan(), images(), clip, PROMPT, s, tmp_path)


@pytest.mark.parametrize(
    "change",
    [dict(iterations=0), dict(images=0), dict(augmented=0), dict(augmented=1), dict(lam=-1.0), dict(lr=0.0), dict(variance="two"), dict(iterations=2.5), dict(lam=float("nan"))],
)  # fmt: skip
def test_bad_settings_are_refused(change):
    with pytest.raises(FsadError):
        integrate(tiny_vqgan(), images(), settings=replace(SMALL, **change))


def test_bad_arguments_are_refused(clip):
    for args in ((images(),  clip, None), (images(), None, PROMPT), (images(), clip, " "), (images()[0], None, None), (images()[:0], None, None)):
        with pytest.raises(FsadError):
            integrate(tiny_vqgan(), *args, SMALL)
    broken = tiny_vqgan()
    with torch.no_grad():
        broken.model.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(FsadError, match="iteration 1; lower lr"):
        integrate(broken, images(), settings=replace(SMALL, lam=0.0))
