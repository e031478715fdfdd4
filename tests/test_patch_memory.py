import pytest
import timm
import torch
import torch.nn.functional as F

from fsad_lib.errors import FsadError
from fsad_lib.foundation.backbones import Backbone, load_backbone
from fsad_lib.patch_memory import PatchMemory, top_share_mean


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone(timm.create_model("resnet18"), "resnet18", 64)


@pytest.fixture(scope="module")
def x():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_distances_against_a_slow_loop(backbone, x):
    memory = PatchMemory(backbone).add_shots(x[:2])
    _, maps = memory(x[2:])
    fine, coarse = (F.avg_pool2d(m, 3, 1, 1) for m in backbone.features(x))
    features = torch.cat([fine, F.interpolate(coarse, (8, 8), mode="bilinear")], dim=1)
    stored = features[:2].permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    for i in range(8):
        for j in range(8):
            want = (1 - F.cosine_similarity(features[2, :, i, j][None], stored)).min()
            assert torch.allclose(maps[0, i, j], want, atol=1e-5)


def test_image_score_is_the_mean_of_the_top_share(backbone, x):
    memory = PatchMemory(backbone, share=0.05).add_shots(x[:1])
    image, maps = memory(x)
    want = maps.flatten(1).sort(descending=True).values[:, :4].mean(dim=1)  # 5 % of 64, rounded up
    assert torch.allclose(image, want) and torch.equal(memory.score(x), image)
    assert image[0] < 1e-5 and (image[1:] > 1e-4).all()
    for n in (100, 700, 900, 50):
        values = torch.arange(float(n)).reshape(1, 1, n)
        top = max(1, n // 100)
        assert top_share_mean(values).item() == pytest.approx(n - 1 - (top - 1) / 2)


def test_shots_can_be_added_one_by_one(backbone, x):
    one = PatchMemory(backbone).add_shots(x[:1]).add_shots(x[1:2])
    both = PatchMemory(backbone).add_shots(x[:2])
    assert one.shots == 2 and torch.allclose(one.maps(x), both.maps(x), atol=1e-5)


def test_pixel_maps(backbone, x):
    memory = PatchMemory(backbone).add_shots(x[:1])
    assert memory.maps(x, 50).shape == (3, 50, 50)
    constant = torch.full((1, 8, 8), 0.3)
    assert torch.allclose(memory.upsample(constant, 32), torch.full((1, 32, 32), 0.3), atol=1e-6)
    spike = torch.zeros(1, 8, 8)
    spike[0, 2, 5] = 1
    peak = memory.upsample(spike, 256).flatten().argmax().item()
    assert abs(peak // 256 - 79.5) <= 1 and abs(peak % 256 - 175.5) <= 1
    sharp = PatchMemory(backbone, sigma=0)
    assert torch.equal(sharp.upsample(spike, 8), spike)


def test_a_scratch_on_a_photograph_is_found():
    """Real ImageNet features: the most anomalous pixel lies in the patch that was changed."""
    rows = torch.linspace(0, 20, 128).sin()[:, None] * 0.25 + 0.5
    good = rows.expand(3, 128, 128)[None].clone()
    bad = good.clone()
    bad[..., 60:70, 90:100] = 0.0
    memory = PatchMemory(load_backbone(image_size=128)).add_shots(good)
    image, _ = memory(torch.cat([good, bad]))
    peak = memory.maps(bad, 128).flatten().argmax().item()
    assert image[1] > image[0] + 0.05
    assert 52 <= peak // 128 <= 78 and 82 <= peak % 128 <= 108


def test_bad_input(backbone, x):
    with pytest.raises(FsadError, match="empty"):
        PatchMemory(backbone).score(x)
    with pytest.raises(FsadError, match="at least one"):
        PatchMemory(backbone).add_shots(x[:0])
    with pytest.raises(FsadError, match="share"):
        PatchMemory(backbone, share=0)
    with pytest.raises(FsadError, match="B, 3, H, W"):
        PatchMemory(backbone).add_shots(x[0])
