"""Probes compare like with like, and the figures of words show what they are given."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import tiny_models as tiny
import torch
from sklearn.metrics import roc_auc_score

from fsad_lib.adp import figures, probes
from fsad_lib.adp.concepts import p_clip, tau_sweep
from fsad_lib.adp.prompts import state_embeddings
from fsad_lib.errors import FsadError

matplotlib.use("agg")
TEMPLATES = ("a photo of a {}", "a rendering of a {}")


@pytest.fixture(scope="module")
def models():
    model = tiny.open_clip_model()
    return tiny.CLIP(model), tiny.diffusion(model)


def test_a_scratch_is_thin_local_reproducible_and_visible_on_dark_and_bright():
    for level in (0.1, 0.9):
        x = torch.full((3, 3, 96, 96), level)
        damaged = probes.scratch(x, seed=1)
        changed = (damaged != x).any(1)
        assert damaged.min() >= 0 and damaged.max() <= 1
        assert all(0.002 < m.float().mean() < 0.05 for m in changed)
        assert (damaged - x).abs().amax((1, 2, 3)).min() > 0.2
    assert torch.equal(damaged, probes.scratch(x, seed=1))
    assert torch.equal(damaged[1:2], probes.scratch(x, seed=1)[1:2])
    assert not torch.equal(damaged[0], damaged[1]), "each image has a scratch of its own"
    with pytest.raises(FsadError, match="opacity"):
        probes.scratch(x, opacity=0)


def test_the_denoising_probe_is_the_same_for_the_same_vector_under_two_names(models):
    clip, diffusion = models
    x = tiny.images(2)
    vector = clip.token_embedding("gear")
    found = probes.denoising_probe(diffusion, x, ["gear", "<g>", "object"], {"<g>": vector}, draws=3)
    assert found["gear"] == pytest.approx(found["<g>"], rel=1e-5)
    assert found["gear"] != pytest.approx(found["object"], rel=1e-7)
    batched = probes.denoising_probe(diffusion, x, ["gear"], draws=3, batch_size=1)
    assert batched["gear"] == pytest.approx(found["gear"], rel=1e-5)
    with pytest.raises(FsadError, match="draws"):
        probes.denoising_probe(diffusion, x, ["gear"], draws=0)
    for ask in (lambda: probes.denoising_probe(diffusion, x, "gear"), lambda: probes.p_normal(clip, {"shots": x}, "gear", tau=0.1)):
        with pytest.raises(FsadError, match="expected a list of words"):
            ask()


def test_p_normal_is_equation_1(models):
    clip, _ = models
    groups = {"shots": tiny.images(2), "damaged": tiny.images(3, seed=9)}
    vector = clip.token_embedding("nut")
    table = probes.p_normal(clip, groups, {"a": "object", "b": "<c>"}, {"<c>": vector}, tau=0.1, templates=TEMPLATES)
    assert len(table) == 2 * 5
    g_n, g_a = (g.mean(0) for g in state_embeddings(clip, "<c>", {"<c>": vector}, TEMPLATES))
    expected = p_clip(clip.encode_image(groups["damaged"]), g_n, g_a, 0.1)
    got = table.query("word == 'b' and group == 'damaged'").p_normal
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_judging_by_the_states_of_a_word_is_judging_by_the_word(models):
    clip, _ = models
    groups = {"shots": tiny.images(2)}
    states = tuple(g.mean(0) for g in state_embeddings(clip, "object", templates=TEMPLATES))
    expected = probes.p_normal(clip, groups, ["object"], tau=0.1, templates=TEMPLATES)
    pd.testing.assert_frame_equal(probes.judge(clip, groups, {"object": states}, 0.1), expected)
    swapped = probes.judge(clip, groups, {"object": states[::-1]}, 0.1)
    np.testing.assert_allclose(swapped.p_normal, 1 - expected.p_normal, atol=1e-6)


def test_change_tells_local_from_global():
    x = torch.full((3, 3, 64, 64), 0.5)
    edited = torch.stack([x[0], probes.scratch(x[1:2])[0], x[2] + 0.1])
    amount, extent = probes.change(x, edited)
    assert amount[0] == 0 and extent[0] == 0
    assert extent[1] < 0.05 and extent[2] == pytest.approx(0.5, abs=0.01)
    assert amount[2] == pytest.approx(0.1, abs=1e-6)
    with pytest.raises(FsadError, match="shape"):
        probes.change(x, edited[:1])


def test_gradient_sweep_is_autograds(models):
    clip, diffusion = models
    x, pseudo, c = tiny.images(2), tiny.images(3, seed=8), clip.token_embedding("object")

    def probability(images, v, tau):
        g_n, g_a = (g.mean(0) for g in state_embeddings(clip, "<c>", {"<c>": v}, TEMPLATES))
        return p_clip(clip.encode_image(images), g_n, g_a, tau)

    settings = dict(taus=(0.02, 0.3), alpha=2.0, templates=TEMPLATES, draws=2)
    gamma = probability(pseudo, c, 0.3).median().item() - 1e-4  # some of them count, some rest
    table = probes.gradient_sweep(clip, diffusion, x, c, pseudo=pseudo, gamma=gamma, **settings)
    for row in table.itertuples():
        for found, term in (
            (row.clip_gradient, lambda v, tau: probability(x, v, tau).mean()),  # eq. 3: over the shots
            (row.hinge_gradient, lambda v, tau: (probability(pseudo, v, tau) - gamma).relu().mean()),  # eq. 4
        ):
            v = c.clone().requires_grad_(True)
            (2.0 * term(v, row.tau)).backward()
            assert found == pytest.approx(v.grad.norm().item(), rel=1e-3)
    assert table["denoising_gradient"].nunique() == 1 and table["denoising_gradient"][0] > 0
    resting = probes.gradient_sweep(clip, diffusion, x, c, pseudo=pseudo, gamma=1.0, **settings)
    assert (resting["hinge_gradient"] == 0).all() and resting["clip_gradient"].tolist() == table["clip_gradient"].tolist()
    assert "hinge_gradient" not in probes.gradient_sweep(clip, diffusion, x, c, **settings)
    with pytest.raises(FsadError, match="gamma"):
        probes.gradient_sweep(clip, diffusion, x, c, pseudo=pseudo)


def test_ordered_pairs_is_the_auroc():
    rng = np.random.default_rng(0)
    high, low = rng.integers(0, 6, 20) / 5, rng.integers(0, 5, 15) / 5
    expected = roc_auc_score([1] * 20 + [0] * 15, [*high, *low])
    assert probes.ordered_pairs(high, low) == pytest.approx(expected)
    with pytest.raises(FsadError):
        probes.ordered_pairs([], [1.0])


def test_spoiling_moves_from_the_word_to_chance():
    c = torch.randn(64, generator=torch.Generator().manual_seed(0))
    likeness = [torch.cosine_similarity(probes.spoil(c, s), c, dim=0).item() for s in (0, 0.25, 0.5, 0.75, 1)]
    assert likeness[0] == pytest.approx(1) and likeness == sorted(likeness, reverse=True)
    assert not torch.equal(probes.spoil(c, 1.0, 1), probes.spoil(c, 1.0, 2))
    with pytest.raises(FsadError, match="share"):
        probes.spoil(c, 1.5)


def test_every_figure_draws(models):
    clip, diffusion = models
    x, pushed, c = tiny.images(2), tiny.images(3, seed=8), clip.token_embedding("object")
    strips = probes.p_normal(clip, {"shots": x, "edits": pushed}, ["object", "gear"], tau=0.1, templates=TEMPLATES)
    trace = pd.DataFrame(
        [("ti", 1, 0.5, 0.6, np.nan), ("ti", 2, 0.4, 0.6, np.nan), ("c_a", 1, 0.5, 0.6, 0.1), ("c_a", 2, 0.5, 0.7, 0.0)],
        columns=["concept", "step", "denoising_loss", "p_normal", "hinge"],
    )
    g = clip.encode_text(["a flawless gear", "a damaged gear"])
    sweep = tau_sweep(clip.encode_image(pushed), *g)
    gradients = probes.gradient_sweep(clip, diffusion, x, c, pseudo=pushed, gamma=0.0, templates=TEMPLATES, draws=1)
    details = {word: {"p_normal_shots": 0.8, "p_normal_pseudo": 0.3} for word in ("object", "ti", "c_n", "c_a", "label")}
    spoiled = pd.DataFrame({"share": [0, 1, 0, 1], "seed": [0, 0, 1, 1], "weight": [1.5, 1.0, 1.5, 0.9], "apart": [1, 0.5, 1, 0.4]})
    strength = pd.DataFrame({"prompt": ["a", "a"], "strength": [0.2, 0.8], "p_damaged": [0.1, 0.9], "likeness": [1.0, 0.4]})
    made = [
        figures.image_rows({"shots\nreal": x, "edits": pushed}, {"edits": ["1", "2", "3"]}, heads=["a", "b"]),
        figures.word_strips(strips),
        figures.hinge_plot([0.9, 0.2, 0.6], [0.4, 0.1, 0.5], 0.5),
        figures.why_adp(trace, sweep, gradients, gamma=0.5, tau=0.1),
        figures.why_adp(trace, sweep, gradients.assign(hinge_gradient=0.0), gamma=0.5, tau=0.1),
        figures.weight_bars(details),
        figures.spoil_plot(spoiled, 1.4),
        figures.strength_plot(strength, 0.5),
    ]
    for figure in made:
        figure.canvas.draw()
    written = " ".join(t.get_text() for t in made[2].axes[0].get_children() if hasattr(t, "get_text"))
    assert "1 of 3 at rest" in written
    with pytest.raises(FsadError, match="caption"):
        figures.image_rows({"shots": x}, {"shots": ["one"]})
    with pytest.raises(FsadError, match="No group"):
        figures.word_strips(strips, normal="nothing")
