"""ADP's equations against slow, literal references, on tiny random models."""

import hashlib
import math

import pandas as pd
import pytest
import tiny_models as tiny
import torch
from tiny_models import WIDTH, images

from fsad_lib.adp import concepts as learn
from fsad_lib.adp.concepts import learn_concept, load_concepts, p_clip, save_concepts, tau_sweep
from fsad_lib.adp.detector import ADP, anomaly_probability
from fsad_lib.adp.prompts import (
    TEMPLATES,
    S_a,
    S_n,
    embed,
    state_embeddings,
    state_prompts,
    templates,
)
from fsad_lib.adp.pseudo_anomalies import deal, pseudo_anomalies, resize_and_crop
from fsad_lib.adp.self_tuning import prototypes, weight
from fsad_lib.errors import FsadError
from fsad_lib.foundation.diffusion import generator
from fsad_lib.profiles import load_profile
from fsad_lib.winclip.memory import FeatureMemory

PSEUDO = ("a photo with damage", "a photo of an object with damage")  # section 3.2, word for word
TUNING = ("a photo of a damaged <c_a>", "a photo of a <c_a> with damage")  # section 3.3, word for word
T3 = TEMPLATES[:3]
SETTINGS = dict(tau=0.1, steps=4, lr=0.05, batch_size=3, templates=T3, seed=2)


@pytest.fixture(scope="module")
def clip():
    return tiny.clip()


@pytest.fixture(scope="module")
def sd(clip):
    return tiny.diffusion(clip)


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def literal_p(f, labels, tau):
    """Eq. 1 for one image: softmax over the labels' mean embeddings; the first label's probability."""
    e = [math.exp(cosine(f, g) / tau) for g in labels]
    return e[0] / sum(e)


# ------------------------------------------------------------------ prompts
def test_prompts_are_the_papers():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 27 and all(T.count("{}") == 1 for T in TEMPLATES)
    # diffusers' imagenet_templates_small, in their order
    assert hashlib.sha256("\n".join(TEMPLATES).encode()).hexdigest() == "371f97a75395160ff3d9224cd0dfa7ac7b21c46fd66e2ffc20c77d5d495707e9"
    assert (S_n("x"), S_a("x")) == ("flawless x", "damaged x")
    normal, anomalous = state_prompts("<c>")
    assert normal[0] == "a photo of a flawless <c>" and anomalous[1] == "a rendering of a damaged <c>"
    for profile in ("mini", "paper"):
        adp = load_profile(profile).adp
        assert adp.prompts_pseudo == PSEUDO and adp.prompts_tuning == TUNING
    assert templates() == TEMPLATES
    for n in (0, 28):
        with pytest.raises(FsadError, match="1 to 27"):
            templates(n)


def test_state_embeddings_are_the_single_prompts_embeddings(clip):
    c = torch.randn(WIDTH)
    g_n, g_a = state_embeddings(clip, "<c>", {"<c>": c}, T3)
    for T, n, a in zip(T3, g_n, g_a, strict=True):
        torch.testing.assert_close(
            n, clip.encode_text([T.format("flawless <c>")], {"<c>": c})[0], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            a, clip.encode_text([T.format("damaged <c>")], {"<c>": c})[0], atol=1e-5, rtol=0
        )


# ------------------------------------------------------------------ eq. 1
@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
def test_eq1(tau):
    f, g_n, g_a = torch.randn(5, 8), torch.randn(8), torch.randn(8)
    p = p_clip(f, g_n, g_a, tau)
    assert p.tolist() == pytest.approx([literal_p(row, (g_n, g_a), tau) for row in f], abs=1e-5)
    torch.testing.assert_close(p, p_clip(f, 7 * g_n, g_a / 3, tau), atol=1e-5, rtol=1e-4)  # sim is a cosine
    with pytest.raises(FsadError, match="tau"):
        p_clip(f, g_n, g_a, 0)


def test_tau_sweep_shows_saturation_and_its_gradient_is_the_derivative():
    f, g_n, g_a = torch.randn(6, 8), torch.randn(8), torch.randn(8)
    sweep = tau_sweep(f, g_n, g_a, [0.01, 0.1, 0.5])
    assert len(sweep) == 18
    gap = [cosine(row, g_n) - cosine(row, g_a) for row in f]
    for row in sweep.itertuples():
        p = lambda m, tau=row.tau: 1 / (1 + math.exp(-m / tau))  # noqa: E731
        assert row.p_normal == pytest.approx(p(gap[row.image]), abs=1e-5)
        h = 1e-5
        assert row.gradient == pytest.approx(
            (p(gap[row.image] + h) - p(gap[row.image] - h)) / (2 * h), rel=2e-2, abs=1e-3
        )
    certainty = (sweep.p_normal - 0.5).abs().groupby(sweep.tau).mean()
    assert certainty.is_monotonic_decreasing


# ------------------------------------------------------------------ eq. 2, 3, 4
def literal_learning(
    clip, sd, x, start, alpha, tau, steps, lr, batch_size, templates, seed, pseudo=None, gamma=None
):
    """Eq. 2-4 with loops: one prompt, one image, one Adam update at a time. The draws are the library's."""
    c, m, v, rows = start.clone(), torch.zeros(WIDTH), torch.zeros(WIDTH), []
    mean, std = sd.posterior(x)
    for step in range(steps):
        z, t, eps, chosen = learn._draw(
            mean, std, 1000, templates, batch_size, generator(seed, "concept", step)
        )
        leaf = c.clone().requires_grad_(True)
        nll = 0
        for i in range(batch_size):
            state = sd.encode_prompt([templates[chosen[i]].format("<w>")], {"<w>": leaf})
            nll = nll + sd.denoising_loss(z[i : i + 1], state, t[i : i + 1], eps[i : i + 1])[0] / batch_size
        g = {}
        for s, state in (("n", "flawless"), ("a", "damaged")):
            each = [clip.encode_text([T.format(f"{state} <w>")], {"<w>": leaf})[0] for T in templates]
            g[s] = sum(each) / len(templates)

        def p(image, g=g):
            f = clip.encode_image(image[None])[0]
            sims = [(f * g[s]).sum() / (f.norm() * g[s].norm()) / tau for s in "na"]
            return sims[0].exp() / (sims[0].exp() + sims[1].exp())

        p_normal = sum(p(image) for image in x) / len(x)
        objective = -nll + alpha * p_normal
        hinge = float("nan")
        if pseudo is not None:
            hinge = sum(torch.clamp(p(image) - gamma, min=0) for image in pseudo) / len(pseudo)
            objective = objective - alpha * hinge
        (grad,) = torch.autograd.grad(-objective, leaf)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        c = c - lr * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        rows.append(tuple(float(torch.as_tensor(v).detach()) for v in (nll, p_normal, hinge)))
    return c, rows


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("equation", [2, 3, 4])
def test_learning_equals_the_literal_equations(clip, equation, kind):
    sd = tiny.diffusion(clip, kind)
    x, start = images(2), clip.token_embedding("object")
    more = dict(alpha=0.0 if equation == 2 else 1.5)
    if equation == 4:
        more |= dict(pseudo=images(3, seed=6), gamma=0.2)
    c, trace = learn_concept(clip, sd, x, "object", **SETTINGS, **more)
    expected, rows = literal_learning(clip, sd, x, start, **SETTINGS, **more)
    # Adam's first steps are sign-like, so errors of 1e-7 in the gradient stay small only where it is not tiny: 1e-3 of 4 * lr
    torch.testing.assert_close(c, expected, atol=2e-4, rtol=0)
    assert (c - start).abs().max() > 0.05
    assert trace.columns.tolist() == [
        "step",
        "denoising_loss",
        "p_normal",
        "hinge",
    ] and trace.step.tolist() == [1, 2, 3, 4]
    for got, want in zip(
        trace[["denoising_loss", "p_normal", "hinge"]].itertuples(index=False), rows, strict=True
    ):
        assert list(got) == pytest.approx(want, abs=2e-4, nan_ok=True)


def test_plain_textual_inversion_does_not_see_clip(clip, sd):
    """alpha = 0 gives eq. 2: CLIP's picture of the shots, tau and the pseudo-anomalies cannot matter."""
    x = images(2)
    plain, _ = learn_concept(clip, sd, x, "object", alpha=0.0, **SETTINGS)
    other, _ = learn_concept(
        clip, sd, x, "object", alpha=0.0, **{**SETTINGS, "tau": 1.0}, pseudo=images(2, seed=9), gamma=0.0
    )
    assert torch.equal(plain, other)
    guided, _ = learn_concept(clip, sd, x, "object", alpha=1.0, **SETTINGS)
    assert (guided - plain).abs().max() > 1e-3


def test_gamma_one_turns_eq4_into_eq3_and_the_hinge_pulls(clip, sd):
    x, pseudo = images(2), images(2, seed=6)
    three, _ = learn_concept(clip, sd, x, "object", alpha=1.0, **SETTINGS)
    four, trace = learn_concept(clip, sd, x, "object", alpha=1.0, pseudo=pseudo, gamma=1.0, **SETTINGS)
    assert torch.equal(three, four) and (trace.hinge == 0).all()


def test_learning_raises_p_normal_and_lowers_the_hinge(clip, sd):
    x, pseudo = images(2), 1 - images(2, seed=6) ** 4
    long = {**SETTINGS, "steps": 25, "lr": 0.02, "tau": 0.02}
    c_n, trace = learn_concept(clip, sd, x, "object", alpha=20.0, **long)
    assert trace.p_normal.iloc[-1] > trace.p_normal.iloc[0] + 0.05
    _, without = learn_concept(clip, sd, x, c_n, alpha=20.0, **long)
    _, trace = learn_concept(clip, sd, x, c_n, alpha=20.0, pseudo=pseudo, gamma=0.0, **long)
    assert trace.hinge.iloc[-1] < trace.hinge.iloc[0]
    assert without.hinge.isna().all()


def state_hash(*modules):
    h = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            h.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return h.hexdigest()


def test_only_the_learned_vector_changes(clip, sd):
    modules = (clip.model, sd.unet, sd.vae, sd.text_encoder)
    before = state_hash(*modules)
    learn_concept(clip, sd, images(2), "object", alpha=1.0, pseudo=images(2, seed=6), gamma=0.1, **SETTINGS)
    assert state_hash(*modules) == before
    assert all(p.grad is None and not p.requires_grad for m in modules for p in m.parameters())


def test_one_vector_drives_both_encoders(clip, sd):
    """The vector of an ordinary word behaves as that word, in CLIP and in the diffusion model."""
    v = clip.token_embedding("gear")
    for encode in (clip.encode_text, sd.encode_prompt):
        torch.testing.assert_close(
            encode(["a photo of a damaged <c>"], {"<c>": v}), encode(["a photo of a damaged gear"])
        )
        c = torch.randn(WIDTH, requires_grad=True)
        (encode(["a <c>"], {"<c>": c})[..., 0].sum()).backward()
        assert c.grad.abs().sum() > 0


def test_interrupted_learning_resumes_to_the_same_vector(clip, sd, tmp_path):
    x, path = images(2), tmp_path / "c.safetensors"
    settings = {**SETTINGS, "steps": 9}
    whole, trace = learn_concept(clip, sd, x, "object", alpha=1.0, **settings)

    class Power(Exception):
        pass

    def fail(step, steps, row):
        if step == 8:
            raise Power

    with pytest.raises(Power):
        learn_concept(
            clip, sd, x, "object", alpha=1.0, checkpoint=path, checkpoint_every=3, progress=fail, **settings
        )
    steps = []
    resumed, second = learn_concept(
        clip,
        sd,
        x,
        "object",
        alpha=1.0,
        checkpoint=path,
        checkpoint_every=3,
        progress=lambda s, *_: steps.append(s),
        **settings,
    )
    assert steps == [7, 8, 9]
    assert torch.equal(resumed, whole)
    pd.testing.assert_frame_equal(second, trace)
    again, third = learn_concept(
        clip, sd, x, "object", alpha=1.0, checkpoint=path, **settings
    )  # complete: nothing to do
    assert torch.equal(again, whole) and len(third) == 9
    longer, _ = learn_concept(clip, sd, x, "object", alpha=1.0, checkpoint=path, **{**settings, "steps": 10})
    assert torch.equal(
        longer, learn_concept(clip, sd, x, "object", alpha=1.0, **{**settings, "steps": 10})[0]
    )


def test_a_checkpoint_of_other_settings_or_images_is_not_continued(clip, sd, tmp_path):
    path = tmp_path / "c.safetensors"
    learn_concept(clip, sd, images(2), "object", alpha=1.0, checkpoint=path, **SETTINGS)
    for x, alpha in ((images(2), 2.0), (images(2, seed=1), 1.0)):
        c, _ = learn_concept(clip, sd, x, "object", alpha=alpha, checkpoint=path, **SETTINGS)
        assert torch.equal(c, learn_concept(clip, sd, x, "object", alpha=alpha, **SETTINGS)[0])
    path.write_bytes(b"torn")
    with pytest.raises(FsadError, match="Delete it"):
        learn_concept(clip, sd, images(2), "object", alpha=1.0, checkpoint=path, **SETTINGS)


def test_a_checkpoint_of_other_weights_is_not_continued(clip, sd, tmp_path):
    for i, module in enumerate((clip.model, sd.unet, sd.vae, sd.text_encoder)):
        path, weight = tmp_path / f"{i}.safetensors", next(module.parameters())
        before = weight.detach().clone()
        learn_concept(clip, sd, images(2), "object", alpha=1.0, checkpoint=path, **SETTINGS)
        try:
            with torch.no_grad():
                weight.mul_(1.01)
            steps = []
            learn_concept(
                clip, sd, images(2), "object", alpha=1.0, checkpoint=path, progress=lambda s, *_, steps=steps: steps.append(s), **SETTINGS
            )
            assert len(steps) == SETTINGS["steps"], "started anew"
        finally:
            with torch.no_grad():
                weight.copy_(before)


def test_draws_are_balanced_bounded_and_fresh():
    mean, std = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 4, 2, 2) * 100, torch.full((3, 4, 2, 2), 0.01)
    z, t, eps, chosen = learn._draw(mean, std, 1000, T3, 7, generator(0, "concept", 0))
    counts = torch.bincount((z[:, 0, 0, 0] / 100).round().long(), minlength=3)
    assert counts.sum() == 7 and counts.min() >= 2 and counts.max() <= 3
    assert 0 <= t.min() and t.max() < 1000 and set(chosen) <= {0, 1, 2} and eps.std() > 0.5  # noqa: SIM300
    again = learn._draw(mean, std, 1000, T3, 7, generator(0, "concept", 1))
    assert (again[0] != z).any() and (again[2] != eps).any()  # the posterior is sampled anew


def test_bad_input_to_learning(clip, sd):
    x = images(2)
    good = dict(alpha=1.0, **SETTINGS)
    for change, message in (
        (dict(alpha=-1.0), "alpha -1.0"),
        (dict(lr=0.0), "lr above 0"),
        (dict(batch_size=0), "batch_size"),
        (dict(checkpoint_every=0), "checkpoint_every at least 1"),
        (dict(pseudo=x), "gamma belong together"),
        (dict(gamma=0.5), "gamma belong together"),
        (dict(pseudo=x, gamma=1.5), r"probability in \[0, 1\]"),
        (dict(templates=["a photo"]), "{} once"),
        (dict(tau=-1.0), "tau"),
        (dict(lr=float("inf")), "not finite"),
    ):
        with pytest.raises(FsadError, match=message):
            learn_concept(clip, sd, x, "object", **{**good, **change})
    for shots, message in ((x[:0], "no image"), (x[0], r"\(B, 3, H, W\)"), (255 * x, r"expected \[0, 1\]"), (x * torch.nan, "nan")):
        with pytest.raises(FsadError, match=message):
            learn_concept(clip, sd, shots, "object", **good)
    with pytest.raises(FsadError, match="tokens"):
        learn_concept(clip, sd, x, "supercalifragilistic", **good)
    with pytest.raises(FsadError, match="init has shape"):
        learn_concept(clip, sd, x, torch.zeros(3), **good)


def test_tau_defaults_to_clips_own(clip, sd):
    x = images(1)
    default, _ = learn_concept(clip, sd, x, "object", alpha=1.0, **{**SETTINGS, "tau": None})
    explicit, _ = learn_concept(clip, sd, x, "object", alpha=1.0, **{**SETTINGS, "tau": 1 / clip.logit_scale})
    assert torch.equal(default, explicit)


def test_zero_steps_return_the_start(clip, sd):
    c, trace = learn_concept(clip, sd, images(1), "object", alpha=1.0, **{**SETTINGS, "steps": 0})
    assert torch.equal(c, clip.token_embedding("object")) and trace.empty


# ------------------------------------------------------------------ learned words on disk
def test_concepts_on_disk(tmp_path):
    words = {"<c_n>": torch.randn(1024), "<c_a>": torch.randn(1024)}
    path = save_concepts(
        tmp_path / "deep" / "c.safetensors", words, {"init": "object", "adp": {"alpha": 1.0}}
    )
    read, meta = load_concepts(path)
    assert all(torch.equal(read[k], v) for k, v in words.items()) and meta == {
        "init": "object",
        "adp": {"alpha": 1.0},
    }
    assert path.stat().st_size < 10_000
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]
    with pytest.raises(FsadError, match="each one vector"):
        save_concepts(path, {"<c>": torch.zeros(2, 2)})
    with pytest.raises(FsadError, match="cannot read"):
        load_concepts(tmp_path / "none")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FsadError, match="not one of learned words"):
        load_concepts(tmp_path / "other.safetensors")


# ------------------------------------------------------------------ pseudo-anomalies
EDIT = dict(strength=0.5, guidance_scale=2.0, num_inference_steps=4)


def test_pseudo_anomalies_go_round_shots_and_prompts(sd):
    x = images(2)
    made = pseudo_anomalies(sd, x, PSEUDO, 5, crop_scale=(1.0, 1.0), seed=3, **EDIT)
    pairs = [(0, 0), (1, 1), (0, 1), (1, 0), (0, 0)]
    expected = sd.sdedit(x[[s for s, _ in pairs]], [PSEUDO[p] for _, p in pairs], seed=3, **EDIT)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    assert (made[0] - made[4]).abs().max() > 1e-3  # same pair, other noise


@pytest.mark.parametrize(("shots", "prompts"), [(1, 2), (2, 2), (4, 2), (8, 2), (16, 2), (3, 4), (5, 3)])
def test_shots_and_prompts_are_dealt_evenly(shots, prompts):
    pairs = [tuple(pair) for pair in torch.stack(deal(2 * shots * prompts, shots, prompts), 1).tolist()]
    half = shots * prompts
    assert sorted(pairs[:half]) == sorted(pairs[half:]) == [(s, p) for s in range(shots) for p in range(prompts)]
    few = pairs[:8]  # mini's number: all prompts, alike, and as many shots as can be
    assert len({s for s, _ in few}) == min(shots, 8)
    counts = [sum(p == i for _, p in few) for i in range(prompts)]
    assert max(counts) - min(counts) <= max(1, len(few) // shots)


def test_pseudo_anomalies_depend_on_seed_and_index_alone(sd):
    x, c = images(2), {"<c_a>": torch.randn(WIDTH)}
    made = pseudo_anomalies(sd, x, TUNING, 4, seed=3, concepts=c, batch_size=4, **EDIT)
    fewer = pseudo_anomalies(sd, x, TUNING, 3, seed=3, concepts=c, batch_size=1, **EDIT)
    torch.testing.assert_close(made[:3], fewer, atol=1e-5, rtol=0)
    assert (made - pseudo_anomalies(sd, x, TUNING, 4, seed=4, concepts=c, **EDIT)).abs().max() > 1e-3
    assert made.shape == (4, 3, 16, 16) and made.min() >= 0 and made.max() <= 1
    with pytest.raises(FsadError, match="<c_a>"):
        pseudo_anomalies(sd, x, TUNING, 1, **EDIT)
    assert pseudo_anomalies(sd, images(1, 20), PSEUDO, 1, **EDIT).shape[-1] == 20  # back at the shots' size
    for bad in (
        dict(n=0),
        dict(prompts=()),
        dict(x=x[:0]),
        dict(crop_scale=(0.0, 1.0)),
        dict(crop_scale=(0.9, 0.5)),
    ):
        with pytest.raises(FsadError):
            pseudo_anomalies(**{**dict(diffusion=sd, x=x, prompts=PSEUDO, n=1), **bad}, **EDIT)


def test_resize_and_crop():
    ramp = torch.linspace(0, 1, 64).expand(20, 3, 64, 64)
    out = resize_and_crop(ramp, (0.25, 0.25), seed=1)
    span = out[..., -1] - out[..., 0]
    assert (span - 0.5).abs().max() < 0.06  # a quarter of the area is half the side
    left = out[:, 0, 0, 0]
    assert left.std() > 0.05 and left.min() >= 0 and (left + 0.5).max() <= 1.02  # places differ, all inside
    assert torch.equal(resize_and_crop(ramp, (1.0, 1.0)), ramp)
    torch.testing.assert_close(
        resize_and_crop(ramp[:2], (0.3, 0.9), seed=1, first_index=3),
        resize_and_crop(ramp, (0.3, 0.9), seed=1)[3:5],
    )
    assert resize_and_crop(torch.rand(1, 3, 30, 60), (0.5, 0.9)).shape == (1, 3, 30, 60)


# ------------------------------------------------------------------ eq. 5, 6, 7
def test_eq5_and_eq6_with_any_number_of_words(clip):
    f, f_pseudo, tau = clip.encode_image(images(3, 32)), clip.encode_image(images(2, 32, seed=8)), 0.05
    words = {"<c_n>": torch.randn(WIDTH), "<c_a>": torch.randn(WIDTH)}
    g = embed(clip, [*words, "metal nut"], words, T3)
    w = {}
    for word, (g_n, g_a) in g.items():
        means = [sum(side) / len(T3) for side in (g_n, g_a)]
        w[word] = weight(f, f_pseudo, *means, tau)
        shots = sum(literal_p(row, means, tau) for row in f) / 3
        fakes = sum(1 - literal_p(row, means, tau) for row in f_pseudo) / 2
        assert w[word] == pytest.approx(shots + fakes, abs=1e-5)
    for chosen in (["<c_n>", "<c_a>"], list(g)):
        p = prototypes({c: g[c] for c in chosen}, w)
        for s in (0, 1):
            total = 0
            for i in range(len(T3)):
                total = total + sum(w[c] * g[c][s][i] for c in chosen) / sum(w[c] for c in chosen)
            torch.testing.assert_close(p[s], total / len(T3), atol=1e-6, rtol=0)
    alone = prototypes({"<c_n>": g["<c_n>"]})
    torch.testing.assert_close(alone[0], g["<c_n>"][0].mean(0))


def test_embeddings_of_single_templates_are_refused(clip):
    g_n, g_a = state_embeddings(clip, "gear", None, ["a photo of a {}", "a {}"])
    x = images(2)
    f = clip.encode_image(x)  # as many images as templates: they would be paired one by one
    for call in (
        lambda: p_clip(f, g_n, g_a, 0.1), lambda: weight(f, f, g_n, g_a, 0.1), lambda: anomaly_probability(f, g_n, g_a, 0.1),
        lambda: ADP(clip, g_n, g_a, x, tau=0.1),
    ):  # fmt: skip
        with pytest.raises(FsadError, match="mean over the templates"):
            call()
    g_n, g_a = g_n.mean(0), g_a.mean(0)
    for how, message in ((dict(tau=-1.0), "tau"), (dict(visual_weight=math.nan), "visual_weight"), (dict(scales=()), "scales")):
        with pytest.raises(FsadError, match=message):
            ADP(clip, g_n, g_a, x, **how)
    with pytest.raises(FsadError, match="tau is None"):
        p_clip(f, g_n, g_a, None)


def test_a_string_is_not_a_list(clip, sd):
    with pytest.raises(FsadError, match="list of words"):
        embed(clip, "gear")
    with pytest.raises(FsadError, match="list of sentences"):
        pseudo_anomalies(sd, images(2), "a photo", 2, strength=0.5, guidance_scale=1.0, num_inference_steps=2)
    with pytest.raises(FsadError, match="{} once"):
        embed(clip, ["gear"], templates=["a photo"])


def test_bad_weights():
    g = {"a": (torch.ones(1, 2), torch.ones(1, 2)), "b": (torch.ones(1, 2), torch.ones(1, 2))}
    for weights, message in (({"a": 1.0}, "no weight for b"), ({"a": 1.0, "b": -1.0}, "at least 0"), ({"a": 0.0, "b": 0.0}, "not all 0"),
                             ({"a": 1.0, "b": float("nan")}, "at least 0")):  # fmt: skip
        with pytest.raises(FsadError, match=message):
            prototypes(g, weights)
    with pytest.raises(FsadError, match="at least one word"):
        prototypes({})
    with pytest.raises(FsadError, match="found 0 and 1"):
        weight(torch.ones(0, 2), torch.ones(1, 2), torch.ones(2), torch.ones(2), 0.1)


def test_eq7_with_its_sign_turned_and_the_visual_part(clip):
    shots, x, tau = images(2, 32), images(3, 32, seed=4), 0.02
    p_n, p_a = torch.randn(24), torch.randn(24)
    detector = ADP(clip, p_n, p_a, shots, tau=tau, visual_weight=0.5)
    scores = detector(x)
    f = clip.encode_image(x)
    assert scores.text.tolist() == pytest.approx([1 - literal_p(row, (p_n, p_a), tau) for row in f], abs=1e-5)
    memory = FeatureMemory(clip).add_shots(shots)
    torch.testing.assert_close(scores.memory, memory.score(x))
    torch.testing.assert_close(scores.image, scores.text + 0.5 * scores.memory.double())
    torch.testing.assert_close(scores.maps.amax((-2, -1)), scores.image)
    torch.testing.assert_close(detector.text_score(x), scores.text)
    torch.testing.assert_close(detector(memory.features(x)).image, scores.image)
    with pytest.raises(FsadError, match="visual_weight"):
        ADP(clip, p_n, p_a, shots, visual_weight=-1)


def test_saturated_scores_keep_their_order():
    angle = torch.linspace(0.9, 1.5, 7)
    f = torch.stack([angle.cos(), angle.sin()], 1)
    scores = anomaly_probability(f, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), tau=0.05)
    assert (scores.diff() > 0).all() and scores.dtype == torch.float64
