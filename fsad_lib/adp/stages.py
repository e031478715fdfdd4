"""ADP's three stages, as the notebooks call them: personalize, synthesize, evaluate.

Each takes its :class:`fsad_lib.runs.Run`, returns what it made, and keeps every product in the run's folder the moment it is
finished, so that a repeated call loads what is there and an interrupted one goes on (training included). A stage whose earlier stage
has not run makes it first.

=================  ================================================================================================
10_personalize     concepts.safetensors (<ti>, <c_n>, <c_a>), trace.csv, pseudo_anomalies.npz
20_synthesize      pseudo_tuning.npz, prototypes.safetensors (p_n, p_a of each method), weights.json
40_evaluate        predictions.parquet, maps.npz, rows.json
=================  ================================================================================================
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsad_lib import datasets
from fsad_lib.adp.concepts import learn_concept, load_concepts, p_clip, save_concepts
from fsad_lib.adp.detector import anomaly_probability
from fsad_lib.adp.prompts import embed, templates
from fsad_lib.adp.pseudo_anomalies import deal, pseudo_anomalies
from fsad_lib.adp.self_tuning import prototypes, weight
from fsad_lib.errors import FsadError
from fsad_lib.foundation.clip import CLIP, check_windows, clip_of
from fsad_lib.foundation.device import best_device
from fsad_lib.foundation.diffusion import Diffusion, load_diffusion
from fsad_lib.metrics import metric_rows, pixel_metrics
from fsad_lib.profiles import missing_checkpoints
from fsad_lib.progress import counter
from fsad_lib.runs import Run, absolute_path, portable_path, write_json

__all__ = [
    "METHODS", "Evaluated", "Personalized", "Pseudo", "Synthesized", "clip_model", "evaluate", "load_models", "personalize", "synthesize",
]  # fmt: skip

WORDS = {"object": "object", "ti": "<ti>", "c_n": "<c_n>", "c_a": "<c_a>"}
METHODS: dict[str, tuple[str, ...]] = {
    "object": ("object",),
    "ti": ("ti",),
    "c_n": ("c_n",),
    "c_a": ("c_a",),
    "label": ("label",),
    "adp": ("c_n", "c_a"),
    "adp_l": ("c_n", "c_a", "label"),
}
"""method -> the words that its prototypes are mixed of (eq. 6)."""

MAP_SIZE = 256  # pixel metrics are taken at this side at most
BATCH = 32


class Pseudo(NamedTuple):
    """Pseudo-anomalies: x (n, 3, H, W) in [0, 1] as multiples of 1/255; shot (n,) which normal image; prompt (n,)."""

    x: Tensor
    shot: np.ndarray
    prompt: np.ndarray


@dataclass(frozen=True)
class Personalized:
    """x (K, 3, H, W) the shots; paths their files; concepts "<ti>", "<c_n>", "<c_a>" -> (token_dim,); trace with the columns concept,
    step, denoising_loss, p_normal, hinge; pseudo what c_a learned from."""

    x: Tensor
    paths: list[str]
    concepts: dict[str, Tensor]
    trace: pd.DataFrame
    pseudo: Pseudo


@dataclass(frozen=True)
class Synthesized:
    """pseudo the new pseudo-anomalies; weights word -> w (eq. 5); details word -> mean P(S_n) on shots and on pseudo-anomalies;
    prototypes method -> (p_n, p_a) (eq. 6); label the class name."""

    pseudo: Pseudo
    weights: dict[str, float]
    details: dict[str, dict[str, float]]
    prototypes: dict[str, tuple[Tensor, Tensor]]
    label: str


@dataclass(frozen=True)
class Evaluated:
    """predictions one row for each image, method and part (path, label, defect, seen, method, part, score); rows the metrics, for
    ``run.finish({"rows": rows})``, empty without labels; maps "adp", "adp_l", "memory", "winclip", "winclip_text", "patch_memory" ->
    (N, grid, grid) float32 in the order of paths."""

    predictions: pd.DataFrame
    rows: list[dict[str, Any]]
    maps: dict[str, np.ndarray]
    paths: list[str]


# -------------------------------------------------------------------- models
@lru_cache(maxsize=2)
def _diffusion(checkpoint: str, clip: CLIP, image_size: int, device: str, gradient_checkpointing: bool) -> Diffusion:
    model = load_diffusion(checkpoint, clip, device, image_size)
    if gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    return model


def clip_model(profile: Any) -> CLIP:
    """ADP's CLIP alone: all that judging needs, so that neither the diffusion model nor its library is loaded."""
    missing_checkpoints(profile, ("clip",))
    return clip_of(profile)


def load_models(profile: Any) -> tuple[CLIP, Diffusion]:
    """ADP's CLIP and diffusion model of a profile, read once a process, on the GPU if there is one."""
    missing_checkpoints(profile, ("clip", "diffusion"))
    clip = clip_of(profile)
    return clip, _diffusion(str(profile.path("diffusion")), clip, profile.diffusion.image_size, best_device(), profile.adp.gradient_checkpointing)


def _check_inputs(run: Run) -> None:
    """The run's own check, and what otherwise only the last stage would notice: a product without words, windows larger than a CLIP's grid."""
    run.check_inputs()
    datasets.class_name(run.dataset, run.category)
    check_windows(run.profile, "clip", "winclip_clip")


# -------------------------------------------------------------------- pseudo-anomalies on disk
def _make_pseudo(run: Run, name: str, diffusion: Diffusion, x: Tensor, prompts: Sequence[str], n: int, seed: int | str,
                 concepts: Mapping[str, Tensor] | None = None) -> Pseudo:  # fmt: skip
    if not run.has(name):
        adp = run.profile.adp
        made = pseudo_anomalies(
            diffusion, x, prompts, n, strength=adp.strength, guidance_scale=adp.guidance_scale,
            num_inference_steps=adp.num_inference_steps, crop_scale=adp.crop_scale, seed=seed, concepts=concepts,
            progress=counter(name.removesuffix(".npz")),
        )  # fmt: skip
        pixels = (made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        shot, prompt = (i.numpy() for i in deal(n, len(x), len(prompts)))
        with run.writing(name) as path:
            np.savez_compressed(path, images=pixels, shot=shot, prompt=np.array(prompts)[prompt])
    return _read_pseudo(run, name)


def _read_pseudo(run: Run, name: str) -> Pseudo:
    with np.load(run.product_path(name)) as file:
        x = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).float().div(255)
        return Pseudo(x.contiguous(), file["shot"], file["prompt"])


# -------------------------------------------------------------------- stage 1
def personalize(run: Run) -> Personalized:
    """Steps 1 and 2 of the paper: plain textual inversion for comparison, c_n, pseudo-anomalies, c_a.

    Args:
        run: a run of stage "10_personalize"; its profile's section ``adp`` holds all hyper-parameters.

    Raises:
        FsadError: a missing checkpoint, images that cannot be read, fewer shots than asked for, or a training that diverged.
    """
    made = ("concepts.safetensors", "trace.csv", "pseudo_anomalies.npz")
    _check_inputs(run)
    paths = run.shot_paths()
    x = datasets.read_images(paths, run.profile.diffusion.image_size)
    run.make(made, lambda: _learn_words(run, x, paths, made))
    concepts, _ = load_concepts(run.product_path(made[0]))
    return Personalized(
        x, paths, concepts, pd.read_csv(run.product_path(made[1])), _read_pseudo(run, made[2])
    )


def _learn_words(run: Run, x: Tensor, paths: Sequence[str], made: Sequence[str]) -> None:
    adp, (clip, diffusion) = run.profile.adp, load_models(run.profile)
    settings = dict(tau=adp.tau, lr=adp.lr, batch_size=adp.batch_size, templates=templates(adp.templates), seed=run.seed)
    concepts, traces = {}, []

    def learn(name: str, init: str | Tensor, steps: int, **more: Any) -> None:
        c, trace = learn_concept(
            clip, diffusion, x, init, steps=steps, checkpoint=run.scratch(f"{name}.safetensors"), checkpoint_every=max(1, steps // 8),
            progress=counter(f"learn {name}"), **settings, **more,
        )  # fmt: skip
        concepts[WORDS[name]] = c
        traces.append(trace.assign(concept=name))

    learn("ti", "object", adp.steps_ti, alpha=0.0)
    learn("c_n", "object", adp.steps_normal, alpha=adp.alpha)
    pseudo = _make_pseudo(run, made[2], diffusion, x, adp.prompts_pseudo, adp.n_pseudo, run.seed)
    learn("c_a", concepts["<c_n>"], adp.steps_anomaly, alpha=adp.alpha, pseudo=pseudo.x, gamma=adp.gamma)
    meta = {
        "init": {"<ti>": "object", "<c_n>": "object", "<c_a>": "<c_n>"}, "models": run.ingredients.get("models"),
        "adp": adp.model_dump(mode="json"), "seed": run.seed, "shots": [Path(p).name for p in paths],
    }  # fmt: skip
    with run.writing(made[1]) as path:
        trace = pd.concat(traces, ignore_index=True)
        trace[["concept", "step", "denoising_loss", "p_normal", "hinge"]].to_csv(path, index=False)
    with run.writing(made[0]) as path:
        save_concepts(path, concepts, meta)


# -------------------------------------------------------------------- stage 2
def synthesize(run: Run) -> Synthesized:
    """Step 3 of the paper without the test images: new pseudo-anomalies from c_a, weights (eq. 5), prototypes (eq. 6).

    Args:
        run: a run of stage "20_synthesize".

    Raises:
        FsadError: see :func:`personalize`, which runs first where it has not.
    """
    made = ("pseudo_tuning.npz", "weights.json", "prototypes.safetensors")
    _check_inputs(run)
    label = datasets.class_name(run.dataset, run.category)
    run.make(made, lambda: _tune(run, label, made))
    saved = load_file(run.product_path(made[2]))
    told = json.loads(run.product_path(made[1]).read_text())
    p = {method: (saved[f"{method}.p_n"], saved[f"{method}.p_a"]) for method in METHODS}
    return Synthesized(_read_pseudo(run, made[0]), told["weights"], told["details"], p, label)


def _tune(run: Run, label: str, made: Sequence[str]) -> None:
    adp, (clip, diffusion) = run.profile.adp, load_models(run.profile)
    before = personalize(run.upstream("10_personalize"))
    pseudo = _make_pseudo(
        run, made[0], diffusion, before.x, adp.prompts_tuning, adp.n_pseudo_tuning, f"{run.seed}-tuning", before.concepts
    )
    words = {**WORDS, "label": label}
    embedded = embed(clip, list(words.values()), before.concepts, templates(adp.templates))
    g = {name: embedded[word] for name, word in words.items()}  # two names may share a word: a product called "object"
    f, f_pseudo = clip.encode_image(before.x), clip.encode_image(pseudo.x)
    weights, details = {}, {}
    for word, (g_n, g_a) in g.items():
        means = g_n.mean(0), g_a.mean(0)
        weights[word] = weight(f, f_pseudo, *means, adp.tau)
        details[word] = {
            "p_normal_shots": p_clip(f, *means, adp.tau).mean().item(),
            "p_normal_pseudo": p_clip(f_pseudo, *means, adp.tau).mean().item(),
        }
    tensors = {}
    for method, mix in METHODS.items():
        p = prototypes({word: g[word] for word in mix}, weights if len(mix) > 1 else None)
        tensors |= {f"{method}.{name}": value.cpu().contiguous() for name, value in zip(("p_n", "p_a"), p, strict=True)}
    with run.writing(made[2]) as path:
        save_file(tensors, path)
    with run.writing(made[1]) as path:
        write_json(path, {"weights": weights, "details": details, "label": label, "tau": adp.tau})


# -------------------------------------------------------------------- stage 4
def evaluate(run: Run) -> Evaluated:
    """Score the test images by ADP, its parts and its controls (eq. 7 and the feature association).

    ========================  ===========================================================================  ==================
    method                    what it is                                                                   parts
    ========================  ===========================================================================  ==================
    adp, adp_l                self-tuned mix of c_n, c_a (and the class label)                             text, memory, sum
    ti, c_n, c_a              one learned word                                                             text, sum
    object, label             an untrained word                                                            text, sum
    winclip                   WinCLIP (text), its memories alone, WinCLIP+ (sum), on the profile's CLIP    text, memory, sum
    winclip_adp_backbone      the same on ADP's CLIP                                                       text, memory, sum
    patch_memory              nearest neighbours over the backbone's patches                               memory
    ========================  ===========================================================================  ==================

    All ADP rows share one memory part, which stands under "adp". Unlabelled images (label -1) get scores; metrics need both classes.

    Args:
        run: a run of stage "40_evaluate".

    Raises:
        FsadError: no test image, a mask that does not fit its image; see also :func:`synthesize`, which runs first where it has not.
    """
    made = ("predictions.parquet", "maps.npz", "rows.json")
    _check_inputs(run)
    run.make(made, lambda: _judge(run, made))
    with np.load(run.product_path(made[1])) as file:
        maps = {name: file[name] for name in file.files if name != "paths"}
        paths = [absolute_path(p) for p in file["paths"].tolist()]
    rows = json.loads(run.product_path(made[2]).read_text())
    predictions = pd.read_parquet(run.product_path(made[0]))
    return Evaluated(predictions.assign(path=predictions["path"].map(absolute_path)), rows, maps, paths)


def _judge(run: Run, made: Sequence[str]) -> None:
    test = run.table().query("split == 'test'").reset_index(drop=True)
    scores, maps, pixel = _score(run, test)
    predictions = _long(test, scores, run.dataset)
    rows = metric_rows(predictions, pixel, run.dataset.startswith("minifab"))
    with run.writing(made[0]) as path:
        predictions.assign(path=predictions["path"].map(portable_path)).to_parquet(path, index=False)
    with run.writing(made[1]) as path:
        np.savez_compressed(path, paths=np.array([portable_path(p) for p in test["path"]], dtype=str), **maps)
    with run.writing(made[2]) as path:
        write_json(path, rows)


def _score(run: Run, test: pd.DataFrame) -> tuple[dict, dict[str, np.ndarray], dict]:
    """(method, part) -> scores (N,); maps at grid resolution; (method, part) -> pixel metrics."""
    from fsad_lib.foundation.backbones import load_backbone
    from fsad_lib.patch_memory import PatchMemory
    from fsad_lib.winclip.detector import WinCLIP, upsample
    from fsad_lib.winclip.windows import extract

    p, device = run.profile, best_device()
    if test.empty:
        raise FsadError(
            f"no test images in {run.dataset}/{run.category}; put the images to judge into its test/ folder."
        )
    tuned = synthesize(run.upstream("20_synthesize"))
    clip, winclip_clip = clip_of(p), clip_of(p, "winclip_clip")  # they may be one
    backbone = load_backbone(p.backbone.name, p.path("backbone"), p.backbone.image_size, device=device)
    shots, paths = run.shot_paths(), test["path"].tolist()
    scales, tau = p.winclip.scales, p.adp.tau

    clips = {"adp": clip} | ({} if winclip_clip is clip else {"winclip": winclip_clip})
    winclips = {
        name: WinCLIP(model, tuned.label, p.winclip.tau, scales).add_shots(extract(model, datasets.read_images(shots, model.image_size), scales))
        for name, model in clips.items()
    }
    patches = PatchMemory(backbone).add_shots(datasets.read_images(shots, backbone.image_size))

    text: dict[str, list[Tensor]] = {method: [] for method in METHODS}
    parts: dict[str, list[Tensor]] = {}
    report = counter("evaluate")

    def keep(**values: Tensor) -> None:
        for name, value in values.items():
            parts.setdefault(name, []).append(value.float().cpu())

    for start in range(0, len(paths), BATCH):
        chosen = paths[start : start + BATCH]
        x = {
            size: datasets.read_images(chosen, size)
            for size in {clip.image_size, winclip_clip.image_size, backbone.image_size}
        }
        for name, winclip in winclips.items():
            features = extract(winclip.clip, x[winclip.clip.image_size], scales)
            keep(**{f"{name}.{part}": value for part, value in winclip(features)._asdict().items()})
            if winclip.clip is clip:
                for method, (p_n, p_a) in tuned.prototypes.items():
                    text[method].append(anomaly_probability(features.f, p_n, p_a, tau).cpu())
        image, near = patches(x[backbone.image_size])
        keep(patch_memory=image, patch_map=near)
        if report:
            report(start + len(chosen), len(paths))

    got = {name: torch.cat(values) for name, values in parts.items()}
    rival = "adp" if winclip_clip is clip else "winclip"
    memory, w = got["adp.memory"].double(), p.adp.visual_weight
    scores: dict[tuple[str, str], np.ndarray] = {}
    for method, values in text.items():
        scores[method, "text"] = torch.cat(values).numpy()
        scores[method, "sum"] = (torch.cat(values) + w * memory).numpy()
    scores["adp", "memory"] = memory.numpy()
    for method, name in (("winclip", rival), ("winclip_adp_backbone", "adp")):
        for part, kept in (("text", "text"), ("memory", "memory"), ("sum", "image")):
            scores[method, part] = got[f"{name}.{kept}"].double().numpy()
    scores["patch_memory", "memory"] = got["patch_memory"].double().numpy()

    grid = {
        "memory": got["adp.few_shot"],
        **{m: torch.cat(text[m]).float().view(-1, 1, 1) + w * got["adp.few_shot"] for m in ("adp", "adp_l")},
        "winclip": got[f"{rival}.maps"], "winclip_text": got[f"{rival}.zero_shot"], "patch_memory": got["patch_map"],
    }  # fmt: skip
    pixel: dict[tuple[str, str], dict[str, float]] = {}
    if datasets.measurable(test):
        size, known = min(MAP_SIZE, p.diffusion.image_size), (test["label"] >= 0).to_numpy(copy=True)  # writable, as torch wants its index
        masks, paths = datasets.read_masks(test[known], size), test["path"][known].tolist()
        named = {
            ("adp", "memory"): "memory", ("adp", "sum"): "adp", ("adp_l", "sum"): "adp_l", ("winclip", "sum"): "winclip",
            ("winclip", "text"): "winclip_text", ("patch_memory", "memory"): "patch_memory",
        }  # fmt: skip
        for key, name in named.items():
            large = (
                patches.upsample(grid[name], size) if name == "patch_memory" else upsample(grid[name], size)
            )
            pixel[key] = pixel_metrics(masks, large[known], paths)
        same = winclip_clip is clip
        pixel["winclip_adp_backbone", "sum"] = pixel["winclip", "sum"] if same else pixel_metrics(masks, upsample(got["adp.maps"], size)[known], paths)
    return scores, {name: value.numpy() for name, value in grid.items()}, pixel


def _long(test: pd.DataFrame, scores: Mapping[tuple[str, str], np.ndarray], dataset: str) -> pd.DataFrame:
    """predictions.parquet: path, label, defect, seen, method, part, score."""
    seen = pd.Series(True, test.index)
    if dataset.startswith("minifab"):
        from fsad_lib.datasets.minifab import UNSEEN

        seen = ~test["defect"].isin(UNSEEN)
    base = test[["path", "label", "defect"]].assign(seen=seen)
    return pd.concat(
        [base.assign(method=m, part=part, score=s) for (m, part), s in scores.items()], ignore_index=True
    )
