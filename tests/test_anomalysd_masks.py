"""Foreground, rectangles, grids, prototype-guided mask, prompts."""

import numpy as np
import pytest
import torch

from fsad_lib import datasets
from fsad_lib.anomalysd.masks import foreground, grid_cells, grid_passes, prototype_mask, random_rectangle
from fsad_lib.anomalysd.prompts import (
    DEFAULT_PARTS,
    hierarchy,
    inference_prompt,
    known_parts,
    training_prompts,
)
from fsad_lib.datasets.minifab import NOUNS, TEXTURES, category_design, render
from fsad_lib.errors import FsadError
from fsad_lib.foundation.diffusion import generator


def photographs(noun, n=3):
    """MiniFab images of one development product, and the true outline of an object."""
    design, x, outline = category_design("development", noun), [], []
    for i in range(n):
        scene = render.sample_scene(design, np.random.default_rng([3, i]))
        image = render.photograph(render.render(scene), scene.seed + 2)
        x.append(torch.from_numpy(image).permute(2, 0, 1).float() / 255)
        if noun not in TEXTURES:
            outline.append(torch.from_numpy(render.layers_of(scene).d < 0))
    return torch.stack(x), torch.stack(outline) if outline else None


@pytest.mark.parametrize("noun", ["nut", "button", "key", "plate"])
def test_foreground_holds_the_object_and_little_more(noun):
    x, body = photographs(noun)
    m = foreground(x)[:, 0]
    assert (m & body).sum() > 0.98 * body.sum()
    assert m.float().mean() < body.float().mean() + 0.2


@pytest.mark.parametrize("noun", ["leather", "mesh", "wood", "tile", "fabric", "stone"])
def test_foreground_of_a_texture_is_the_whole_image(noun):
    assert foreground(photographs(noun)[0]).all()


def test_foreground_on_a_graded_background_with_an_object_at_the_border():
    ramp = torch.linspace(0.3, 0.7, 96).expand(3, 96, 96)
    x = ramp.clone() + 0.01 * torch.rand(3, 96, 96)
    x[:, 30:70, 0:50] = torch.tensor([0.9, 0.2, 0.1])[:, None, None]
    m = foreground(x[None])[0, 0]
    assert m[30:70, 0:50].float().mean() > 0.95 and m.float().mean() < 0.35
    for blank in (torch.full((1, 3, 40, 60), 0.4), torch.zeros(1, 3, 128, 128), torch.ones(1, 3, 128, 128)):
        assert foreground(blank).all()  # nothing to see: everything


def test_rectangles_stay_in_the_foreground_and_vary():
    where = torch.zeros(40, 50, dtype=torch.bool)
    where[5:30, 10:45] = True
    seen = [random_rectangle(where, generator(0, i), (0.05, 0.3)) for i in range(50)]
    assert all(m.any() and not (m & ~where).any() for m in seen)
    assert torch.stack(seen).any(0)[where].float().mean() > 0.95
    areas = torch.stack(seen).flatten(1).sum(1)
    assert areas.max() <= 0.32 * 25 * 35 and areas.unique().numel() > 20
    assert torch.equal(seen[3], random_rectangle(where, generator(0, 3), (0.05, 0.3)))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (33, 47)])
@pytest.mark.parametrize("packed", [False, True])
def test_cells_of_a_scale_cover_each_pixel_once(k, size, packed):
    cells = grid_cells(k, size)
    assert cells.shape == (k * k, *size) and (cells.sum(0) == 1).all()
    areas = cells.flatten(1).sum(1).float()
    assert areas.min() > 0 and areas.max() <= (size[0] / k + 1) * (size[1] / k + 1)
    passes = grid_passes([k], size, packed)
    assert (torch.stack([p.m for p in passes]).sum(0) == 1).all()
    assert len(passes) == (min(4, k * k) if packed else k * k)


def test_packed_cells_do_not_touch():
    for p in grid_passes([8], 64, packed=True):
        grown = torch.nn.functional.max_pool2d(p.m[None].float(), 3, 1, 1)[0]
        from scipy.ndimage import label

        assert label(grown.numpy(), np.ones((3, 3)))[1] == len(p.cells.split(","))


def test_cells_bear_their_own_names():
    names = [(p.k, p.cells) for p in grid_passes((1, 2, 3), 12)]
    assert len(set(names)) == 14 and names[:3] == [(1, "0-0"), (2, "0-0"), (2, "0-1")]


def test_prototype_mask_takes_the_farthest_places_even_with_ties():
    d = torch.zeros(2, 20, 20)
    d[0, 4:8, 4:8] = 1
    m = prototype_mask(d, 16 / 400)
    assert torch.equal(m[0], d[0] > 0) and m[1].sum() == 16
    wide = prototype_mask(d, 16 / 400, margin=0.1)
    assert torch.equal(wide[0].nonzero().amin(0), torch.tensor([2, 2])) and wide[0].sum() == 64


@pytest.mark.parametrize(
    "call",
    [
        lambda: foreground(torch.rand(3, 8, 8)), lambda: foreground(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)),
        lambda: random_rectangle(torch.zeros(4, 4, dtype=torch.bool), generator(0)), lambda: random_rectangle(torch.ones(4, 4), generator(0)),
        lambda: random_rectangle(torch.ones(4, 4, dtype=torch.bool), generator(0), (0, 0.5)),
        lambda: random_rectangle(torch.ones(4, 4, dtype=torch.bool), generator(0), (0.6, 0.5)),
        lambda: grid_cells(0, 8), lambda: grid_cells(9, 8), lambda: grid_cells(2.0, 8), lambda: grid_passes((), 8), lambda: grid_passes((2, 2), 8),
        lambda: prototype_mask(torch.zeros(1, 4, 4), 0), lambda: prototype_mask(torch.zeros(1, 4, 4), 0.5, -1),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call):
    with pytest.raises(FsadError):
        call()


# ---------------------------------------------------------------- prompts
def test_every_category_has_its_own_parts():
    table = known_parts()
    for dataset in ("mvtec_ad", "visa", "elpv", "minifab", "minifab_dev"):
        for category in datasets.categories(dataset):
            assert (dataset, category) in table
    assert {c for d, c in table if d == "minifab"} == set(NOUNS)
    counts = {d: sum(key[0] == d for key in table) for d in ("mvtec_ad", "visa", "mvtec_loco", "btad")}
    assert counts == {"mvtec_ad": 15, "visa": 12, "mvtec_loco": 5, "btad": 3}
    assert all(noun and parts and parts != DEFAULT_PARTS for noun, parts in table.values())


def test_prompts_follow_the_papers_two_sentences():
    assert hierarchy("visa", "pcb1") == {
        "object": "A perfect printed circuit board.",
        "detail": "A printed circuit board with intact sensor cylinders, pins, chips and solder joints.",
    }
    own = hierarchy("folder", "oil_pump")
    assert own["detail"] == f"An oil pump with intact {DEFAULT_PARTS}."
    assert hierarchy("folder", "clamp", parts={"clamp": "two jaws"})["detail"] == "A clamp with intact two jaws."
    assert hierarchy("mvtec_ad", "pill", noun="tablet")["object"] == "A perfect tablet."
    assert training_prompts(own) == [own["object"], own["detail"], f"{own['object']} {own['detail']}"]
    assert training_prompts(own, ["detail"]) == [own["detail"]] == [inference_prompt(own, ["detail"])]
    assert training_prompts(own, []) == [""]


@pytest.mark.parametrize(
    "call",
    [lambda: hierarchy("folder", "_"), lambda: inference_prompt(hierarchy("", "a"), ["whole"]), lambda: training_prompts({}, ["object"] * 2)],
)
def test_bad_prompts_are_refused(call):
    with pytest.raises(FsadError):
        call()


def test_the_foreground_of_real_photographs():
    """Coins on cloth, held against Otsu's threshold on their brightness; a wall and gravel fill their pictures."""
    from skimage import data
    from skimage.filters import threshold_otsu

    def photograph(pixels):
        return torch.from_numpy(pixels / 255).float().expand(1, 3, *pixels.shape)

    coins = data.coins()[96:170, 90:164]
    bright = torch.from_numpy(coins > threshold_otsu(coins))
    found = foreground(photograph(coins))[0, 0]
    assert (found & bright).sum() / (found | bright).sum() > 0.85
    assert foreground(photograph(data.brick())).all() and foreground(photograph(data.gravel())).all()
