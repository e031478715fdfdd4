"""AnomalySD's three stages, as the notebooks call them: personalize, synthesize, evaluate.

One run covers every category of a data set (category "all"): one model for (data set, shots, seed). Each stage takes its
:class:`fsad_lib.runs.Run`, returns what it made, and keeps every product the moment it is finished, so that a repeated call loads what is
there and an interrupted one goes on: training at its last checkpoint, judging at the image where it stopped.

=================  ================================================================================================
11_personalize     unet.safetensors, decoder.safetensors (the fine-tuned weights), trace_unet.csv, trace_decoder.csv
21_synthesize      twins.npz: a few test images, their masks, normal twins and differences
41_evaluate        predictions.parquet, maps.npz, rows.json
=================  ================================================================================================
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsad_lib import datasets
from fsad_lib.anomalysd.detector import AnomalySD, Category, Settings
from fsad_lib.anomalysd.finetune import decoder_parameters, finetune_decoder, finetune_unet
from fsad_lib.anomalysd.masks import foreground
from fsad_lib.anomalysd.prompts import hierarchy, inference_prompt, noun_of, training_prompts
from fsad_lib.anomalysd.score import fuse, image_score
from fsad_lib.datasets.sample import limit_of, sample
from fsad_lib.errors import FsadError
from fsad_lib.foundation.backbones import load_backbone
from fsad_lib.foundation.clip import check_windows, clip_of
from fsad_lib.foundation.device import best_device
from fsad_lib.foundation.inpainting import Inpainting, load_inpainting
from fsad_lib.foundation.perceptual import Lpips, load_lpips
from fsad_lib.metrics import metric_rows, pixel_metrics
from fsad_lib.patch_memory import PatchMemory, top_share_mean
from fsad_lib.profiles import missing_checkpoints, sections
from fsad_lib.progress import counter
from fsad_lib.runs import Run, absolute_path, portable_path, read_record, replacing, shared_run, write_json
from fsad_lib.winclip.detector import WinCLIP, upsample
from fsad_lib.winclip.windows import extract

__all__ = [
    "ALPHAS", "Evaluated", "Personalized", "Synthesized", "build_detector", "evaluate", "load_models", "load_tuned", "personalize",
    "synthesize", "tuned_run",
]  # fmt: skip

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The weights of S_pg whose effect every run measures."""

SHOWN = ("anomalysd", "given")
"""The method and protocol whose maps are kept for pictures."""

MAP_SIZE = 256  # pixel metrics are taken at this side at most
KEPT_SIZE = 64  # side of the maps that are kept for pictures
PICTURE_SIZE = 128  # side of the pictures that are kept of the twins, at most
EXAMPLES = 4  # categories of which stage 21 shows a good and a defective test image


@dataclass(frozen=True)
class Personalized:
    """x (N, 3, H, W) the shots of all categories; paths, category of each; foreground (N, 1, H, W) bool; prompts category -> level ->
    sentence; trace_unet (step, loss) and trace_decoder (step, mse, perceptual, loss)."""

    x: Tensor
    paths: list[str]
    category: list[str]
    foreground: Tensor
    prompts: dict[str, dict[str, str]]
    trace_unet: pd.DataFrame
    trace_decoder: pd.DataFrame


@dataclass(frozen=True)
class Synthesized:
    """n test images x (n, 3, H, W) with path, category, label; their passes k (n, P), cells (n, P), masks m (n, P, H, W); twins x_hat
    (n, P, 3, H, W) and differences d (n, P, H, W); decoded (n, 3, H, W), the autoencoder alone; maps "S<k>", "s_ms", "s_pg", "map" ->
    (n, H, W). H = W is at most 128."""

    x: Tensor
    path: list[str]
    category: list[str]
    label: list[int]
    k: np.ndarray
    cells: np.ndarray
    m: np.ndarray
    x_hat: Tensor
    d: np.ndarray
    decoded: Tensor
    maps: dict[str, np.ndarray]


@dataclass(frozen=True)
class Evaluated:
    """predictions one row for each image, method and part (path, category, label, defect, seen, treated_as, method, part, score); rows the
    metrics of each category, for ``run.finish({"rows": rows})``; maps S_map (N, 64, 64) float32 in the order of paths."""

    predictions: pd.DataFrame
    rows: list[dict[str, Any]]
    maps: np.ndarray
    paths: list[str]


# -------------------------------------------------------------------- models
def load_models(profile: Any) -> tuple[Inpainting, Lpips]:
    """The inpainting model and the perceptual distance of a profile, on the GPU if there is one; anew at each call, since fine-tuning
    changes the model in place."""
    missing_checkpoints(profile, sections("anomalysd", profile, "11_personalize"))
    folder, device = profile.path("inpainting"), best_device()
    shared = not (folder / "text_encoder").is_dir()
    clip = clip_of(profile) if shared else None
    model = load_inpainting(folder, clip, device, profile.inpainting.image_size)
    model.amp = torch.bfloat16 if profile.anomalysd.precision == "bfloat16" else None
    return model, load_lpips(profile.path("perceptual"), device)


def tuned_run(run: Run) -> Run:
    """The stage 11 run that keeps the model which a run uses: runs that differ in what fine-tuning does not use share one."""
    return shared_run(run, "11_personalize")


def _check_inputs(run: Run) -> None:
    """The run's own check, and what otherwise only the last stage would notice: cells smaller than a latent one, windows larger than CLIP's grid."""
    run.check_inputs()
    p = run.profile
    check_windows(p, "winclip_clip")
    for name in dict(p.anomalysd.parts):
        if name not in run.categories:
            raise FsadError(f"anomalysd.parts has words for {name!r}; expected a category of this run: {', '.join(run.categories)}.")
    levels = len(read_record(p.path("inpainting") / "vae" / "config.json").get("block_out_channels", [0]))
    most, largest = p.inpainting.image_size >> (levels - 1), max(p.anomalysd.scales)
    if largest > most:
        raise FsadError(
            f"anomalysd.scales: found {largest} cells a side; expected at most {most}, the latent cells, for a smaller region would not be repainted. Lower it."
        )


# -------------------------------------------------------------------- stage 1
def personalize(run: Run) -> Personalized:
    """Fine-tune one model on the shots of all categories: the U-Net to repaint, then the decoder to draw sharply.

    Args:
        run: a run of stage "11_personalize"; its profile's section ``anomalysd`` holds all hyper-parameters. Products lie in the folder
            of :func:`tuned_run`.

    Raises:
        FsadError: a missing checkpoint, images that cannot be read, fewer shots than asked for, cells finer than the latents, or a
            training that diverged.
    """
    _check_inputs(run)
    run = tuned_run(run)
    shots = [(name, path) for name in run.categories for path in run.shot_paths(name)]
    names, paths = [name for name, _ in shots], [path for _, path in shots]
    x = datasets.read_images(paths, run.profile.inpainting.image_size)
    where = foreground(x) if run.profile.anomalysd.foreground else torch.ones_like(x[:, :1], dtype=torch.bool)
    prompts = {name: hierarchy(run.dataset, name, parts=dict(run.profile.anomalysd.parts)) for name in run.categories}
    if not run.has("unet.safetensors", "trace_unet.csv", "decoder.safetensors", "trace_decoder.csv"):
        with run.making():
            _finetune(run, x, [prompts[name] for name in names], where)
    traces = [pd.read_csv(run.product_path(f"trace_{part}.csv")) for part in ("unet", "decoder")]
    return Personalized(x, paths, names, where, prompts, *traces)


def _finetune(run: Run, x: Tensor, prompts: Sequence[dict[str, str]], where: Tensor) -> None:
    a = run.profile.anomalysd
    if not run.has("unet.safetensors", "trace_unet.csv"):
        model, _ = load_models(run.profile)
        trace = finetune_unet(
            model, x, [training_prompts(levels, a.prompt_levels) for levels in prompts], where, steps=a.steps_unet, lr=a.lr_unet,
            batch_size=a.train_batch_size, area=a.area, seed=run.seed, gradient_checkpointing=a.gradient_checkpointing,
            checkpoint=run.scratch("unet.pt"), checkpoint_every=_every(a.steps_unet), progress=counter("fine-tune the U-Net"),
        )  # fmt: skip
        _keep(run, "unet", trace, model.unet.state_dict())
        del model  # before the next one is loaded: a card need not hold both
    if not run.has("decoder.safetensors", "trace_decoder.csv"):
        model, lpips = load_models(run.profile)
        trace = finetune_decoder(
            model, x, lpips, beta=a.beta, steps=a.steps_decoder, lr=a.lr_decoder, batch_size=a.train_batch_size, seed=run.seed,
            gradient_checkpointing=a.gradient_checkpointing, checkpoint=run.scratch("decoder.pt"),
            checkpoint_every=_every(a.steps_decoder), progress=counter("fine-tune the decoder"),
        )  # fmt: skip
        _keep(run, "decoder", trace, {str(i): p for i, p in enumerate(decoder_parameters(model.vae))})


def _every(steps: int) -> int:
    """Steps between checkpoints, eight times a training: a large model's state is gigabytes."""
    return max(1, steps // 8)


def _keep(run: Run, part: str, trace: pd.DataFrame, state: dict[str, Tensor]) -> None:
    """Trace and weights as products, the weights in the profile's precision; the training's own state is no longer needed."""
    dtype = getattr(torch, run.profile.anomalysd.precision)
    with run.writing(f"trace_{part}.csv") as path:
        trace.to_csv(path, index=False)
    with run.writing(f"{part}.safetensors") as path:
        save_file({k: v.detach().to("cpu", dtype).contiguous() for k, v in state.items()}, path)
    run.scratch(f"{part}.pt").unlink(missing_ok=True)


def load_tuned(run: Run) -> tuple[Inpainting, Lpips]:
    """The fine-tuned model of a run, and the perceptual distance; it is fine-tuned now if it has not been."""
    personalize(run)
    source = tuned_run(run)
    model, lpips = load_models(run.profile)
    model.unet.load_state_dict({k: v.float() for k, v in load_file(source.product_path("unet.safetensors")).items()})
    decoder = load_file(source.product_path("decoder.safetensors"))
    with torch.no_grad():
        for i, p in enumerate(decoder_parameters(model.vae)):
            p.copy_(decoder[str(i)])
    return model, lpips


def build_detector(run: Run, **changes: Any) -> AnomalySD:
    """The detector of a run of stage 21 or 41: fine-tuned model, prompts and normal patches of every category.

    Args:
        changes: replace values of :class:`fsad_lib.anomalysd.detector.Settings`.
    """
    p, a = run.profile, run.profile.anomalysd
    model, lpips = load_tuned(run)
    backbone = load_backbone(p.backbone.name, p.path("backbone"), p.backbone.image_size, device=best_device())
    categories = {}
    for name in run.categories:
        prompt = inference_prompt(hierarchy(run.dataset, name, parts=dict(a.parts)), a.prompt_levels)
        x = datasets.read_images(run.shot_paths(name), model.image_size)
        categories[name] = Category(prompt, PatchMemory(backbone).add_shots(x))
    values = {field.name: getattr(a, field.name) for field in fields(Settings) if field.name != "seed"}
    return AnomalySD(model, lpips, categories, Settings(**(values | {"seed": run.seed} | changes)))


# -------------------------------------------------------------------- stage 2
def synthesize(run: Run) -> Synthesized:
    """Normal twins of a good and a defective test image of up to four categories, mask by mask, each pass decoded on its own.

    Args:
        run: a run of stage "21_synthesize".

    Raises:
        FsadError: no test image; see also :func:`personalize`, which runs first where it has not.
    """
    _check_inputs(run)
    if not run.has("twins.npz"):
        detector = build_detector(run, merged=False)
        test = run.table().query("split == 'test'")
        chosen = pd.concat([sample(test[test.category == name], 2) for name in run.categories[:EXAMPLES]])
        if chosen.empty:
            raise FsadError(f"no test images in {run.dataset}/{run.category}; put the images to judge into test/ folders.")
        made = [_repainted(detector, path, name) for path, name in zip(chosen.path, chosen.category, strict=True)]
        arrays = {key: np.stack([one[key] for one in made]) for key in made[0]}
        with run.writing("twins.npz") as path:
            np.savez_compressed(
                path, path=np.array([portable_path(p) for p in chosen.path], str), category=np.array(chosen.category.tolist(), str),
                label=chosen.label.to_numpy(int), **arrays,
            )  # fmt: skip
    with np.load(run.product_path("twins.npz")) as file:
        f = {name: file[name] for name in file.files}
    maps = {name.removeprefix("map."): f[name].astype(np.float32) for name in f if name.startswith("map.")}
    x, x_hat, decoded = (torch.from_numpy(f[name]).float().div(255) for name in ("x", "x_hat", "decoded"))
    return Synthesized(
        x, [absolute_path(p) for p in f["path"].tolist()], f["category"].tolist(), f["label"].tolist(), f["k"], f["cells"], f["m"], x_hat,
        f["d"].astype(np.float32), decoded, maps,
    )  # fmt: skip


@torch.no_grad()
def _repainted(detector: AnomalySD, path: str, category: str) -> dict[str, np.ndarray]:
    model = detector.model
    x = datasets.read_images([path], model.image_size)
    passes = detector.passes(x, category)
    x_hat, side = detector.repaint(x, passes, category), min(PICTURE_SIZE, model.image_size)
    x, m = x.to(x_hat), torch.stack([p.m for p in passes])
    d, parts = detector.difference(x, x_hat), detector.maps(x, x_hat, passes)
    pictures = {"x": x, "x_hat": x_hat, "decoded": model.decode(model.posterior(x)[0])}
    return {
        **{k: (_smaller(v, side) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy().squeeze(0 if k != "x_hat" else ())
           for k, v in pictures.items()},
        "k": np.array([p.k for p in passes]), "cells": np.array([p.cells for p in passes], str),
        "m": (_smaller(m[:, None].float(), side)[:, 0] > 0.5).cpu().numpy(), "d": _smaller(d[:, None], side)[:, 0].half().cpu().numpy(),
        **{f"map.{k}": _smaller(v[:, None], side)[0, 0].half().cpu().numpy() for k, v in parts.items() if v is not None},
    }  # fmt: skip


def _smaller(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) averaged down to at most ``side``."""
    return x if x.shape[-1] <= side else F.interpolate(x, (side, side), mode="area")


# -------------------------------------------------------------------- stage 4
def evaluate(run: Run) -> Evaluated:
    """Judge the test images of every category by AnomalySD, its parts, its controls and its rivals.

    ===================  =============================================================================================
    method               what it is
    ===================  =============================================================================================
    anomalysd            the image score and S_map
    scale_<k>            one scale alone, S^(k)
    alpha_<a>            another weight of the prototype-guided map: 0 without it, 1 nothing else
    roundtrip            control: D(x, VAE(x)), no inpainting at all
    guided_roundtrip     control: S_map with VAE(x) in place of every twin, inside its mask: the prototype-guided mask without repainting
    against_roundtrip    control: D(VAE(x), x_hat) in place of D(x, x_hat): both have gone through the decoder
    winclip              WinCLIP+ on WinCLIP's own CLIP
    patch_memory         nearest neighbours over the backbone's patches
    ===================  =============================================================================================

    The column ``part`` is the protocol: "given" (prompt and memory of the image's category), "unknown" (those of the category whose
    normal patches lie nearest to the image: the same choice for every method), "shared" (rivals only: one memory of all categories, the
    word "object").

    Args:
        run: a run of stage "41_evaluate".

    Raises:
        FsadError: no test image, a mask that does not fit its image; see also :func:`personalize`, which runs first where it has not.
    """
    made = ("predictions.parquet", "maps.npz", "rows.json")
    _check_inputs(run)
    if not run.has(*made):
        test, judge = run.table().query("split == 'test'"), _Judge(run)
        if test.empty:
            raise FsadError(f"no test images in {run.dataset}/{run.category}; put the images to judge into test/ folders.")
        found, limit = [], limit_of(run.profile.anomalysd.test_images, run.dataset)
        for name in run.categories:
            chosen = sample(test[test.category == name], limit).reset_index(drop=True)
            if len(chosen):
                found.append(_category(run, judge, name, chosen))
        with run.writing(made[0]) as path:
            predictions = pd.concat([one[0] for one in found], ignore_index=True)
            predictions.assign(path=predictions["path"].map(portable_path)).to_parquet(path, index=False)
        with run.writing(made[1]) as path:
            paths = [portable_path(p) for one in found for p in one[0].drop_duplicates("path").path]
            np.savez_compressed(path, paths=np.array(paths, str), maps=np.concatenate([one[2] for one in found]))
        with run.writing(made[2]) as path:
            write_json(path, [row for one in found for row in one[1]])
    with np.load(run.product_path(made[1])) as file:
        maps, paths = file["maps"].astype(np.float32), [absolute_path(p) for p in file["paths"].tolist()]
    rows = json.loads(run.product_path(made[2]).read_text())
    predictions = pd.read_parquet(run.product_path(made[0]))
    return Evaluated(predictions.assign(path=predictions["path"].map(absolute_path)), rows, maps, paths)


class _Judge:
    """Everything that judges an image, loaded when the first image needs it (a resumed run may need none)."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def detector(self) -> AnomalySD:
        return build_detector(self.run)

    @cached_property
    def rivals(self) -> tuple[dict, dict, dict]:
        """Their image sizes, WinCLIP+ and the patch memory for each category, and under "" for all of them together."""
        p, device = self.run.profile, best_device()
        clip = clip_of(p, "winclip_clip")
        backbone = load_backbone(p.backbone.name, p.path("backbone"), p.backbone.image_size, device=device)
        winclip, patches = {}, {}
        for name in ("", *self.run.categories):
            shots = self.run.shot_paths(name or None)
            word = noun_of(self.run.dataset, name) if name else None  # AnomalySD's own word, for equal knowledge; None: "object"
            winclip[name] = WinCLIP(clip, word, p.winclip.tau, p.winclip.scales)
            winclip[name].add_shots(datasets.read_images(shots, clip.image_size))
            patches[name] = PatchMemory(backbone).add_shots(datasets.read_images(shots, backbone.image_size))
        return {"winclip": clip.image_size, "patch_memory": backbone.image_size}, winclip, patches

    def __call__(self, path: str, category: str) -> tuple[str, dict[tuple[str, str], float], dict[tuple[str, str], Tensor]]:
        """The category that it is taken for, (method, protocol) -> score and -> map (side, side)."""
        found, s = self.detector, self.detector.settings
        x = datasets.read_images([path], found.model.image_size)
        guess = found.choose_category(x)[0]
        scores = found(x, category, controls=True)
        maps = {("anomalysd", "given"): scores.map} | {(name, "given"): m for name, m in scores.controls.items()}
        maps |= {(f"scale_{k}", "given"): found.smooth(m) for k, m in scores.scales.items()}
        if scores.s_pg is not None:
            maps |= {(f"alpha_{a:g}", "given"): found.smooth(fuse(scores.s_ms, scores.s_pg, a)) for a in ALPHAS}
        maps["anomalysd", "unknown"] = scores.map if guess == category else found(x, guess).map
        value = {key: float(image_score(m, s.image_share)) for key, m in maps.items()}
        more, rival_maps = self._rivals(path, category, guess)
        return guess, value | more, {k: _to_side(m, self.side) for k, m in (maps | rival_maps).items()}

    @torch.no_grad()
    def _rivals(self, path: str, category: str, guess: str) -> tuple[dict, dict]:
        (sizes, winclip, patches), value, maps = self.rivals, {}, {}
        x = {name: datasets.read_images([path], size) for name, size in sizes.items()}
        features = extract(winclip[""].clip, x["winclip"], self.run.profile.winclip.scales)
        near = patches[""].patches(x["patch_memory"])
        for protocol, name in (("given", category), ("unknown", guess), ("shared", "")):
            scores = winclip[name](features)
            value["winclip", protocol], maps["winclip", protocol] = float(scores.image), upsample(scores.maps, self.side)
            distance = patches[name].distances(near)
            value["patch_memory", protocol] = float(top_share_mean(distance, patches[name].share))
            maps["patch_memory", protocol] = patches[name].upsample(distance, self.side)
        return value, maps

    @property
    def side(self) -> int:
        return min(MAP_SIZE, self.run.profile.inpainting.image_size)


def _to_side(m: Tensor, side: int) -> Tensor:
    return _smaller(m[:, None].float(), side)[0, 0].cpu()


def _category(run: Run, judge: _Judge, name: str, test: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, Any]], np.ndarray]:
    """Predictions, metric rows and small maps of one category; every image is kept the moment it is judged, the category when it is."""
    number = run.categories.index(name)  # a name may be as long as the file system allows
    table, done, rows_file = (run.scratch(f"done-{number:03d}.{kind}") for kind in ("parquet", "npz", "json"))
    if not all(path.is_file() for path in (table, done, rows_file)):
        report, files, measurable = counter(f"evaluate {name}"), [], datasets.measurable(test)
        for i, path in enumerate(test["path"]):
            files.append(run.scratch(f"image-{number:03d}-{i:05d}.npz"))
            if not files[-1].is_file():
                guess, value, maps = judge(path, name)
                keys = ["/".join(key) for key in maps]
                # an entry for each map: they are read one method at a time, and never without masks to measure them by
                kept = {f"map-{i}": m.numpy() for i, (key, m) in enumerate(maps.items()) if measurable or key == SHOWN}
                with replacing(files[-1]) as temporary:
                    np.savez(temporary, keys=np.array(keys, str), scores=np.array([value[k] for k in maps]), guess=np.array(guess), **kept)
            if report:
                report(i + 1, len(test))
        predictions, rows, small = _measure(run, name, test, files)
        with replacing(table) as temporary:
            predictions.to_parquet(temporary, index=False)
        with replacing(done) as temporary:
            np.savez_compressed(temporary, maps=small)
        write_json(rows_file, rows)
        for file in files:
            file.unlink()
    with np.load(done) as file:
        return pd.read_parquet(table), json.loads(rows_file.read_text()), file["maps"]


def _measure(
    run: Run, name: str, test: pd.DataFrame, files: Sequence[Path]
) -> tuple[pd.DataFrame, list[dict[str, Any]], np.ndarray]:
    one = []
    for path in files:
        with np.load(path) as file:
            one.append({key: file[key] for key in ("keys", "scores", "guess")})
    keys = [tuple(key.split("/")) for key in one[0]["keys"].tolist()]

    def maps(key: tuple[str, str], keep: Sequence[bool] | None = None) -> np.ndarray:
        """One method's maps (N, side, side): those of all methods would take gigabytes."""
        chosen = files if keep is None else [path for path, kept in zip(files, keep, strict=True) if kept]
        return np.stack([_entry(path, f"map-{keys.index(key)}") for path in chosen])

    seen = pd.Series(True, test.index)
    if run.dataset.startswith("minifab"):
        from fsad_lib.datasets.minifab import UNSEEN

        seen = ~test["defect"].isin(UNSEEN)
    base = test[["path", "category", "label", "defect"]].assign(seen=seen, treated_as=[str(r["guess"]) for r in one])
    predictions = pd.concat(
        [base.assign(method=m, part=part, score=[float(r["scores"][i]) for r in one]) for i, (m, part) in enumerate(keys)],
        ignore_index=True,
    )
    pixel, shown, known = {}, torch.from_numpy(maps(SHOWN)), (test["label"] >= 0).to_numpy(copy=True)  # writable, as torch wants its index
    if datasets.measurable(test):
        masks = datasets.read_masks(test[known], shown.shape[-1])
        pixel = {key: pixel_metrics(masks, maps(key, known), test["path"][known].tolist()) for key in keys}
    small = _smaller(shown[:, None], KEPT_SIZE)[:, 0].half().numpy()
    rows = metric_rows(predictions, pixel, run.dataset.startswith("minifab"))
    for row in rows if pixel else ():
        key = row["method"], row["part"]
        if row["group"] != "all" and not key[0].startswith(("scale_", "alpha_")):  # those would cost time and fill no table
            keep = known & (test["label"].eq(0) | (seen == (row["group"] == "seen"))).to_numpy()
            row |= pixel_metrics(masks[keep[known]], maps(key, keep))
    return predictions, [{"category": name, **row} for row in rows], small


def _entry(path: Path, name: str) -> np.ndarray:
    with np.load(path) as file:  # reads no other entry
        return file[name]
