"""Train the two small pretrained networks that baselines insist on, as students of EfficientNet-Lite0, on MiniFab.

    python -m fsad_lib.foundation.miniatures.train_students --network resnet18 --pool data/pool --out data/training/resnet18 --mini data/models/mini
    python -m fsad_lib.foundation.miniatures.train_students --network pdn --pool data/pool --out data/training/pdn --mini data/models/mini
    python -m fsad_lib.foundation.miniatures.train_students --network pdn --out data/training/pdn --mini data/models/mini --export

`resnet18`: the stem and the first three stages of a ResNet-18, the encoder of Reverse Distillation, whose decoder mirrors a ResNet. It learns
the teacher's maps of stride 4, 8 and 16 through linear heads, which are thrown away. The fourth stage would be two thirds of the
weights and nothing here reads it.

`pdn`: EfficientAD's patch description network, small form, 64 channels. It learns, from 33 x 33 pixels alone, what EfficientNet-Lite0 says of that
place: its maps of stride 8 and 16, averaged over 3 x 3 neighbours, enlarged, standardised and projected (Batzner et al. 2023, section 3.1, there with
a Wide ResNet-101 and ImageNet).

A quarter of the images they learn from are parts of the two photographs that come with scikit-learn (CC BY), the rest is MiniFab. What they know of
photographs beyond that, they have from EfficientNet-Lite0's real ImageNet weights (Apache-2.0).
"""

from __future__ import annotations

import json
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import FsadError
from ..backbones import Backbone, load_backbone
from .options import check_pool, learning_rate, save_atomically, training_parser
from .pool import open_pool

SIDE = 256
PDN_CHANNELS = 64
WINDOW = 16  # outputs of the patch description network a side, in training: 96 pixels
MARGIN = 4  # its first output lies over the fifth cell of stride 4
PHOTOGRAPHS = 0.25  # share of the training images
STRIDES = {"resnet18": (4, 8, 16), "pdn": (8, 16)}
FILES = {"resnet18": "backbones/resnet18.safetensors", "pdn": "efficientad/teacher.safetensors"}


class ResNetStudent(nn.Module):
    """ResNet-18's first three stages and a linear head for each of the teacher's maps."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.trunk = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3))
        self.heads = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(self.trunk.feature_info.channels(), channels))
        config = timm.data.resolve_model_data_config(timm.create_model("resnet18"))
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)

    def loss(self, x: Tensor, targets: list[Tensor], rng: np.random.Generator) -> Tensor:
        """Mean squared error to the standardised maps, averaged over the stages."""
        maps = self.trunk((x - self.mean) / self.std)
        return sum(F.mse_loss(head(m), t) for head, m, t in zip(self.heads, maps, targets)) / len(maps)

    def exported(self) -> dict[str, Tensor]:
        """The weights that ship: the network, without what only training needs."""
        return self.trunk.state_dict()


class PdnStudent(nn.Module):
    """EfficientAD's small network; its target is a fixed projection of the teacher's joined maps."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        from anomalib.models.image.efficient_ad.torch_model import SmallPatchDescriptionNetwork

        self.network = SmallPatchDescriptionNetwork(PDN_CHANNELS)
        matrix = torch.randn(sum(channels), PDN_CHANNELS, generator=torch.Generator().manual_seed(0))
        self.register_buffer("projection", torch.linalg.qr(matrix)[0].T[:, :, None, None].contiguous())  # orthonormal rows

    def target(self, targets: list[Tensor]) -> Tensor:
        """(B, 64, 64, 64): one vector for every 4 x 4 pixels of a 256-pixel image."""
        size = SIDE // 4
        maps = [F.interpolate(F.avg_pool2d(t, 3, 1, 1), (size, size), mode="bilinear", align_corners=False) for t in targets]
        return F.conv2d(torch.cat(maps, 1), self.projection)

    def loss(self, x: Tensor, targets: list[Tensor], rng: np.random.Generator) -> Tensor:
        """Mean squared error over a random window; no padding, so a window's outputs are those of the whole image."""
        last = SIDE // 4 - 2 * MARGIN - WINDOW
        top, left = (int(v) for v in rng.integers(0, last + 1, 2))
        pixels = 4 * (WINDOW - 1) + 33
        out = self.network(x[..., 4 * top : 4 * top + pixels, 4 * left : 4 * left + pixels])
        rows, columns = (slice(MARGIN + v, MARGIN + v + WINDOW) for v in (top, left))
        return F.mse_loss(out, self.target(targets)[..., rows, columns])

    def exported(self) -> dict[str, Tensor]:
        """The weights that ship: the network, without what only training needs."""
        return self.network.state_dict()


STUDENTS = {"resnet18": ResNetStudent, "pdn": PdnStudent}


def load_network_teacher(strides: tuple[int, ...], device: str = "cpu") -> Backbone:
    """EfficientNet-Lite0 at 256 pixels, giving its last map of each stride."""
    backbone = load_backbone("efficientnet_lite0", image_size=SIDE, device=device)
    found = [item["reduction"] for item in backbone.model.feature_info]
    backbone.stages = tuple(len(found) - 1 - found[::-1].index(s) for s in strides)
    return backbone


@lru_cache
def _photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


def _photograph(rng: np.random.Generator) -> Tensor:
    """A square part (3, h, h) of one of scikit-learn's two photographs, its colours swapped at random: edges and textures that MiniFab lacks."""
    photograph = _photographs()[int(rng.integers(2))]
    side = int(rng.uniform(0.25, 1.0) * min(photograph.shape[:2]))
    top, left = (int(rng.integers(n - side + 1)) for n in photograph.shape[:2])
    return torch.from_numpy(photograph[top : top + side, left : left + side][..., rng.permutation(3)].copy()).permute(2, 0, 1).float() / 255


def batch(images, step: int, size: int) -> Tensor:
    """Whole images (size, 3, 256, 256) in [0, 1], good and defective, and parts of photographs, mirrored and turned by quarters; the step alone
    decides which."""
    rng, out = np.random.default_rng([6, step]), []
    for _ in range(size):
        if rng.random() < PHOTOGRAPHS:
            x = _photograph(rng)
        else:
            chunk = images[int(rng.integers(len(images)))]
            x = torch.from_numpy(np.array(chunk[int(rng.integers(len(chunk))), int(rng.integers(2))])).permute(2, 0, 1).float() / 255
        x = torch.rot90(x, int(rng.integers(4)), (1, 2))
        x = x.flip(2) if rng.random() < 0.5 else x
        out.append(F.interpolate(x[None], (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)[0])
    return torch.stack(out).clamp(0, 1)


def export(training: Path, mini: Path, network: str) -> Path:
    """Write the trained student to `mini`: kernels in 8-bit floating point (half the bytes, and as much like the teacher to two places), the rest in float16."""
    from ...runs import replacing

    state = torch.load(training / "checkpoint.pt", weights_only=True, map_location="cpu")
    if state["network"] != network:
        raise FsadError(f"{training} holds a training of {state['network']!r}, not of {network!r}.")
    student = STUDENTS[network](state["channels"])
    student.load_state_dict(state["model"])
    short = lambda v: v.to(torch.float8_e4m3fn) if v.ndim == 4 else v.half() if v.is_floating_point() else v  # noqa: E731
    tensors = {k: short(v).contiguous() for k, v in student.exported().items()}
    target = mini / FILES[network]
    with replacing(target) as part:
        save_file(tensors, part, {"format": "pt", "teacher": "EfficientNet-Lite0 (Apache-2.0)", "trained_on": "MiniFab, pretraining split; scikit-learn's two photographs", "steps": str(state["step"])})
    target.chmod(0o644)
    return target


def main() -> None:
    parser = training_parser(__doc__, steps=4000, lr=1e-3, every=250, pool=False)
    parser.add_argument("--network", choices=sorted(STUDENTS), required=True)
    parser.add_argument("--mini", type=Path, required=True, help="the shipped miniatures; written by --export")
    parser.add_argument("--export", action="store_true", help="write the trained network into --mini and stop")
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.export:
        print(export(args.out, args.mini, args.network))
        return
    check_pool(args.pool)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    images, _, _ = open_pool(args.pool)
    teacher = load_network_teacher(STRIDES[args.network], args.device)
    checkpoint = args.out / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True, map_location="cpu") if checkpoint.exists() else None  # step counts stay there: on a GPU, AdamW would wait for each
    if state and state["network"] != args.network:
        raise FsadError(f"{checkpoint} is a training of {state['network']}. Give another --out.")
    if state:
        means, stds = ([m.to(args.device) for m in state[kind]] for kind in ("means", "stds"))
    else:  # of every teacher channel, over the images of the first steps
        maps = [torch.cat(parts) for parts in zip(*(teacher.features(batch(images, i, args.batch)) for i in range(8)))]
        means, stds = ([getattr(m, kind)((0, 2, 3), keepdim=True) for m in maps] for kind in ("mean", "std"))
    channels = [m.shape[1] for m in means]
    student = STUDENTS[args.network](channels).to(args.device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, weight_decay=1e-4)
    step = 0
    if state:
        student.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    start, first, total = time.time(), step, []
    while step < (args.until or args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr, warm_up=100)
        x = batch(images, step, args.batch).to(args.device)
        targets = [(m - mean) / std.clamp_min(1e-6) for m, mean, std in zip(teacher.features(x), means, stds)]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp == "bfloat16"):
            loss = student.loss(x, targets, np.random.default_rng([7, step]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        total.append(float(loss.detach()))
        last = step in (args.steps, args.until)
        if step % 50 == 0 or last:
            # of resnet18's loss, 1 is what the mean of every channel would score; pooling and projecting bring pdn's below it
            row = {"step": step, "loss": round(float(np.mean(total)), 4), "images_per_s": round((step - first) * args.batch / (time.time() - start), 2)}
            total = []
            if step % args.every == 0 or last:
                save_atomically(
                    {"model": student.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "network": args.network, "channels": channels,
                     "means": means, "stds": stds}, checkpoint,
                )  # fmt: skip
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
