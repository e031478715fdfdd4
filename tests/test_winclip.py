import math

import anomalib.models.image.winclip.torch_model as anomalib_winclip
import pytest
import torch
import torch.nn.functional as F
from anomalib.models.image.winclip.utils import harmonic_aggregation as anomalib_harmonic
from anomalib.models.image.winclip.utils import make_masks, visual_association_score
from tiny_clip import build_model, tiny_clip

from fsad_lib.errors import FsadError
from fsad_lib.foundation.neighbours import nearest_cosine_distance
from fsad_lib.winclip import FeatureMemory, WinCLIP, extract, prompt_ensemble, windows
from fsad_lib.winclip.windows import harmonic_aggregation, window_features, window_index


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(scope="module")
def x():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_prompt_ensemble():
    normal, anomalous = prompt_ensemble("metal_nut")
    assert len(set(normal)) == 154 and len(set(anomalous)) == 88
    assert "a cropped photo of a flawless metal nut." in normal
    assert "a photo of the damaged metal nut for visual inspection." in anomalous
    assert prompt_ensemble(None) == prompt_ensemble("object")
    with pytest.raises(FsadError, match="empty"):
        prompt_ensemble(" _ ")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_windows_equal_the_models_own_run_on_their_tokens(clip, x, size, monkeypatch):
    """Slow loop: class token and the window's patches, each with its own positional embedding, one at a time."""
    monkeypatch.setattr(windows, "TOKENS", 37)  # several uneven chunks
    got = window_features(clip, clip.embed_patches(x), size)
    v = clip.model.visual
    patches = v.conv1(clip.preprocess(x))
    position = v.positional_embedding[1:].reshape(clip.grid, clip.grid, -1)
    for b in range(len(x)):
        number = 0
        for row in range(clip.grid - size + 1):
            for column in range(clip.grid - size + 1):
                sequence = [v.class_embedding + v.positional_embedding[0]]
                for i in range(row, row + size):
                    for j in range(column, column + size):
                        sequence.append(patches[b, :, i, j] + position[i, j])
                hidden = v.transformer(v.ln_pre(torch.stack(sequence)[None]))
                want = F.normalize(v.ln_post(hidden)[0, 0] @ v.proj, dim=-1)
                assert torch.allclose(got[b, number], want, atol=1e-5)
                number += 1
        assert number == got.shape[1]


def test_the_largest_window_is_the_image(clip, x):
    features = extract(clip, x, (4,))
    assert torch.allclose(features.windows[0][:, 0], clip.encode_image(x), atol=1e-5)


def test_results_do_not_depend_on_the_batch(clip, x, monkeypatch):
    whole = extract(clip, x)
    monkeypatch.setattr(windows, "TOKENS", 11)
    alone = [extract(clip, image[None]) for image in x]
    for i, one in enumerate(alone):
        assert torch.allclose(one.f[0], whole.f[i], atol=1e-5)
        assert all(torch.allclose(a[0], b[i], atol=1e-5) for a, b in zip(one.windows, whole.windows, strict=True))


@pytest.mark.parametrize(("grid", "size"), [(3, 2), (4, 3), (5, 5), (8, 2)])
def test_harmonic_aggregation(grid, size):
    scores = torch.rand(2, (grid - size + 1) ** 2) + 0.01
    got = harmonic_aggregation(scores, grid, size)
    index = window_index(grid, size).tolist()
    for b in range(2):
        for patch in range(grid * grid):
            covering = [float(scores[b, w]) for w, members in enumerate(index) if patch in members]
            want = len(covering) / sum(1 / s for s in covering)
            assert math.isclose(got[b].flatten()[patch], want, rel_tol=1e-4)
    masks = make_masks((grid, grid), size)
    assert torch.equal(masks.T.long(), window_index(grid, size))
    assert torch.allclose(got, anomalib_harmonic(scores, (grid, grid), masks), rtol=1e-5)


def test_harmonic_aggregation_of_zero_scores_is_finite_and_tiny():
    scores = torch.tensor([[0.0, 1.0, 1.0, 1.0], [-1e-8, 1.0, 1.0, 1.0]])
    maps = harmonic_aggregation(scores, 3, 2)
    assert torch.isfinite(maps).all() and (maps[:, 1, 1] < 1e-6).all() and (maps >= 0).all()


def test_nearest_distance_against_a_loop(monkeypatch):
    monkeypatch.setattr("fsad_lib.foundation.neighbours.ENTRIES", 20)
    queries, memory = torch.randn(2, 3, 5), torch.randn(7, 5)
    want = [[min(1 - F.cosine_similarity(q, m, dim=0) for m in memory) for q in row] for row in queries]
    got = nearest_cosine_distance(queries, memory)
    assert torch.allclose(got, torch.tensor(want), atol=1e-6)
    assert torch.allclose(got / 2, visual_association_score(queries, memory[None]), atol=1e-6)
    with pytest.raises(FsadError, match="0 features"):
        nearest_cosine_distance(queries, memory[:0])


def test_memory_of_the_image_itself_is_zero_and_grows_only_down(clip, x):
    memory = FeatureMemory(clip).add_shots(x[:1])
    assert memory.score(x[:1]).item() < 1e-5
    before = memory.maps(x)
    memory.add_shots(x[1:])
    assert memory.shots == 3 and (memory.maps(x) <= before + 1e-6).all()
    together = FeatureMemory(clip).add_shots(x).maps(x)
    assert torch.allclose(memory.maps(x), together, atol=1e-6)


def test_scores_fit_together(clip, x):
    detector = WinCLIP(clip, "gear")
    zero = detector(x)
    assert zero.memory is None and torch.equal(zero.image, zero.text)
    assert torch.allclose(zero.text, detector.text_score(x), atol=1e-6)
    few = detector.add_shots(x[:2])(x)
    assert torch.allclose(few.image, (zero.image + few.memory) / 2)
    assert torch.allclose(few.maps, (zero.maps + detector.memory.maps(x)) / 2)
    assert all(((s >= 0) & (s <= 1)).all() for s in few)
    assert detector.maps(x, 50).shape == (3, 50, 50)
    assert WinCLIP(clip, tau=None).tau == pytest.approx(1 / clip.logit_scale)


def test_other_grids_and_bad_input(x):
    clip = tiny_clip(vision={"patch_size": 8})
    assert WinCLIP(clip)(x).maps.shape == (3, 8, 8)
    small = tiny_clip(vision={"patch_size": 32})
    assert WinCLIP(small, scales=(2,))(x).maps.shape == (3, 2, 2)
    with pytest.raises(FsadError, match=r"1\.\.2"):
        WinCLIP(small)
    with pytest.raises(FsadError, match="tau"):
        WinCLIP(clip, tau=0)
    with pytest.raises(FsadError, match="empty"):
        FeatureMemory(clip).maps(x)
    with pytest.raises(FsadError, match="at least one"):
        FeatureMemory(clip).add_shots(x[:0])


class _TokensFirst(torch.nn.Module):
    """open_clip's transformer behind the interface it had in older versions: tokens first, batch second."""

    def __init__(self, transformer):
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden):
        return self.transformer(hidden.transpose(0, 1)).transpose(0, 1)


@pytest.fixture
def anomalib_model(clip, monkeypatch):
    """anomalib's WinClipModel around the same weights; no network."""
    model = build_model()
    model.load_state_dict(clip.model.state_dict())
    monkeypatch.setattr(
        anomalib_winclip.open_clip, "create_model_and_transforms", lambda *args, **kwargs: (model, None, None)
    )
    return anomalib_winclip.WinClipModel().eval()


def _as_in_older_open_clip(model, monkeypatch):
    # Deviation 1: anomalib transposes the windows' tokens for old versions of open_clip, whose transformer took the
    # token axis first. With today's batch-first transformer the class tokens of all windows attend to each other
    # and never to a patch. Restored here for the window path alone; ours equals the slow loop above.
    run = model._get_window_embeddings

    def with_tokens_first(*args):
        transformer = model.clip.visual.transformer
        model.clip.visual.transformer = _TokensFirst(transformer)
        try:
            return run(*args)
        finally:
            model.clip.visual.transformer = transformer

    monkeypatch.setattr(model, "_get_window_embeddings", with_tokens_first)


def test_scores_agree_with_anomalib(clip, x, anomalib_model, monkeypatch):
    _as_in_older_open_clip(anomalib_model, monkeypatch)
    # Deviation 2: anomalib's ensemble has 21 templates, one of them twice; ours the 22 of the MALA code.
    monkeypatch.setattr(anomalib_winclip, "create_prompt_ensemble", prompt_ensemble)
    # Deviation 3: anomalib averages raw text embeddings, we average embeddings of unit norm.
    encode_text = anomalib_model.clip.encode_text
    monkeypatch.setattr(anomalib_model.clip, "encode_text", lambda ids: encode_text(ids, normalize=True))
    # Deviation 4: anomalib takes normalised images; ours takes [0, 1] and normalises.
    shots, test = clip.preprocess(x[:2]), clip.preprocess(x[2:])

    detector = WinCLIP(clip, "metal_nut")
    anomalib_model.setup("metal nut")  # Deviation 5: no underscores become spaces there.
    assert torch.allclose(detector.prototypes, F.normalize(anomalib_model.text_embeddings, dim=-1), atol=1e-6)
    theirs, ours = anomalib_model(test), detector(x[2:])
    assert torch.allclose(ours.image, theirs.pred_score, atol=1e-5)
    assert torch.allclose(detector.maps(x[2:], 64), theirs.anomaly_map, atol=1e-5)

    anomalib_model.setup(reference_images=shots)
    detector.add_shots(x[:2])
    theirs, ours = anomalib_model(test), detector(x[2:])
    assert torch.allclose(ours.image, theirs.pred_score, atol=1e-5)
    assert torch.allclose(detector.maps(x[2:], 64), theirs.anomaly_map, atol=1e-5)


def test_why_anomalibs_windows_differ_with_this_open_clip(clip, x, anomalib_model):
    """Deviation 1 shown: with the class tokens of all windows attending to each other only, every window of every
    image has the same feature there; here each differs."""
    theirs = torch.cat([w.flatten(0, 1) for w in anomalib_model.encode_image(clip.preprocess(x))[1]])
    assert (theirs - theirs[0]).abs().max() < 1e-4
    ours = torch.cat([w.flatten(0, 1) for w in extract(clip, x).windows])
    assert ((ours[1:] - ours[0]).abs().amax(dim=1) > 1e-2).all()


def test_what_anomalibs_prompts_change(clip, anomalib_model):
    """Deviations 2 and 3 are small: the prototypes stay close."""
    anomalib_model.setup("gear")
    cosine = F.cosine_similarity(WinCLIP(clip, "gear").prototypes, anomalib_model.text_embeddings)
    assert (cosine > 0.95).all() and (cosine < 1 - 1e-6).all()
