"""Train the mini CLIP on MiniFab.

    python -m fsad_lib.foundation.miniatures.train_clip --pool data/pool --out data/training/clip --steps 4000

Five losses: (1) CLIP's contrastive loss where every caption that is true of an image counts as its match; (2) the state of an "object" in
words ("a photo of a flawless object" / "... damaged object"), and which of the two photographs of a scene is the damaged one; (3) noun and
state together, one of 2 x 28 texts ("a photo of a damaged gear"); (4) an auxiliary linear read-out of the patch tokens that marks
defective cells; (5) with --teacher-weight, a linear read-out of the patch tokens that must give EfficientNet-Lite0's feature maps
(ImageNet weights, stride 8), so that thin lines are kept. (4) and (5) make up for seeing 10^5 images instead of 10^9; their read-outs are
dropped after training.
Resumable: run the same command again. From --freeze-text-at on, all that the diffusion model reads of the text tower stays fixed (all but the
last block and the projection), so that the diffusion model can be trained on it meanwhile.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...datasets.minifab.defects import SEEN
from ...datasets.minifab.designs import NOUNS, OBJECTS
from ..backbones import Backbone, load_backbone
from ..clip import load_clip
from .captions import COLOUR_NAMES, is_true, make_caption, state_pair
from .options import learning_rate, save_atomically, training_parser
from .pool import open_pool

# Patches of 8 pixels: 8 x 8 x 3 = 192 numbers fit into a token of width 192, so nothing of a scratch is lost. With patches of 16 (768
# numbers) discolorations were told apart and scratches were not.
MODEL = {
    "embed_dim": 192,
    "vision_cfg": {"image_size": 96, "layers": 4, "width": 192, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 6, "layers": 4},
}
TEACHER_WIDTH = 40  # channels of EfficientNet-Lite0's last stage of stride 8
CONTEXT = 26  # longest caption in tokens; the text tower is causal, so cutting the padding changes nothing


def photo_effect(x: torch.Tensor, effect: str, rng: np.random.Generator) -> torch.Tensor:
    """Change one image (3, H, W) in [0, 1] as its caption says."""
    size = x.shape[-1]
    if effect == "dark":
        return x * rng.uniform(0.4, 0.65)
    if effect == "bright":
        return 1 - (1 - x) * rng.uniform(0.4, 0.65)
    if effect == "blurry":
        small = F.interpolate(x[None], scale_factor=rng.uniform(0.35, 0.55), mode="bilinear", antialias=True)
        return F.interpolate(small, size=(size, size), mode="bilinear")[0]
    if effect in ("cropped", "large"):
        side = int(size * (rng.uniform(0.6, 0.8) if effect == "cropped" else rng.uniform(0.78, 0.9)))
        room = size - side
        top, left = (rng.integers(room + 1), rng.integers(room + 1)) if effect == "cropped" else (room // 2, room // 2)
        return F.interpolate(x[None, :, top : top + side, left : left + side], size=(size, size), mode="bilinear")[0]
    if effect == "small":
        side = int(size * rng.uniform(0.65, 0.85))
        pad = size - side
        left = pad // 2
        small = F.interpolate(x[None], size=(side, side), mode="bilinear", antialias=True)
        return F.pad(small, (left, pad - left, left, pad - left), mode="replicate")[0]
    if effect == "jpeg":
        blocks = F.interpolate(F.avg_pool2d(x[None], 4), scale_factor=4.0, mode="nearest")[0]
        return 0.6 * blocks + 0.4 * (x * 12).round() / 12
    return x


def tokenize(texts: list[str]) -> torch.Tensor:
    """Token ids (B, L) cut to the longest text of the batch."""
    ids = open_clip.tokenize(texts)
    return ids[:, : int((ids != 0).sum(1).max())]


def encode_text(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Unit text embeddings (B, D) of ids (B, L <= 77), exact without the padding because attention is causal."""
    length = ids.shape[1]
    h = model.token_embedding(ids) + model.positional_embedding[:length]
    h = model.ln_final(model.transformer(h, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(h[torch.arange(len(ids)), ids.argmax(1)] @ model.text_projection, dim=-1)


class Batches:
    """Random batches of pairs; the step number alone decides what is drawn, so that a resumed run goes on as if never stopped."""

    def __init__(self, folder: str | os.PathLike, pairs: int, seed: int = 0, objects: float = 1.0):
        self.images, self.labels, self.cells = open_pool(folder)
        self.pairs, self.seed = pairs, seed
        weight = np.where(np.isin(self.labels[:, 0], [NOUNS.index(noun) for noun in OBJECTS]), objects, 1.0)
        self.share = None if objects == 1 else weight / weight.sum()

    def __call__(self, step: int):
        rng = np.random.default_rng([self.seed, step])
        index = rng.choice(len(self.labels), self.pairs, replace=False, p=self.share)
        raw = np.stack([self.images[i // len(self.images[0])][i % len(self.images[0])] for i in index])
        x = torch.from_numpy(raw).flatten(0, 1).permute(0, 3, 1, 2).float().div_(255)
        nouns, colours = self.labels[index, 0].repeat(2), self.labels[index, 1].repeat(2)
        kinds = np.stack([np.full(self.pairs, -1), self.labels[index, 2]], 1).reshape(-1)
        cells = torch.from_numpy(self.cells[index].astype(np.float32))
        cells = torch.stack([torch.zeros_like(cells), cells], 1).flatten(0, 1)
        captions = [make_caption(rng, NOUNS[n], COLOUR_NAMES[c], None if k < 0 else SEEN[k]) for n, c, k in zip(nouns, colours, kinds)]
        turn, flip = int(rng.integers(4)), rng.random() < 0.5
        x, cells = torch.rot90(x, turn, (2, 3)), torch.rot90(cells, turn, (1, 2))
        if flip:
            x, cells = x.flip(3), cells.flip(2)
        x = x.clone()
        local = torch.ones(len(x), dtype=torch.bool)
        for i, caption in enumerate(captions):
            if caption.effect:
                x[i] = photo_effect(x[i], caption.effect, rng)
                local[i] = caption.effect in ("dark", "bright", "jpeg", "blurry")
        pairs = [state_pair(rng, "object")] + [state_pair(rng, noun) for noun in NOUNS]
        return x, captions, is_true(captions, nouns, colours, kinds), nouns, kinds, cells, local, pairs


def make_model(image_size: int, patch_size: int, layers: int) -> open_clip.CLIP:
    """The mini CLIP, randomly initialised, with image and patch side in pixels and the number of layers of the image tower."""
    vision = MODEL["vision_cfg"] | {"image_size": image_size, "patch_size": patch_size, "layers": layers}
    model = open_clip.CLIP(**MODEL | {"vision_cfg": vision})
    model.visual.output_tokens = True
    with torch.no_grad():  # rows that no caption trains keep these values, so that only the trained rows need to be shipped
        model.token_embedding.weight.copy_(torch.randn(model.token_embedding.weight.shape, generator=torch.Generator().manual_seed(0)) * 0.02)
    return model


@torch.no_grad()
def grow(model: open_clip.CLIP, state: dict[str, torch.Tensor]) -> None:
    """Start `model` from the weights `state` of one with other patches: kernels and positions are resized, layers beyond are dropped."""
    new = model.state_dict()
    state = {k: v for k, v in state.items() if k in new}
    kernel, side = new["visual.conv1.weight"], int(math.isqrt(len(new["visual.positional_embedding"]) - 1))
    small = F.interpolate(state["visual.conv1.weight"], size=kernel.shape[-2:], mode="area")
    state["visual.conv1.weight"] = small * (state["visual.conv1.weight"][0, 0].numel() / small[0, 0].numel()) + 0.5 * kernel
    positions = state["visual.positional_embedding"]
    old = int(math.isqrt(len(positions) - 1))
    grid = F.interpolate(positions[1:].T.reshape(1, -1, old, old), size=(side, side), mode="bicubic")[0].flatten(1).T
    state["visual.positional_embedding"] = torch.cat([positions[:1], grid])
    model.load_state_dict(state)


def prepare(x: torch.Tensor, model: open_clip.CLIP) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] at the model's size, normalised, on its device."""
    mean, std = (torch.tensor(a).view(1, 3, 1, 1) for a in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    x = F.interpolate(x, size=model.visual.image_size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return ((x - mean) / std).to(model.logit_scale.device)


@torch.no_grad()
def teacher_features(teacher: Backbone, x: torch.Tensor, side: int) -> torch.Tensor:
    """Stride-8 features of images (B, 3, H, W) in [0, 1] as (B, side * side, C), each channel standardised over the batch."""
    (maps,) = teacher.features(x)
    tokens = F.adaptive_avg_pool2d(maps.float(), side).flatten(2).transpose(1, 2)
    return (tokens - tokens.mean((0, 1))) / (tokens.std((0, 1)) + 1e-4)


def losses(
    model: open_clip.CLIP, head: torch.nn.Linear, batch: tuple, amp: torch.dtype | None, ranking: float = 0.0, teacher: Backbone | None = None
) -> tuple[torch.Tensor, ...]:
    """-> (contrastive, state, joint, cells, teacher) losses of one batch; `ranking` weighs the comparison of the two photographs of a
    scene; `head` reads a token: first the cell's defect, then the teacher's features, if there is a teacher (else that loss is 0)."""
    x, captions, true, nouns, kinds, cells, local, pairs = batch
    device = model.logit_scale.device
    with torch.autocast(device.type, dtype=amp or torch.bfloat16, enabled=amp is not None):
        pooled, tokens = model.visual(prepare(x, model))
        g = encode_text(model, tokenize([c.text for c in captions]).to(device)).float()
        g_pairs = encode_text(model, tokenize([text for pair in pairs for text in pair]).to(device)).float()
        read = head(tokens).float()
    f, scale = F.normalize(pooled.float(), dim=-1), model.logit_scale.exp()
    target = torch.from_numpy(true).to(device).float()
    logits = scale * f @ g.T
    contrastive = 0.5 * (F.cross_entropy(logits, target / target.sum(1, keepdim=True)) + F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True)))
    state = torch.from_numpy((kinds >= 0).astype(np.int64)).to(device)
    by_object = scale * f @ g_pairs[:2].T
    margin = (by_object[:, 1] - by_object[:, 0]).view(-1, 2)  # good and defective photograph of one scene
    state_loss = F.cross_entropy(by_object, state) + ranking * F.softplus(margin[:, 0] - margin[:, 1]).mean()
    joint = F.cross_entropy(scale * f @ g_pairs[2:].T, 2 * torch.from_numpy(nouns).to(device) + state)
    side = int(math.isqrt(tokens.shape[1]))
    defective = (F.adaptive_max_pool2d(cells[:, None], side).flatten(1) > 0.04).float().to(device)
    weight = torch.tensor(8.0, device=device)
    per_image = F.binary_cross_entropy_with_logits(read[..., 0], defective, pos_weight=weight, reduction="none").mean(1)
    taught = 1 - F.cosine_similarity(read[..., 1:], teacher_features(teacher, x, side), dim=-1).mean() if teacher else torch.zeros(())
    return contrastive, state_loss, joint, per_image[local.to(device)].mean(), taught


@torch.no_grad()
def development_auroc(model: open_clip.CLIP, folder: Path) -> dict[str, float]:
    """Image AUROC of "damaged {word}" against "flawless {word}" on the development split, mean over categories: for the category's
    noun and for "object"; defect kinds seen in pretraining and unseen ones apart."""
    from PIL import Image
    from sklearn.metrics import roc_auc_score

    from ...datasets import minifab

    device, rows = model.logit_scale.device, []
    for category in minifab.CATEGORIES["development"]:
        paths = sorted((minifab.write(folder, "development", category) / "test").glob("*/*.png"))
        x = torch.stack([torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1) for p in paths]).float() / 255
        f = torch.cat([F.normalize(model.visual(prepare(b, model))[0].float(), dim=-1) for b in x.split(128)])
        kinds = np.array([p.parent.name for p in paths])
        row = {}
        for name in ("noun", "object"):
            word = category if name == "noun" else "object"
            g = encode_text(model, tokenize([f"a photo of a {s} {word}" for s in ("flawless", "damaged")]).to(device)).float()
            score = (f @ (g[1] - g[0])).cpu().numpy()
            for group, member in (("seen", np.isin(kinds, minifab.SEEN)), ("unseen", np.isin(kinds, list(minifab.UNSEEN)))):
                keep = member | (kinds == "good")
                row[f"{name}_{group}"] = roc_auc_score(kinds[keep] != "good", score[keep])
        rows.append(row)
    return {k: float(np.mean([r[k] for r in rows])) for k in rows[0]} | {"worst_noun_seen": min(r["noun_seen"] for r in rows)}


def main() -> None:
    parser = training_parser(__doc__, steps=4000, lr=6e-4, every=250)
    parser.add_argument("--datasets", type=Path, default=Path("data/datasets"))
    parser.add_argument("--freeze-text-at", type=int, default=1500)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--state-weight", type=float, default=1.0)
    parser.add_argument("--cells-weight", type=float, default=0.5)
    parser.add_argument("--joint-weight", type=float, default=1.0)
    parser.add_argument("--teacher-weight", type=float, default=0.0)
    parser.add_argument("--ranking", type=float, default=0.0)
    parser.add_argument("--objects", type=float, default=1.0, help="how much likelier an object is drawn than a texture")
    parser.add_argument("--image-size", type=int, default=MODEL["vision_cfg"]["image_size"])
    parser.add_argument("--patch-size", type=int, default=MODEL["vision_cfg"]["patch_size"])
    parser.add_argument("--layers", type=int, default=MODEL["vision_cfg"]["layers"])
    parser.add_argument("--grow", type=Path, default=None, help="a checkpoint of a model with other patches to start from")
    parser.add_argument("--start", type=Path, default=None, help="an exported model (data/models/mini/clip) to start from")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    amp = torch.bfloat16 if args.amp == "bfloat16" else None
    args.out.mkdir(parents=True, exist_ok=True)
    model = make_model(args.image_size, args.patch_size, args.layers).to(args.device)
    teacher = load_backbone(image_size=args.image_size, stages=(2,), device=args.device) if args.teacher_weight else None
    head = torch.nn.Linear(MODEL["vision_cfg"]["width"], 1 + TEACHER_WIDTH * bool(teacher)).to(args.device)
    decay = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim >= 2 and "embedding" not in n)]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": others + list(head.parameters()), "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.98))
    text_modules = [*model.transformer.resblocks[:-1], model.token_embedding, model.ln_final]
    step, checkpoint, log = 0, args.out / "checkpoint.pt", args.out / "log.jsonl"
    if args.start and not checkpoint.exists():
        model.load_state_dict(load_clip(args.start).model.state_dict())
    elif args.grow and not checkpoint.exists():
        grow(model, torch.load(args.grow, weights_only=True, map_location=args.device)["model"])
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")  # step counts stay there: on a GPU, AdamW would wait for each
        model.load_state_dict(state["model"]), head.load_state_dict(state["head"]), optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    batches, sums, start, first = Batches(args.pool, args.pairs, objects=args.objects), np.zeros(5), time.time(), step
    while step < (args.until or args.steps):
        if step >= args.freeze_text_at:
            for p in [p for module in text_modules for p in module.parameters()] + [model.positional_embedding]:
                p.requires_grad_(False)
                p.grad = None
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        optimizer.zero_grad(set_to_none=True)
        with sdpa_kernel(SDPBackend.MATH if args.device == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            parts = losses(model, head, batches(step), amp, args.ranking, teacher)  # on a CPU the fused bfloat16 kernel's backward is slow
            (parts[0] + args.state_weight * parts[1] + args.joint_weight * parts[2] + args.cells_weight * parts[3] + args.teacher_weight * parts[4]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        sums += [float(p.detach()) for p in parts]
        step += 1
        last = step in (args.steps, args.until)
        if step % 50 == 0 or last:
            rate = (step - first) * 2 * args.pairs / (time.time() - start)
            since = step - max(first, (step - 1) // 50 * 50)
            row = {"step": step} | dict(zip(("contrastive", "state", "joint", "cells", "teacher"), (sums / since).tolist()))
            row |= {"scale": float(model.logit_scale.detach().exp()), "images_per_s": rate}
            sums[:] = 0
            if step % args.every == 0 or last:
                model.eval()
                row |= development_auroc(model, args.datasets / "minifab_dev")
                model.train()
                save_atomically({"model": model.state_dict(), "head": head.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, checkpoint)
            row = {k: round(v, 4) for k, v in row.items()}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
        if step == args.freeze_text_at:
            save_atomically({"model": model.state_dict()}, args.out / "frozen_text.pt")


if __name__ == "__main__":
    main()
