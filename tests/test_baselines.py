"""The four detectors over anomalib: our weights inside, equal steps, seeds, and a defect that stands out."""

import io
import sys
import weakref

import numpy as np
import pytest
import timm
import torch
from torch import nn

from fsad_lib import baselines
from fsad_lib.baselines import _common as common
from fsad_lib.errors import FsadError
from fsad_lib.foundation.backbones import Backbone
from fsad_lib.foundation.images import resize
from fsad_lib.progress import counter

SIDE = 64


def backbone(name="resnet18", side=SIDE):
    torch.manual_seed(0)
    return Backbone(timm.create_model(name, pretrained=False), name, side)


def normal(n=3, side=SIDE, seed=0):
    """Smooth stripes under slightly different light."""
    rng = np.random.default_rng(seed)
    stripes = 0.5 + 0.2 * np.sin(np.arange(side) / 3)
    return torch.from_numpy(np.stack([np.broadcast_to(stripes + 0.03 * rng.standard_normal(), (3, side, side)) for _ in range(n)])).float().clamp(0, 1)


def defective(n=2, side=SIDE):
    x = normal(n, side, seed=9).clone()
    x[:, :, side // 4 : side // 2, side // 4 : side // 2] = 1.0
    return x


def stands_out(detector, side=SIDE):
    """Defective images score above normal ones, and most where the defect is."""
    good, _ = detector(normal(3, side, seed=5))
    bad, maps = detector(defective(2, side))
    assert maps.shape == (2, side, side) and torch.isfinite(maps).all()
    inside = maps[:, side // 4 : side // 2, side // 4 : side // 2].mean()
    return bool(good.max() < bad.min()) and bool(inside > maps.mean())


def survives_the_disk(detector, fresh, path, side=SIDE):
    """A fresh detector with the saved state gives the same scores and maps, and refuses a state that is not its own."""
    from safetensors.torch import load_file, save_file

    save_file(detector.state(), path)
    again, x = fresh.load(load_file(path)), defective(1, side)
    assert all(torch.equal(a, b) for a, b in zip(again(x), detector(x), strict=True))
    with pytest.raises(FsadError, match="saved"):
        fresh.load({"other": torch.zeros(1)})


# ---------------------------------------------------------------- what they share
@pytest.mark.parametrize("n,size,steps", [(1, 4, 3), (5, 2, 10), (7, 7, 2), (3, 1, 4)])
def test_batches_are_permutations_and_as_many_as_asked(n, size, steps):
    found = list(common.batches(n, size, steps, seed=1))
    assert len(found) == steps and all(len(b) == size for b in found)
    counts = torch.bincount(torch.cat(found), minlength=n)
    assert counts.max() - counts.min() <= 1, "every image is seen as often as the others"
    assert [b.tolist() for b in found] == [b.tolist() for b in common.batches(n, size, steps, seed=1)]


def test_seeded_draws_alike_and_leaves_the_callers_numbers_alone():
    torch.manual_seed(3), np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3), np.random.seed(3)
    seen = []
    for _ in range(2):
        with common.seeded(7):
            seen.append((float(torch.rand(1)), np.random.rand()))
    assert seen[0] == seen[1] and (torch.rand(1), np.random.rand()) == expected


def test_progress_of_a_training_is_seen(monkeypatch):
    """Only anomalib's own bar is hidden, and only while the coreset is chosen."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    baselines.make("reverse_distillation", backbone=backbone("resnet18", 64)).fit(torch.rand(2, 3, 64, 64), 2, progress=counter("train"))
    assert "1/2" in screen.getvalue()
    with common.quiet():
        print("a bar", file=sys.stderr)
    assert "a bar" not in screen.getvalue()


@pytest.mark.parametrize("name", ["cflow", "reverse_distillation", "efficientad"])
def test_an_interrupted_training_ends_with_the_same_weights(name, tmp_path, monkeypatch):
    file, side = tmp_path / "state.pt", 256 if name == "efficientad" else SIDE
    x = normal(3, side)

    def detector():
        if name == "efficientad":
            from fsad_lib.baselines import efficientad

            monkeypatch.setattr(efficientad, "EfficientAdModel", _cheap_model)
            torch.manual_seed(2)
            return efficientad.EfficientAD(Cheap(6).eval(), torch.rand(2, 3, 32, 32))
        sizes = dict(coupling_blocks=1, condition=8, fibers=16) if name == "cflow" else {}
        return baselines.make(name, backbone=backbone(), batch_size=2, **sizes)

    def stop(done, n):
        if done == 3:
            raise KeyboardInterrupt

    straight, resumed, seen = detector(), detector(), []
    losses = straight.fit(x, steps=4, seed=3)
    with pytest.raises(KeyboardInterrupt):
        detector().fit(x, steps=4, seed=3, progress=stop, checkpoint=file)
    assert resumed.fit(x, steps=4, seed=3, progress=lambda done, n: seen.append(done), checkpoint=file) == losses and seen == [4]
    assert all(torch.equal(value, resumed.state()[key]) for key, value in straight.state().items())
    for other in (dict(seed=4), dict(steps=5)):  # not that training's checkpoint
        assert len(detector().fit(x, progress=lambda done, n: seen.append(done), checkpoint=file, **(dict(steps=4, seed=3) | other))) in (4, 5)
    assert seen[1:] == [1, 2, 3, 4, 1, 2, 3, 4, 5]
    file.write_bytes(b"broken")
    with pytest.raises(FsadError, match="not a readable checkpoint"):
        detector().fit(x, steps=4, seed=3, checkpoint=file)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_anomalibs_extractor_gives_the_backbones_own_features(name):
    from anomalib.models.components import TimmFeatureExtractor

    source = backbone(name)
    stages = common.stages_of(source, (8, 16))
    extractor = TimmFeatureExtractor(name, stages, pre_trained=False)
    common.use_weights(extractor, source)
    x = normal(2)
    found = list(extractor(source.preprocess(x)).values())
    for ours, theirs in zip(source.features(x), found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert not any(p.requires_grad for p in extractor.parameters())
    with pytest.raises(FsadError, match="are not the backbone's"):
        common.use_weights(extractor, backbone("tf_efficientnet_lite0" if name == "resnet18" else "resnet18"))
    with pytest.raises(FsadError, match=r"none of \[64\]"):
        common.stages_of(source, (8, 64))


# ---------------------------------------------------------------- PatchCore
def test_patchcore(tmp_path):
    detector = baselines.make("patchcore", backbone=backbone(), coreset=0.25)
    assert detector.fit(normal()) == []
    assert (detector.patches_seen, detector.memory_size) == (3 * 8 * 8, 48)
    assert stands_out(detector)
    again = baselines.make("patchcore", backbone=backbone(), coreset=0.25)
    again.fit(normal())
    assert torch.equal(again(defective())[0], detector(defective())[0])
    one = [detector(defective()[i : i + 1])[0] for i in range(2)]
    assert torch.allclose(torch.cat(one), detector(defective())[0], rtol=1e-5), "a score does not depend on its batch"
    survives_the_disk(detector, baselines.make("patchcore", backbone=backbone(), coreset=0.25), tmp_path / "memory.safetensors")


def test_patchcores_coreset_is_anomalibs():
    from anomalib.models.components.sampling import KCenterGreedy

    from fsad_lib.baselines.patchcore import _Coreset

    patches = torch.rand(500, 40, generator=torch.Generator().manual_seed(0))
    chosen = []
    for sampler in (KCenterGreedy, _Coreset):
        with common.seeded(3):
            made = sampler(patches, 0.2)
            chosen.append(made.select_coreset_idxs())
    assert chosen[0] == chosen[1] and len(set(chosen[0])) == 100


def locally_aware(source, x):
    """PatchCore's patches (N * h * w, C) of images: each map averaged over 3 x 3 neighbours, the coarse ones enlarged."""
    maps = [nn.functional.avg_pool2d(f, 3, 1, 1) for f in source.features(x)]
    maps = [maps[0], *(nn.functional.interpolate(f, maps[0].shape[-2:], mode="bilinear") for f in maps[1:])]
    return torch.cat(maps, 1).permute(0, 2, 3, 1).flatten(0, 2)


def test_patchcore_keeps_the_patch_that_lies_farthest_from_those_kept(monkeypatch):
    from fsad_lib.baselines.patchcore import _Coreset

    projected, choose = [], _Coreset.select_coreset_idxs
    monkeypatch.setattr(_Coreset, "select_coreset_idxs", lambda self: (choose(self), projected.append(self.features))[0])
    detector, x = baselines.make("patchcore", backbone=backbone(), coreset_size=30), torch.rand(2, 3, SIDE, SIDE)
    detector.fit(x)
    patches = locally_aware(detector.backbone, x)
    distance, kept = torch.cdist(detector.model.memory_bank, patches).min(1)
    assert distance.max() < 1e-2 and len(set(kept.tolist())) == 30, "the memory holds patches of the images"
    (features,) = projected  # distances are those of the random projection, as in the paper
    assert len(features) == len(patches) == 128
    apart = (features[:, None] - features).norm(dim=-1)
    for n in range(1, 30):
        nearest = apart[:, kept[:n]].amin(1)
        assert float(nearest[kept[n]]) == pytest.approx(float(nearest.max()), rel=1e-4)


@pytest.mark.parametrize("neighbours", [3, 9])
def test_patchcores_image_score_is_the_papers(neighbours):
    """s = (1 - exp |m_test - m*| / sum over the b nearest m of m* of exp |m_test - m|) |m_test - m*| (Roth et al., eq. 7)."""
    detector, x = baselines.make("patchcore", backbone=backbone(), coreset_size=40, neighbours=neighbours), torch.rand(2, 3, SIDE, SIDE)
    detector.fit(torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))
    memory = detector.model.memory_bank.double()
    for image, score in zip(x, detector(x)[0].tolist(), strict=True):
        distances = [[float((p - m).norm()) for m in memory] for p in locally_aware(detector.backbone, image[None]).double()]
        to_memory = max(distances, key=min)
        star = to_memory.index(min(to_memory))
        near = sorted(range(len(memory)), key=lambda i: float((memory[i] - memory[star]).norm()))[:neighbours]
        weight = 1 - np.exp(to_memory[star]) / sum(np.exp(to_memory[i]) for i in near)
        assert score == pytest.approx(weight * to_memory[star], rel=1e-3)


def test_a_memory_of_one_patch_scores_each_image_by_itself(tmp_path):
    detector, x = baselines.make("patchcore", backbone=backbone(), coreset_size=1), torch.rand(3, 3, SIDE, SIDE)
    detector.fit(x)
    alone = torch.cat([detector(one[None])[0] for one in x])
    assert detector.memory_size == 1 and alone.min() > 0 and torch.allclose(detector(x)[0], alone, rtol=1e-4)
    survives_the_disk(detector, baselines.make("patchcore", backbone=backbone(), coreset_size=1), tmp_path / "memory.safetensors")


@pytest.mark.parametrize("name", ["patchcore", "cflow", "reverse_distillation"])
def test_how_images_lie_in_memory_does_not_matter(name):
    x = torch.rand(2, SIDE, SIDE, 3).permute(0, 3, 1, 2)
    made = [baselines.make(name, backbone=backbone(), **({} if name == "patchcore" else {"batch_size": 2})) for _ in range(2)]
    for detector, images in zip(made, (x, x.contiguous()), strict=True):
        detector.fit(images, **({} if name == "patchcore" else {"steps": 1}))
    assert torch.allclose(made[0](x)[0], made[1](x)[0], rtol=1e-3)


def test_patchcore_memory_of_one_size_in_every_arm():
    sizes = []
    for x in (normal(2), normal(6)):
        detector = baselines.make("patchcore", backbone=backbone(), coreset_size=100, neighbours=1)
        detector.fit(x)
        sizes.append(detector.memory_size)
    assert sizes == [100, 100]
    detector.coreset_size = 10_000
    detector.fit(normal(2))
    assert detector.memory_size == 128
    maximum = detector.model.nearest_neighbors(detector.model.memory_bank, 1)[0]
    assert maximum.max() < 1e-2, "every patch is remembered"


# ---------------------------------------------------------------- CFlow
def test_cflow_learns_and_its_scores_do_not_depend_on_the_batch(tmp_path):
    detector = baselines.make("cflow", backbone=backbone(), coupling_blocks=2, condition=16, lr=3e-3, batch_size=2)
    seen = []
    losses = detector.fit(normal(), steps=20, progress=lambda i, n: seen.append((i, n)))
    assert len(losses) == 20 and seen[-1] == (20, 20) and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert stands_out(detector)
    x = torch.cat([normal(1, seed=5), defective()])
    together, alone = detector(x)[0], torch.cat([detector(x[i : i + 1])[0] for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-4)
    frozen = detector.model.encoder.state_dict()
    source = detector.backbone.model.state_dict()
    assert all(torch.equal(value, source[name.removeprefix("feature_extractor.")]) for name, value in frozen.items())
    again = baselines.make("cflow", backbone=backbone(), coupling_blocks=2, condition=16, lr=3e-3, batch_size=2)
    assert again.fit(normal(), steps=2) == losses[:2]
    survives_the_disk(detector, again, tmp_path / "flows.safetensors")


def test_cflow_learns_each_patch_under_its_own_place_and_judges_it_under_the_same(monkeypatch):
    detector = baselines.make("cflow", backbone=backbone(), coupling_blocks=1, condition=16, batch_size=2, fibers=1000)
    made, learned, judged = detector._network(), [], []
    monkeypatch.setattr(detector, "_network", lambda: made)
    for flow in made.decoders:
        flow.register_forward_pre_hook(lambda _, given: (learned if torch.is_grad_enabled() else judged).append((given[0], given[1][0])))
    x = torch.rand(2, 3, SIDE, SIDE)
    detector.fit(x, steps=1)
    assert len(learned) == len(judged) == 3
    maps = made.encoder(detector.backbone.preprocess(x)).values()
    for features, (seen, place), (again, same_place) in zip(maps, learned, judged, strict=True):
        known = features.permute(0, 2, 3, 1).flatten(0, 2)
        side = features.shape[-1]
        of, of_again = (torch.cdist(patches, known).argmin(1) for patches in (seen, again))
        assert sorted(of.tolist()) == sorted(of_again.tolist()) == list(range(2 * side * side)), "every patch once"
        place, same_place = place[of.argsort()], same_place[of_again.argsort()]
        assert torch.equal(place, same_place) and torch.equal(place[: side * side], place[side * side :]), "of every image alike"
        for cell, code in enumerate(place[: side * side]):
            row, column = divmod(cell, side)
            angles = [(at / 1e4 ** (2 * k / 8)) for at in (column, row) for k in range(4)]
            assert code.tolist() == pytest.approx([f(a) for a in angles for f in (np.sin, np.cos)], abs=1e-5)


def test_cflows_map_ranks_as_anomalibs_and_goes_on_where_that_one_saturates():
    from fsad_lib.baselines.cflow import LikelihoodMap

    ours = LikelihoodMap(2)
    ours.highest, ours.learning = torch.tensor([0.5, -1.0]), False
    draw = torch.Generator().manual_seed(0)
    d = [-2 * torch.rand(16, generator=draw) + 0.5, -2 * torch.rand(4, generator=draw) - 1.0]
    found = ours(d, [4, 2], [4, 2], (8, 8))
    enlarged = [torch.nn.functional.interpolate((x - t).exp().view(1, 1, n, n), (8, 8), mode="bilinear", align_corners=True) for x, t, n in zip(d, ours.highest, (4, 2))]
    theirs = 2 - sum(enlarged)[:, 0]  # Gudovskiy et al.'s map, as anomalib writes it
    assert torch.equal(found.flatten().argsort(), theirs.flatten().argsort())
    assert torch.allclose(found, -(2 - theirs).double().log(), atol=1e-5)
    far = [ours([torch.full((16,), -g), torch.full((4,), -g)], [4, 2], [4, 2], (8, 8)).max() for g in (20.0, 40.0, 400.0)]
    assert far[0] < far[1] < far[2] < torch.inf


# ---------------------------------------------------------------- Reverse Distillation
def test_reverse_distillation_learns(tmp_path):
    detector = baselines.make("reverse_distillation", backbone=backbone(), batch_size=2)
    losses = detector.fit(normal(), steps=8)
    assert len(losses) == 8 and losses[-1] < 0.8 * losses[0]
    assert stands_out(detector)
    source = detector.backbone.model.state_dict()
    frozen = detector.model.encoder.state_dict()
    assert all(torch.equal(value, source[name.removeprefix("feature_extractor.")]) for name, value in frozen.items())
    survives_the_disk(detector, baselines.make("reverse_distillation", backbone=backbone(), batch_size=2), tmp_path / "decoder.safetensors")


def test_reverse_distillation_wants_a_network_that_it_can_mirror():
    with pytest.raises(FsadError, match="its decoder mirrors the network"):
        baselines.make("reverse_distillation", backbone=backbone("tf_efficientnet_lite0"))
    with pytest.raises(FsadError, match="multiple of 32"):
        baselines.make("reverse_distillation", backbone=backbone(side=60))


# ---------------------------------------------------------------- EfficientAD
def teacher_state(channels=8, medium=False):
    from anomalib.models.image.efficient_ad import torch_model as parts

    torch.manual_seed(1)
    return (parts.MediumPatchDescriptionNetwork if medium else parts.SmallPatchDescriptionNetwork)(channels).state_dict()


def test_efficientad_teacher_from_either_file(tmp_path):
    from safetensors.torch import save_file

    from fsad_lib.baselines.efficientad import load_teacher

    torch.save(teacher_state(12), tmp_path / "a.pth")
    save_file({k: v.half() for k, v in teacher_state(8).items()}, tmp_path / "b.safetensors")
    torch.save(teacher_state(6, medium=True), tmp_path / "c.pth")
    assert [load_teacher(tmp_path / n).state_dict()[w].shape[0] for n, w in (("a.pth", "conv4.weight"), ("b.safetensors", "conv4.weight"), ("c.pth", "conv6.weight"))] == [12, 8, 6]
    torch.save({"x": torch.zeros(1)}, tmp_path / "d.pth")
    with pytest.raises(FsadError, match="does not hold"):
        load_teacher(tmp_path / "d.pth")
    with pytest.raises(FsadError, match="nothing is downloaded"):
        load_teacher(tmp_path / "none.pth")


class Cheap(nn.Module):
    """The patch description network's geometry (down-sampling by 4, 8 columns lost) at a hundredth of its cost."""

    def __init__(self, out):
        super().__init__()
        self.conv4 = nn.Conv2d(3, out, 33, stride=4)
        self.out_channels = out

    def forward(self, x):
        return nn.functional.conv2d(nn.functional.avg_pool2d(x, 4), self.conv4.weight[:, :, :9, :9], self.conv4.bias)


def test_efficientad_learns_and_its_quantiles_are_of_normal_images(monkeypatch, tmp_path):
    from fsad_lib.baselines import efficientad

    monkeypatch.setattr(efficientad, "EfficientAdModel", _cheap_model)
    torch.manual_seed(2)
    detector = efficientad.EfficientAD(Cheap(6).eval(), torch.rand(2, 3, 32, 32), lr=3e-3)
    x = normal(2, 256)
    losses = detector.fit(x, steps=4)
    assert len(losses) == 4 and min(losses[1:]) < losses[0]
    q = {k: float(v) for k, v in detector.model.quantiles.items()}
    assert 0 < q["qa_st"] < q["qb_st"] and 0 < q["qa_ae"] < q["qb_ae"]
    other = efficientad.EfficientAD(detector.teacher, detector.penalty, lr=3e-3)
    assert other.fit(x, steps=4, held_out=normal(3, 256, seed=4)) == losses, "the quantiles come after the training"
    held = {k: float(v) for k, v in other.model.quantiles.items()}
    assert held["qa_st"] != q["qa_st"]
    # they are those of the held-out images
    maps = [other.model.get_maps(image[None])[0] for image in normal(3, 256, seed=4)]
    assert held["qa_st"] == pytest.approx(float(torch.quantile(torch.cat(maps), 0.9)), rel=1e-4)
    scores, maps = detector(torch.cat([x, defective(1, 256)]))
    assert scores.shape == (3,) and maps.shape == (3, 256, 256) and torch.allclose(scores, maps.amax((1, 2)))
    assert torch.equal(detector.model.teacher.conv4.weight, detector.teacher.conv4.weight)
    survives_the_disk(detector, efficientad.EfficientAD(detector.teacher, detector.penalty), tmp_path / "student.safetensors", 256)


def test_efficientads_student_learns_normal_images_and_is_kept_small_on_others(monkeypatch):
    """Every step's loss from its formulas (Batzner et al., section 3), on the images that it should see."""
    from fsad_lib.baselines import efficientad

    x, penalty = normal(2, 256), torch.rand(3, 3, 40, 40)
    others, pairs, expected = resize(penalty, 256), [], []

    def losses(model, given, _):
        if not torch.is_grad_enabled():  # quantiles and scores
            return
        image, other = given
        pairs.append([int((images - one).flatten(1).abs().amax(1).argmin()) for images, one in ((x, image), (others, other))])
        assert torch.equal(image, x[pairs[-1][:1]]) and torch.equal(other, others[pairs[-1][1:]])
        teacher = (model.teacher(image) - model.mean_std["mean"]) / model.mean_std["std"]
        student, guess = model.student(image).split(6, 1)
        ae = model.ae(image, image.shape[-2:])
        distance = (teacher - student).square()
        hard = distance[distance >= torch.quantile(distance, 0.999)].mean()
        kept_small = model.student(other)[:, :6].square().mean()
        expected.append((hard + kept_small + (teacher - ae).square().mean() + (ae - guess).square().mean()).item())

    def make(*size):
        model = _cheap_model(*size)
        model.choose_random_aug_image = lambda image: image
        for part in model.ae.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        model.register_forward_hook(losses)
        return model

    monkeypatch.setattr(efficientad, "EfficientAdModel", make)
    torch.manual_seed(2)
    found = efficientad.EfficientAD(Cheap(6).eval(), penalty, lr=3e-3).fit(x, steps=3)
    assert found == pytest.approx(expected, rel=1e-4)
    assert {i for i, _ in pairs} == {0, 1} and sorted(j for _, j in pairs) == [0, 1, 2]


def test_efficientads_networks_are_in_the_mode_of_their_work(monkeypatch):
    """Only the students train; the quantiles and the scores are of networks without dropout."""
    from fsad_lib.baselines import efficientad

    modes = set()

    def make(*size):
        model = _cheap_model(*size)
        for name in ("teacher", "student", "ae"):
            getattr(model, name).register_forward_hook(lambda part, _, out, name=name: modes.add((name, part.training, model.training)))
        return model

    monkeypatch.setattr(efficientad, "EfficientAdModel", make)
    detector = efficientad.EfficientAD(Cheap(6).eval(), torch.rand(2, 3, 32, 32))
    monkeypatch.setattr(detector, "_standardise", lambda *_: None)
    calibrate = detector._calibrate
    monkeypatch.setattr(detector, "_calibrate", lambda *given: (seen.append(set(modes)), modes.clear(), calibrate(*given)))
    seen = []
    detector.fit(normal(1, 256), steps=1)
    assert seen == [{("teacher", False, True), ("student", True, True), ("ae", True, True)}]
    detector.model.train()
    detector(normal(1, 256))
    assert modes == {(name, False, False) for name in ("teacher", "student", "ae")}


def test_efficientads_statistics_are_torchs_and_keep_no_features():
    from types import SimpleNamespace

    from fsad_lib.baselines.efficientad import EfficientAD

    torch.manual_seed(0)
    cheap, alive, x = Cheap(6), [], normal(9, 256)

    def teacher(part):
        assert not any(ref() is not None for ref in alive), "the features of all images would fill the memory"
        f = 50 + 3 * cheap(part)
        alive.append(weakref.ref(f))
        return f

    found = nn.ParameterDict({"mean": torch.zeros(1, 6, 1, 1), "std": torch.zeros(1, 6, 1, 1)})
    EfficientAD(cheap, x)._standardise(SimpleNamespace(teacher=teacher, mean_std=found), x)
    flat = (50 + 3 * cheap(x).detach()).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found["mean"].flatten(), flat.mean(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(found["std"].flatten(), flat.double().std(1, correction=0).float(), rtol=1e-5, atol=0)
    assert found["std"].dtype == torch.float32 and not found["std"].requires_grad


def _cheap_model(channels, size):
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel

    model = EfficientAdModel(channels, size)
    model.teacher, model.student = Cheap(channels), Cheap(2 * channels)
    return model


@pytest.mark.slow
def test_efficientad_with_its_own_networks():
    from fsad_lib.baselines.efficientad import EfficientAD, SmallPatchDescriptionNetwork

    teacher = SmallPatchDescriptionNetwork(16)
    teacher.load_state_dict(teacher_state(16))
    detector = EfficientAD(teacher.eval(), torch.rand(4, 3, 64, 64))
    losses = detector.fit(normal(2, 256), steps=30)
    assert sum(losses[-5:]) < sum(losses[:5]) and stands_out(detector, 256)


def test_refusals():
    from fsad_lib.baselines.efficientad import EfficientAD

    with pytest.raises(FsadError, match="at least 256"):
        EfficientAD(Cheap(4), torch.rand(1, 3, 32, 32), image_size=128)
    for kind, settings in (("patchcore", dict(coreset=0.0)), ("patchcore", dict(neighbours=0)), ("cflow", dict(condition=6)), ("cflow", dict(lr=0.0)), ("reverse_distillation", dict(batch_size=0))):
        with pytest.raises(FsadError):
            baselines.make(kind, backbone=backbone(), **settings)
    detector = baselines.make("reverse_distillation", backbone=backbone())
    with pytest.raises(FsadError, match="call fit first"):
        detector(normal())
    for x, steps in ((normal() + 1, 2), (normal()[0], 2), (normal()[:0], 2), (normal(), 0), (normal(), 2.0)):
        with pytest.raises(FsadError):
            detector.fit(x, steps=steps)
