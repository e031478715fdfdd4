"""AnomalySD: score against slow loops, the detector's invariances and protocols, fine-tuning, bad input."""

import dataclasses
import hashlib
from types import SimpleNamespace

import pytest
import tiny_inpainting as tiny
import torch

from fsad_lib.anomalysd.detector import AnomalySD, Category, Settings, content_hash
from fsad_lib.anomalysd.finetune import decoder_parameters, finetune_decoder, finetune_unet
from fsad_lib.anomalysd.masks import Pass, grid_cells
from fsad_lib.anomalysd.score import fuse, harmonic_mean, image_score, scale_map
from fsad_lib.errors import FsadError
from fsad_lib.foundation.images import resize
from fsad_lib.patch_memory import PatchMemory

SETTINGS = Settings(strength=0.5, scales=(1, 2), alpha=0.4, num_inference_steps=4, batch_size=3, sigma=0.0)
PROMPTS = {"gear": "A perfect gear.", "nut": "A perfect nut."}


# ---------------------------------------------------------------- score
def test_harmonic_mean_equals_a_slow_loop():
    maps = {k: torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(k)) for k in (2, 4, 8)}
    maps[4][0, 0, 0] = 0
    got = harmonic_mean(maps, epsilon=1e-3)
    for b in range(2):
        for i in range(5):
            for j in range(6):
                inverse = sum(1 / max(float(s[b, i, j]), 1e-3) for s in maps.values())
                assert float(got[b, i, j]) == pytest.approx(1 / (inverse / 3), rel=1e-5)
    assert torch.allclose(harmonic_mean({2: maps[2]}), maps[2])


def test_scale_map_takes_each_pixel_from_the_pass_that_masked_it():
    m, d = grid_cells(3, (10, 11)), torch.rand(9, 10, 11)
    got = scale_map(d, m)
    for i in range(10):
        for j in range(11):
            painted = [p for p in range(9) if m[p, i, j]]
            assert len(painted) == 1 and got[i, j] == d[painted[0], i, j]


def test_fusion_and_image_score():
    a, b = torch.rand(2, 4, 4), torch.rand(2, 4, 4)
    assert torch.equal(fuse(a, b, 0.0), a) and torch.equal(fuse(a, b, 1.0), b) and torch.equal(fuse(a, None, 0.0), a)
    assert torch.allclose(fuse(a, b, 0.3), 0.7 * a + 0.3 * b)
    assert torch.equal(image_score(a), a.flatten(1).max(1).values)
    assert torch.allclose(image_score(a, 0.25), a.flatten(1).sort(1).values[:, -4:].mean(1))


@pytest.mark.parametrize(
    "call",
    [
        lambda: scale_map(torch.rand(4, 8, 8), grid_cells(2, 8)[:, :4]), lambda: scale_map(torch.rand(3, 8, 8), grid_cells(2, 8)[:3]),
        lambda: harmonic_mean({}), lambda: harmonic_mean({2: torch.ones(1)}, 0), lambda: fuse(torch.ones(1), torch.ones(1), 1.1),
        lambda: fuse(torch.ones(1), None, 0.5), lambda: image_score(torch.ones(1, 2, 2), -0.1),
    ],
)  # fmt: skip
def test_bad_maps_are_refused(call):
    with pytest.raises(FsadError):
        call()


# ---------------------------------------------------------------- detector
@pytest.fixture(scope="module")
def parts():
    return tiny.model(), tiny.lpips(), tiny.backbone()


def detector(parts, settings=SETTINGS, memory=True):
    model, lpips, backbone = parts
    shots = {"gear": tiny.images(1, 1), "nut": tiny.images(2, 2)}
    memories = {name: PatchMemory(backbone).add_shots(x) if memory else None for name, x in shots.items()}
    return AnomalySD(model, lpips, {name: Category(PROMPTS[name], memories[name]) for name in shots}, settings)


def change(**values):
    return dataclasses.replace(SETTINGS, **values)


def same(a, b, i=0, j=0):
    maps = [(a.map, b.map), (a.image, b.image), (a.s_pg, b.s_pg), *((a.scales[k], b.scales[k]) for k in a.scales)]
    return all(torch.equal(x[i], y[j]) for x, y in maps)


def test_score_equals_a_slow_reference(parts):
    """One pass at a time, one pixel's rule after the other, from the formulas."""
    found, x = detector(parts), tiny.images(1, 9)
    scores = found(x, "nut")
    model, lpips, _ = parts
    text = model.encode_prompt(["A perfect nut."])
    z = model.posterior(x)[0]
    maps = {1: torch.zeros(32, 32), 2: torch.zeros(32, 32), 0: torch.zeros(32, 32)}
    passes = found.passes(x, "nut")
    assert [(p.k, p.cells) for p in passes] == [(1, "0-0"), (2, "0-0"), (2, "0-1"), (2, "1-0"), (2, "1-1"), (0, "prototype")]
    for p in passes:
        noise = found.noise(content_hash(x[0]), p)
        x_hat = model.inpaint(x, p.m[None, None], text, strength=0.5, noise=noise, num_inference_steps=4, z=z)
        d = lpips.distance_map(x, x_hat)[0]
        for i, j in p.m.nonzero().tolist():
            maps[p.k][i, j] = d[i, j]
    s_ms = 1 / ((1 / maps[1].clamp_min(1e-6) + 1 / maps[2].clamp_min(1e-6)) / 2)
    expected = 0.6 * s_ms + 0.4 * maps[0]
    assert torch.allclose(scores.map[0], expected, atol=1e-5)
    assert float(scores.image[0]) == pytest.approx(float(expected.max()), abs=1e-5)
    assert scores.category == ["nut"]


def test_a_score_depends_on_its_image_alone(parts):
    """Batch size, order and resumption change not a single bit; the seed and the content do."""
    found, x = detector(parts), tiny.images(3, 9)
    whole = found(x, ["gear", "nut", "gear"])
    again = detector(parts)(x[[2, 1]], ["gear", "nut"])  # another process that resumes with what is left
    assert same(whole, again, 2, 0) and same(whole, again, 1, 1)
    assert same(whole, found(x[:1], "gear"))
    other = detector(parts, change(seed=1))(x[:1], "gear")
    assert not same(whole, other)
    p = Pass(torch.ones(32, 32, dtype=torch.bool), 2, "0-1")
    assert not torch.equal(found.noise("a", p), found.noise("b", p))
    names = {content_hash(image) for image in x}
    assert len(names) == 3 and names == {content_hash(image + 1e-6 * torch.randn(image.shape)) for image in x}  # another processor's rounding
    assert not torch.equal(found.noise("a", p), found.noise("a", p._replace(k=4)))
    assert not torch.equal(found.noise("a", p), found.noise("a", p._replace(cells="1-1")))


def test_packed_passes_are_fewer_and_cover_everything(parts):
    slow, quick = detector(parts, change(scales=(4,))), detector(parts, change(scales=(4,), packed=True))
    assert (slow.cost.passes, quick.cost.passes) == (17, 5)
    x = tiny.images(1, 9)
    scores = quick(x, "nut")
    assert scores.scales[4].shape == (1, 32, 32) and not torch.equal(scores.map, slow(x, "nut").map)


def test_merged_twins_are_decoded_once_a_scale(parts):
    """The repainted latents are those of the separate passes, each cell from its own."""
    settings = change(scales=(2, 4), merged=True)
    found, x = detector(parts, settings), tiny.images(1, 9)
    passes = found.passes(x, "nut")
    merged, x_hat = found.twins(x, passes, "nut")
    assert [p.k for p in merged] == [2, 4, 0] and x_hat.shape == (3, 3, 32, 32) and merged[0].m.all() and torch.equal(merged[2].m, passes[-1].m)
    model = parts[0]
    z = model.posterior(x)[0]
    expected = z.clone()
    for p in passes[:4]:
        z_0 = model.inpaint(
            x, p.m[None, None], model.encode_prompt(["A perfect nut."]), strength=0.5, noise=found.noise(content_hash(x[0]), p), z=z,
            num_inference_steps=4, decode=False,
        )  # fmt: skip
        cell = p.m[::2, ::2].expand_as(z_0)
        expected[cell] = z_0[cell]
    assert torch.allclose(x_hat[0], model.decode(expected)[0], atol=1e-5)
    outside = ~merged[2].m.expand(3, -1, -1)
    assert torch.equal(x_hat[2][outside], x[0][outside])
    # the prototype-guided pass stands alone, merged or not
    assert torch.allclose(x_hat[2], detector(parts, change(scales=(2, 4))).repaint(x, passes, "nut")[-1], atol=1e-5)
    scores = found(x, "nut")
    assert torch.equal(scores.map, found(torch.cat([tiny.images(1, 3), x]), "nut").map[1:]) and found.cost.decodings == 3


@pytest.mark.parametrize("asked", [{"guidance_scale": 3.0}, {"num_inference_steps": 8}, {"strength": 0.75}])
@pytest.mark.parametrize("merged", [False, True])
def test_twins_are_painted_with_what_the_settings_ask(parts, monkeypatch, asked, merged):
    model, x, rows = parts[0], tiny.images(1, 9), []
    found = detector(parts, change(merged=merged, **asked))
    passes, predict = found.passes(x, "nut"), model.predict
    how = dict(strength=0.5, guidance_scale=1.0, num_inference_steps=4) | asked
    noise = torch.cat([found.noise(content_hash(x[0]), p) for p in passes])
    m = torch.stack([p.m for p in passes])[:, None]
    expected = model.inpaint(x.expand(6, -1, -1, -1), m, ["A perfect nut."], noise=noise, batch_size=3, **how)
    with monkeypatch.context() as watched:
        watched.setattr(model, "predict", lambda z, *rest: rows.append(len(z)) or predict(z, *rest))
        x_hat = found.twins(x, passes, "nut")[1]
    assert sum(rows) == found.cost.unet, "what cost says is what is done"
    plain = detector(parts, change(merged=merged)).twins(x, passes, "nut")[1]
    assert (x_hat[-1] - expected[-1]).abs().max() < 1e-5 < (x_hat[-1] - plain[-1]).abs().max()  # the last pass stands alone, merged or not
    assert merged or (x_hat - expected).abs().max() < 1e-5


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batch_size_bounds_what_is_repainted_at_once_and_nothing_else(parts, monkeypatch, batch_size):
    model, lpips, _ = parts
    found, x, rows, compared = detector(parts, change(batch_size=batch_size)), tiny.images(1, 9), [], []
    whole = detector(parts, change(batch_size=8))(x, "nut")
    predict, distance_map = model.predict, lpips.distance_map
    monkeypatch.setattr(model, "predict", lambda z, *rest: rows.append(len(z)) or predict(z, *rest))
    monkeypatch.setattr(lpips, "distance_map", lambda f, y, *rest: compared.append(len(y)) or distance_map(f, y, *rest))
    scores = found(x, "nut")
    assert max(rows) == max(compared) == batch_size and sum(compared) == 6
    assert torch.allclose(scores.map, whole.map, atol=1e-5)


def test_cost_counts_the_work(parts):
    assert tuple(detector(parts).cost) == (6, 12, 7, 6)
    assert detector(parts, change(guidance_scale=3.0)).cost.unet == 24
    assert detector(parts, change(alpha=0.0), memory=False).cost.passes == 5


def test_unknown_category_is_chosen_by_normal_patches(parts):
    found = detector(parts)
    x = torch.cat([tiny.images(1, 1), tiny.images(2, 2)])  # the shots themselves
    assert found.choose_category(x) == ["gear", "nut", "nut"]
    scores = found(x[:1])
    assert scores.category == ["gear"] and same(scores, found(x[:1], "gear"))
    model, lpips, backbone = parts
    shared = AnomalySD(model, lpips, {"object": Category("A perfect object.", PatchMemory(backbone).add_shots(x))}, SETTINGS)
    assert shared(x[:1]).category == ["object"]


def test_controls_of_the_autoencoder(parts):
    model, lpips, _ = parts
    found, x = detector(parts, change(strength=0.0)), tiny.images(1, 9)
    scores = found(x, "nut", controls=True)
    decoded = model.decode(model.posterior(x)[0])
    assert torch.allclose(scores.controls["roundtrip"], lpips.distance_map(x, decoded), atol=1e-6)
    # without any denoising the twin IS the round trip, so that nothing is left against it
    assert float(scores.controls["against_roundtrip"].max()) < 1e-4 < float(scores.map.max())
    assert torch.allclose(scores.controls["guided_roundtrip"], scores.map, atol=1e-5)
    # with denoising it stays as it is, and the score does not
    painted = detector(parts, change(strength=0.5))(x, "nut", controls=True)
    assert torch.allclose(painted.controls["guided_roundtrip"], scores.map, atol=1e-5)
    assert not torch.allclose(painted.map, scores.map, atol=1e-3)


def test_calls_that_would_give_a_number_of_no_meaning_are_refused(parts):
    found, x = detector(parts), tiny.images(2, 9)
    one, passes = x[:1], found.passes(x[:1], "gear")
    for call, message in (
        (lambda: found(255 * x), r"expected \[0, 1\]"), (lambda: found(x * torch.nan), "nan"), (lambda: found(x[0]), "float image batch"),
        (lambda: found.passes(x, "gear"), "2 images"), (lambda: found.repaint(x, passes, "gear"), "2 images"),
        (lambda: found.passes(one, "w"), "unknown: w"), (lambda: found.repaint(one, passes, "w"), "unknown: w"),
        (lambda: found.repaint(one, [], "gear"), "no passes"), (lambda: found.maps(one, one, passes), "1 twins"),
        (lambda: change(scales=4), "whole numbers"), (lambda: change(scales=(2.5,)), "whole numbers"), (lambda: change(scales=(2, 2)), "different"),
        (lambda: detector(parts, change(scales=(2, 64))), "latent cells a side"),
    ):  # fmt: skip
        with pytest.raises(FsadError, match=message):
            call()


def test_a_larger_image_is_judged_as_it_is_at_the_models_size(parts):
    found = detector(parts)
    large = torch.nn.functional.interpolate(tiny.images(2, 9), scale_factor=2.5, mode="bilinear")
    small = resize(large, found.model.image_size)
    assert same(found(large, "gear"), found(small, "gear")) and found.choose_category(large) == found.choose_category(small)
    assert torch.equal(found.passes(large[:1], "gear")[-1].m, found.passes(small[:1], "gear")[-1].m)


def test_without_memory_only_the_grids_count(parts):
    found, x = detector(parts, change(alpha=0.0), memory=False), tiny.images(2, 9)
    scores = found(x, "gear")
    assert scores.s_pg is None and torch.equal(scores.map, scores.s_ms)
    with pytest.raises(FsadError, match="no memory"):
        found(x)


def test_perceptual_size_enlarges_and_smoothing_smooths(parts):
    x = tiny.images(1, 9)
    plain, fine = detector(parts)(x, "gear"), detector(parts, change(perceptual_size=64))(x, "gear")
    assert fine.map.shape == plain.map.shape and not torch.equal(fine.map, plain.map)
    assert detector(parts, change(sigma=16.0))(x, "gear").map.std() < plain.map.std()


@pytest.mark.parametrize(
    "bad",
    [
        {"strength": 1.1}, {"strength": -0.1}, {"alpha": 2}, {"scales": ()}, {"scales": (0,)}, {"num_inference_steps": 0},
        {"prototype_share": 0}, {"prototype_margin": 0.5}, {"image_share": -1}, {"sigma": -1}, {"epsilon": 0}, {"guidance_scale": -1},
        {"perceptual_size": 30}, {"batch_size": 0},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(bad):
    with pytest.raises(FsadError, match=next(iter(bad))):
        change(**bad)


def test_bad_calls_are_refused(parts):
    model, lpips, _ = parts
    with pytest.raises(FsadError, match="no categories"):
        AnomalySD(model, lpips, {}, SETTINGS)
    with pytest.raises(FsadError, match="no memory"):
        AnomalySD(model, lpips, {"nut": Category("A perfect nut.", None)}, SETTINGS)
    with pytest.raises(FsadError, match="less than one step"):
        detector(parts, change(strength=0.1))
    with pytest.raises(FsadError, match="different whole numbers"):
        detector(parts, change(scales=(2, 2)))
    found = detector(parts)
    with pytest.raises(FsadError, match="unknown: bolt"):
        found(tiny.images(1), "bolt")
    with pytest.raises(FsadError, match="2 images and 1"):
        found(tiny.images(2), ["nut"])
    with pytest.raises(FsadError, match="expected"):
        found(torch.rand(3, 32, 32), "nut")


# ---------------------------------------------------------------- fine-tuning
X, Y = tiny.images(3, 8), [["A perfect gear.", "A gear."], ["A perfect nut."], ["A perfect nut."]]
UNET = dict(steps=4, lr=1e-3, batch_size=2, seed=0)


def digest(module):
    state = module.state_dict() if hasattr(module, "state_dict") else dict(enumerate(module))
    return hashlib.sha256(b"".join(v.detach().numpy().tobytes() for v in state.values())).hexdigest()


def test_unet_learns_and_nothing_else_changes():
    model = tiny.model()
    before = {name: digest(getattr(model, name)) for name in ("unet", "vae", "text_encoder")}
    trace = finetune_unet(model, X, Y, **(UNET | {"steps": 30}))
    assert trace.columns.tolist() == ["step", "loss"] and len(trace) == 30
    assert trace.loss[20:].mean() < trace.loss[:10].mean()
    assert digest(model.unet) != before["unet"]
    assert digest(model.vae) == before["vae"] and digest(model.text_encoder) == before["text_encoder"]
    assert not any(p.requires_grad for p in model.unet.parameters()) and not model.unet.training


def test_decoder_learns_and_the_encoder_stays():
    model, lpips = tiny.model(), tiny.lpips()
    encoder, quant, decoder, unet = (
        digest(part) for part in (model.vae.encoder, model.vae.quant_conv, model.vae.decoder, model.unet)
    )
    z = model.posterior(X)
    trace = finetune_decoder(model, X, lpips, beta=0.1, steps=20, lr=2e-3, batch_size=2)
    assert trace.columns.tolist() == ["step", "mse", "perceptual", "loss"]
    assert torch.allclose(torch.tensor(trace.loss), torch.tensor(trace.mse + 0.1 * trace.perceptual), rtol=1e-4)
    assert trace.mse[15:].mean() < trace.mse[:5].mean()
    assert digest(model.vae.decoder) != decoder
    assert (digest(model.vae.encoder), digest(model.vae.quant_conv), digest(model.unet)) == (encoder, quant, unet)
    assert all(torch.equal(a, b) for a, b in zip(z, model.posterior(X), strict=True))
    assert sum(p.numel() for p in decoder_parameters(model.vae)) < sum(p.numel() for p in model.vae.parameters())


@pytest.mark.parametrize("part", ["unet", "decoder"])
def test_interrupted_training_ends_with_the_same_weights(part, tmp_path):
    lpips = tiny.lpips()

    def train(model, **more):
        if part == "unet":
            return finetune_unet(model, X, Y, **(UNET | more))
        return finetune_decoder(model, X, lpips, beta=0.5, **(UNET | more))

    straight, stopped, resumed = tiny.model(), tiny.model(), tiny.model()
    expected = train(straight)

    def stop(step, *_):
        if step == 3:
            raise KeyboardInterrupt

    file = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        train(stopped, checkpoint=file, checkpoint_every=2, progress=stop)
    assert not any(p.requires_grad for p in stopped.unet.parameters())
    seen = []
    trace = train(resumed, checkpoint=file, checkpoint_every=2, progress=lambda step, *_: seen.append(step))
    assert seen == [3, 4] and trace.equals(expected)
    trained = {"unet": "unet", "decoder": "vae"}[part]
    assert digest(getattr(resumed, trained)) == digest(getattr(straight, trained))
    assert len(train(tiny.model(), checkpoint=file)) == 4  # complete: nothing is trained again
    other = tiny.model()
    train(other, checkpoint=file, seed=1)  # other settings: the checkpoint is not theirs
    assert digest(getattr(other, trained)) != digest(getattr(straight, trained))
    file.write_bytes(b"broken")
    with pytest.raises(FsadError, match="not a readable checkpoint"):
        train(tiny.model(), checkpoint=file)


def far_apart(model, monkeypatch, n):
    """Latents by which an image is known: image i has the mean 10 i and the deviation 0.1 (i + 1)."""
    mean, std = (torch.ones(n, 4, 16, 16) * v.view(n, 1, 1, 1) for v in (10.0 * torch.arange(n), 0.1 * torch.arange(1, n + 1)))
    monkeypatch.setattr(model, "posterior", lambda x, *_: (mean, std))

    def taken_apart(z):
        """Image number and noise of each latent."""
        chosen = (z.mean((1, 2, 3)) / 10).round().long()
        return chosen, (z - mean[chosen]) / std[chosen]

    return taken_apart


def is_standard_normal(noise):
    each = noise.flatten(1)
    alike = torch.corrcoef(each) - torch.eye(len(each))  # no two of them the same
    return each.mean(1).abs().max() < 0.15 and (each.std(1) - 1).abs().max() < 0.15 and alike.abs().max() < 0.5


def test_the_unet_learns_from_each_image_its_own_sentences_and_every_noise_level(monkeypatch):
    """All that enters the loss, over many steps: z sampled, t anywhere, the image's own masked latent, the state of one of its sentences."""
    model, n, given, masks = tiny.model(), 4, [], []
    x = tiny.images(n, 8)
    prompts = [["A gear.", "A nut.", "A key."], ["A nut."], ["A bolt.", "A gear."], ["A mesh."]]
    taken_apart, weight = far_apart(model, monkeypatch, n), next(model.unet.parameters())

    def masked(of, m):
        masks.append((of, m))
        return m[..., ::2, ::2], torch.stack([torch.full((4, 16, 16), float(image.mean())) for image in of])

    def loss(*parts):
        given.append(parts)
        return torch.arange(4.0) * len(given) + 0 * weight.sum()

    monkeypatch.setattr(model, "masked_latents", masked)
    monkeypatch.setattr(model, "denoising_loss", loss)
    trace = finetune_unet(model, x, prompts, steps=60, lr=1e-3, batch_size=4, seed=3)
    assert trace.loss.tolist() == pytest.approx([1.5 * step for step in range(1, 61)]), "the batch's mean"
    z, text, t, eps, m_z, z_masked = (torch.cat(parts) for parts in zip(*given, strict=True))
    of, m = (torch.cat(parts) for parts in zip(*masks, strict=True))
    chosen, noise = taken_apart(z)
    assert torch.equal(of, x[chosen]) and torch.equal(m_z, m[..., ::2, ::2]) and torch.allclose(z_masked[:, 0, 0, 0], x[chosen].mean((1, 2, 3)))
    assert is_standard_normal(torch.cat([noise, eps])), "z is drawn from the posterior, with another noise than is to be predicted"
    assert t.dtype == torch.long and torch.histc(t.float(), 4, 0, 1000).min() > 40 and t.min() < 30 and t.max() > 970
    states = {sentence: model.encode_prompt([sentence])[0] for sentence in {y for sentences in prompts for y in sentences}}
    said = [next(y for y, state in states.items() if torch.equal(state, row)) for row in text]
    for i, sentences in enumerate(prompts):
        assert {y for y, of in zip(said, chosen.tolist(), strict=True) if of == i} == set(sentences), f"image {i}"


def test_the_decoder_is_asked_for_the_image_that_its_sampled_latent_comes_from(monkeypatch):
    model, lpips, n, seen = tiny.model(), tiny.lpips(), 3, []
    x = tiny.images(n, 8)
    taken_apart, weight = far_apart(model, monkeypatch, n), decoder_parameters(model.vae)[0]

    def decode(z):
        seen.append(z * model.vae.config.scaling_factor)
        sample = 2 * x[taken_apart(seen[-1])[0]] - 1 + 0.2 + 0 * weight.sum()  # the image, a tenth too bright
        return SimpleNamespace(sample=sample)

    monkeypatch.setattr(model.vae, "decode", decode)
    trace = finetune_decoder(model, x, lpips, beta=0.5, steps=8, lr=1e-3, batch_size=3, seed=3)
    assert is_standard_normal(taken_apart(torch.cat(seen))[1])
    assert trace.mse.tolist() == pytest.approx([0.01] * 8, rel=1e-4)
    perceptual = float(lpips.distance(x + 0.1, x).mean())
    assert trace.perceptual.tolist() == pytest.approx([perceptual] * 8, rel=1e-4)
    assert trace.loss.tolist() == pytest.approx([0.01 + 0.5 * perceptual] * 8, rel=1e-4)


def train_once(part, model, **more):
    if part == "unet":
        return finetune_unet(model, X, Y, **(UNET | {"steps": 1} | more))
    return finetune_decoder(model, X, tiny.lpips(), beta=0.5, **(UNET | {"steps": 1} | more))


@pytest.mark.parametrize("part", ["unet", "decoder"])
def test_gradient_checkpointing_keeps_fewer_activations(part):
    def kept(**more):
        sizes, model = [], tiny.model()
        with torch.autograd.graph.saved_tensors_hooks(lambda v: sizes.append(v.nbytes) or v, lambda v: v):
            trace = train_once(part, model, **more)
        assert not model.unet.is_gradient_checkpointing and not model.vae.is_gradient_checkpointing, "it ends with the training"
        return sum(sizes), trace.loss[0]

    (whole, loss), (frugal, again) = kept(), kept(gradient_checkpointing=True)
    assert frugal < 0.8 * whole and again == pytest.approx(loss, rel=1e-4)


def test_gradient_checkpointing_changes_memory_not_weights():
    plain, frugal = tiny.model(), tiny.model()
    finetune_unet(plain, X, Y, **UNET)
    finetune_unet(frugal, X, Y, gradient_checkpointing=True, **UNET)
    for a, b in zip(plain.unet.parameters(), frugal.unet.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert not frugal.unet.is_gradient_checkpointing


def test_bfloat16_trains_float32_weights():
    model = tiny.model()
    model.amp = torch.bfloat16
    trace = finetune_unet(model, X, Y, **UNET)
    assert torch.isfinite(torch.tensor(trace.loss)).all()
    assert all(p.dtype == torch.float32 for p in model.unet.parameters())


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("part", ["unet", "decoder", "predict"])
def test_amp_is_the_precision_of_the_activations(part, amp):
    model, kinds = tiny.model(), []
    model.amp = amp
    for conv in (model.unet.conv_in, model.unet.conv_out, model.vae.decoder.conv_in, model.vae.decoder.conv_out):
        conv.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    if part == "predict":
        z, text = torch.randn(1, 4, 16, 16), model.encode_prompt(["a nut"])
        assert model.predict(z, torch.tensor(5), z[:, :1], z, text).dtype == torch.float32
    else:
        train_once(part, model)
    assert len(kinds) == 2 and set(kinds) == {amp or torch.float32}


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(5, 2, 10), (3, 4, 6), (4, 4, 3), (2, 7, 4)])
@pytest.mark.parametrize("part", ["unet", "decoder"])
def test_every_image_is_seen_before_one_is_seen_again(part, n, batch_size, steps, monkeypatch):
    model, lpips, x, shown = tiny.model(), tiny.lpips(), tiny.images(n, 9), []
    masked, distance = model.masked_latents, lpips.distance
    monkeypatch.setattr(model, "masked_latents", lambda x, m: shown.extend(x) or masked(x, m))
    monkeypatch.setattr(lpips, "distance", lambda x_hat, target: shown.extend(target) or distance(x_hat, target))
    if part == "unet":
        finetune_unet(model, x, [["A nut."]] * n, steps=steps, lr=1e-3, batch_size=batch_size, seed=1)
    else:
        finetune_decoder(model, x, lpips, beta=0.1, steps=steps, lr=1e-3, batch_size=batch_size, seed=1)
    seen = [next(i for i in range(n) if torch.equal(x[i], image)) for image in shown]
    assert len(seen) == steps * batch_size
    rounds = [seen[i : i + n] for i in range(0, len(seen) - n + 1, n)]
    assert all(sorted(order) == list(range(n)) for order in rounds)
    assert n < 4 or len({tuple(order) for order in rounds}) > 1  # each round is dealt anew


def test_masks_stay_in_the_foreground_during_training(monkeypatch):
    model, seen = tiny.model(), []
    where = torch.zeros(3, 1, 32, 32, dtype=torch.bool)
    where[..., 4:20, 6:26] = True
    original = model.masked_latents
    monkeypatch.setattr(model, "masked_latents", lambda x, m: seen.append(m) or original(x, m))
    finetune_unet(model, X, Y, where, **UNET)
    m = torch.cat(seen).bool()
    assert m.any() and not (m & ~where[:1]).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": X[:0]}, "no image"), ({"prompts": Y[:1]}, "own list"), ({"prompts": [["a"], [], ["b"]]}, "own list"),
        ({"prompts": ["a", "b", "c"]}, "own list"), ({"foreground": torch.ones(3, 1, 8, 8, dtype=torch.bool)}, "foregrounds"),
        ({"steps": -1}, "steps"), ({"lr": 0}, "lr"), ({"batch_size": 0}, "batch_size"), ({"area": (0, 1)}, "area"), ({"lr": 1e9}, "not finite"),
    ],
)  # fmt: skip
def test_bad_training_input_is_refused(arguments, words):
    good = dict(x=X, prompts=Y, foreground=None) | UNET
    with pytest.raises(FsadError, match=words):
        finetune_unet(tiny.model(), **(good | arguments | ({"steps": 30} if arguments.get("lr") == 1e9 else {})))


def test_negative_beta_is_refused():
    with pytest.raises(FsadError, match="beta"):
        finetune_decoder(tiny.model(), X, tiny.lpips(), beta=-1, steps=1, lr=1e-3)
