"""TGVIG's three stages, as the notebooks call them: synthesize, augment, evaluate.

One run is one (data set, category, shots, seed). Each stage takes its :class:`fsad_lib.runs.Run`, returns what it made, and keeps every
product the moment it is finished, so that a repeated call loads what is there and an interrupted one goes on: the integrator at its
last iteration, a detector at its last checkpoint and the evaluation at the detector where it stopped.

=================  ================================================================================================
22_synthesize      prompt.json, generated.npz, trace.csv, rival-<name>.npz, quality.json
32_augment         <baseline>-<arm>.safetensors and .json: a trained detector, what it saw, its losses
42_evaluate        predictions.parquet, maps.npz, rows.json
=================  ================================================================================================

The integrator's updates do not depend on the prompt, which only chooses among the sets (eq. 5). One integration therefore
serves every prompt of Table 2, and "without text" of Table 3, the last iteration.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale

from fsad_lib import baselines, datasets
from fsad_lib.datasets._common import list_images
from fsad_lib.datasets.sample import limit_of, sample
from fsad_lib.errors import FsadError
from fsad_lib.foundation.clip import clip_of
from fsad_lib.foundation.device import best_device
from fsad_lib.foundation.images import resize
from fsad_lib.foundation.vqgan import VQGAN, LossWeights, load_vqgan
from fsad_lib.metrics import au_spro, image_metrics, metric_rows, pixel_metrics
from fsad_lib.profiles import missing_checkpoints, sections
from fsad_lib.progress import counter
from fsad_lib.runs import Run, absolute_path, portable_path, replacing, shared_run, write_json
from fsad_lib.tgvig import generator, vqgan_clip
from fsad_lib.tgvig.generator import Augmentation, images_each
from fsad_lib.tgvig.integrator import CHECKPOINT, Settings, integrate
from fsad_lib.tgvig.keyword_prompts import Candidates, Selection, best_prompt, candidate_words

__all__ = [
    "KINDS", "OUTSIDE", "Augmented", "Evaluated", "Synthesized", "added_images", "arms", "augment", "augmentation", "evaluate", "load_detector",
    "load_models", "make_detector", "prompts_of", "source_run", "synthesize", "trained_run", "training_images",
]  # fmt: skip

KINDS = ("best", "worst", "word", "naive")
"""The prompts of Table 2; each chooses its own set among the iterations'. "last" stands for no prompt."""

OUTSIDE = ("web_image", "midjourney", "dalle")
"""Table 1's closed generators: folders with a user's images, below the profile's ``outside.checkpoint``."""

SET_OF = {"generated": "best", "without_text": "last", "worst_prompt": "worst", "word": "word", "naive": "naive"}
"""arm -> whose set of generated images it adds."""

MAP_SIZE = 256  # pixel metrics are taken at this side at most
KEPT_SIZE = 64  # side of the maps that are kept for pictures


@dataclass(frozen=True)
class Synthesized:
    """x (K, 3, H, W) the shots and their paths; candidates and selection of eq. 1; to_name (T,) the prompts' cosines to the object's name
    (Figure 7); prompts kind -> sentence; sets kind or "last" -> (n, 3, H, W) chosen images, chosen -> their iteration, origin (n,) each
    one's shot; trace one row an iteration (similarity to each prompt, losses, seconds); rivals name -> images; quality Table 2's rows
    (generator, prompt, text and the fields of :class:`fsad_lib.tgvig.image_quality.Quality`); factor pixels a latent cell."""

    x: Tensor
    paths: list[str]
    candidates: Candidates
    selection: Selection
    to_name: Tensor
    prompts: dict[str, str]
    sets: dict[str, Tensor]
    chosen: dict[str, int]
    origin: Tensor
    trace: pd.DataFrame
    rivals: dict[str, Tensor]
    quality: pd.DataFrame
    factor: int


@dataclass(frozen=True)
class Augmented:
    """fits one row for each baseline and arm: images, added, steps, memory (patches kept) and patches (seen) of PatchCore, first_loss and
    last_loss (means of a tenth of the steps); losses long: baseline, arm, step, loss."""

    fits: pd.DataFrame
    losses: pd.DataFrame


@dataclass(frozen=True)
class Evaluated:
    """predictions one row for each image, method (the baseline) and part (the arm): path, category, label, defect, seen, method, part,
    score; rows the metrics of each, for ``run.finish({"rows": rows})``; maps "baseline/arm" -> (N, 64, 64) in the order of paths."""

    predictions: pd.DataFrame
    rows: list[dict[str, Any]]
    maps: dict[str, np.ndarray]
    paths: list[str]


# -------------------------------------------------------------------- models
@lru_cache(maxsize=1)
def _diffusion(checkpoint: str, clip: Any, image_size: int, device: str) -> Any:
    from fsad_lib.foundation.diffusion import load_diffusion

    return load_diffusion(checkpoint, clip, device=device, image_size=image_size)


def load_models(profile: Any) -> tuple[VQGAN, Any]:
    """VQGAN (with all that its loss needs) and CLIP of a profile, on the GPU if there is one."""
    missing_checkpoints(profile, sections("tgvig", profile, "22_synthesize"))
    device = best_device()
    return load_vqgan(profile.path("vqgan"), profile.path("perceptual"), device), clip_of(profile, "tgvig_clip")


def source_run(run: Run) -> Run:
    """The stage 22 run whose images a run uses: that of the same overrides without those that concern the detectors only."""
    return shared_run(run, "22_synthesize")


def trained_run(run: Run) -> Run:
    """The stage 32 run whose detectors a run uses: that of the same overrides without those that only choose the images to judge."""
    return shared_run(run, "32_augment")


def _bytes(x: Tensor) -> np.ndarray:
    return (x * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _images(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).float().div(255)


# -------------------------------------------------------------------- stage 2
def prompts_of(selection: Selection, name: str) -> dict[str, str]:
    """Kind -> sentence: the best and the worst of eq. 1, the word alone, the naive prompt."""
    return {"best": selection.best, "worst": selection.worst, "word": name, "naive": f"a photo of a {name}"}


def augmentation(profile: Any) -> Augmentation:
    """The augmentations of a profile; those of the generator and of the control arm are the same."""
    t = profile.tgvig
    return Augmentation(t.brightness, t.contrast, t.colour, t.gamma, t.shift, t.augmentation)


def synthesize(run: Run) -> Synthesized:
    """The prompt, the integration, the sets that prompts choose, the rivals' images, and their quality.

    Args:
        run: a run of stage "22_synthesize"; its profile's section ``tgvig`` holds all hyper-parameters. Products lie in the folder
            of :func:`source_run`.

    Raises:
        FsadError: a missing checkpoint, images that cannot be read, a rival that needs a caption and has none, or a loss that diverged.
    """
    run = source_run(run)
    t = run.profile.tgvig
    run.check_inputs()
    if "vqgan_clip_caption" in t.rivals and not t.caption.strip():
        raise FsadError("tgvig.rivals asks for vqgan_clip_caption, but tgvig.caption is empty; give a sentence that describes the original.")
    made = ("prompt.json", "generated.npz", "trace.csv", "quality.json", *(f"rival-{rival}.npz" for rival in t.rivals))
    with contextlib.nullcontext() if run.has(*made) else run.making():
        return _synthesize(run)


def _synthesize(run: Run) -> Synthesized:
    t = run.profile.tgvig
    name, paths = datasets.class_name(run.dataset, run.category), run.shot_paths()
    x, models = datasets.read_images(paths, run.profile.vqgan.image_size), _Models(run.profile)
    if not run.has("prompt.json"):
        _search(run, name, x, models)
    found = json.loads(run.product_path("prompt.json").read_text())
    selection = Selection(**found["selection"] | {k: torch.tensor(found["selection"][k]) for k in ("cosine", "distance", "kept")})
    prompts = prompts_of(selection, name)
    if not run.has("generated.npz", "trace.csv"):
        _integrate(run, prompts, x, models)
    with np.load(run.product_path("generated.npz")) as file:
        sets = {kind: _images(file[kind]) for kind in (*KINDS, "last")}
        chosen = dict(zip((*KINDS, "last"), file["chosen"].tolist(), strict=True))
        origin, factor = torch.from_numpy(file["origin"]), int(file["factor"])
    rivals = {rival: _rival(run, rival, prompts, x, models) for rival in t.rivals}
    if not run.has("quality.json"):
        _judge(run, prompts, x, sets, origin, rivals)
    candidates = Candidates(**{k: tuple(v) if isinstance(v, list) else v for k, v in found["candidates"].items()})
    return Synthesized(
        x, paths, candidates, selection, torch.tensor(found["to_name"]), prompts, sets, chosen, origin,
        pd.read_csv(run.product_path("trace.csv")), rivals, pd.DataFrame(json.loads(run.product_path("quality.json").read_text())), factor,
    )  # fmt: skip


class _Models:
    """VQGAN and CLIP, loaded when the first of them is needed (a finished stage needs neither)."""

    def __init__(self, profile: Any) -> None:
        self.profile, self.loaded = profile, None

    def __iter__(self) -> Iterator[Any]:
        self.loaded = self.loaded or load_models(self.profile)
        return iter(self.loaded)


def _search(run: Run, name: str, x: Tensor, models: _Models) -> None:
    t, (_, clip) = run.profile.tgvig, models
    candidates = candidate_words(name, t.depth)
    selection = best_prompt(clip, x, candidates, t.filter, t.farthest)
    with torch.no_grad():
        g = torch.cat([clip.encode_text(list(selection.prompts[i : i + 256])) for i in range(0, len(selection.prompts), 256)])
        to_name = g @ clip.encode_text([name])[0]
    numbers = {k: getattr(selection, k).tolist() for k in ("cosine", "distance", "kept")}
    words = {k: getattr(selection, k) for k in ("best", "worst", "prompts", "note")}
    with run.writing("prompt.json") as path:
        write_json(path, {"candidates": asdict(candidates), "selection": words | numbers, "to_name": to_name.tolist()})


def _integrate(run: Run, prompts: dict[str, str], x: Tensor, models: _Models) -> None:
    t, (vqgan, clip) = run.profile.tgvig, models
    settings = Settings(
        iterations=t.iterations, images=t.images, augmented=t.augmented, lam=t.lam, lr=t.lr, variance=t.variance, quantized=t.quantized,
        update_discriminator=t.update_discriminator, gradient_checkpointing=t.gradient_checkpointing, weights=LossWeights(*t.weights),
        augmentation=augmentation(run.profile), seed=run.seed,
    )  # fmt: skip
    last = time.monotonic()

    def keep(iteration: int, images: Tensor) -> None:
        nonlocal last
        with replacing(run.scratch(f"set-{iteration:04d}.npz")) as path:
            np.savez(path, images=_bytes(images), seconds=time.monotonic() - last)
        last = time.monotonic()

    found = integrate(vqgan, x, clip, prompts["best"], settings, run.scratch("integrator"), counter("integrate"), keep)
    with torch.no_grad():
        g = clip.encode_text([prompts[kind] for kind in KINDS]).cpu()
    similarity = {kind: F.cosine_similarity(z_t, found.z_v, dim=1) for kind, z_t in zip(KINDS, g, strict=True)}
    chosen = {kind: 1 + int(values.argmax()) for kind, values in similarity.items()} | {"best": found.chosen, "last": t.iterations}
    seconds, sets = [], {}
    for iteration in range(1, t.iterations + 1):
        with np.load(run.scratch(f"set-{iteration:04d}.npz")) as file:
            seconds.append(float(file["seconds"]))
            sets |= {kind: file["images"] for kind, alpha in chosen.items() if alpha == iteration}
    trace = pd.DataFrame(found.losses).assign(iteration=range(1, t.iterations + 1), seconds=np.round(seconds, 2))
    trace = trace.assign(**{kind: found.similarity if kind == "best" else values.tolist() for kind, values in similarity.items()})
    with run.writing("trace.csv") as path:
        trace[["iteration", *KINDS, *found.losses[0], "seconds"]].to_csv(path, index=False)
    with run.writing("generated.npz") as path:
        order = (*KINDS, "last")
        np.savez_compressed(
            path, chosen=[chosen[kind] for kind in order], origin=found.origin.numpy(), factor=vqgan.factor, **{kind: sets[kind] for kind in order}
        )
    for file in (run.scratch("integrator") / CHECKPOINT, *(run.scratch(f"set-{i:04d}.npz") for i in range(1, t.iterations + 1))):
        file.unlink(missing_ok=True)


def _rival(run: Run, name: str, prompts: dict[str, str], x: Tensor, models: _Models) -> Tensor:
    """The images of one rival generator (n, 3, H, W), each kept the moment it is drawn."""
    t, product = run.profile.tgvig, f"rival-{name}.npz"
    if not run.has(product):
        made = []
        for i in range(t.rival_images):
            file = run.scratch(f"{name}-{i:04d}.npy")
            if not file.is_file():
                image = _diffuse(run, prompts["naive"], x, i) if name == "diffusion" else _optimise(run, name, prompts, x, i, models)
                with replacing(file) as path:
                    np.save(path, _bytes(image))
            made.append(np.load(file))
        with run.writing(product) as path:
            np.savez_compressed(path, images=np.stack(made))
        for i in range(t.rival_images):
            run.scratch(f"{name}-{i:04d}.npy").unlink(missing_ok=True)
    with np.load(run.product_path(product)) as file:
        return _images(file["images"])


def _optimise(run: Run, name: str, prompts: dict[str, str], x: Tensor, i: int, models: _Models) -> Tensor:
    t, kind, (vqgan, clip) = run.profile.tgvig, name.removeprefix("vqgan_clip_"), models
    settings = vqgan_clip.Settings(t.rival_steps, t.rival_lr, t.rival_cutouts, seed=1000 * run.seed + i)
    start = x[i % len(x)] if t.rival_start else None
    words = t.caption if kind == "caption" else prompts[kind]
    return vqgan_clip.draw(vqgan, clip, words, x.shape[-1], start, settings, counter(f"{name} {i + 1}"))[0].cpu()


def _diffuse(run: Run, words: str, x: Tensor, i: int) -> Tensor:
    """A shot, changed a little by the diffusion model towards the naive prompt: our addition to Table 1."""
    p, t = run.profile, run.profile.tgvig
    shared = not (p.path("diffusion") / "text_encoder").is_dir()
    clip = clip_of(p) if shared else None
    model = _diffusion(str(p.path("diffusion")), clip, p.diffusion.image_size, best_device())
    edited = model.sdedit(
        resize(x[i % len(x)][None], model.image_size), [words], strength=t.diffusion_strength, guidance_scale=t.diffusion_guidance,
        num_inference_steps=t.diffusion_steps, seed=f"{run.seed}/rival/{i}",
    )  # fmt: skip
    return resize(edited, x.shape[-1])[0].cpu()


def _judge(run: Run, prompts: dict[str, str], x: Tensor, sets: dict[str, Tensor], origin: Tensor, rivals: dict[str, Tensor]) -> None:
    from fsad_lib.foundation.perceptual import load_lpips
    from fsad_lib.tgvig.image_quality import load_classifier, quality

    p, device = run.profile, best_device()
    classifier = load_classifier(p.inception.name, p.path("inception"), p.inception.image_size, device)
    lpips, rows = load_lpips(p.path("perceptual"), device), []
    jobs = [("original", "", x, torch.arange(len(x)))] + [("tgvig", kind, sets[kind], origin) for kind in (*KINDS, "last")]
    for name, images in rivals.items():
        drawer, _, kind = name.rpartition("_") if name != "diffusion" else ("diffusion", "", "naive")
        jobs.append((drawer, kind, images, torch.arange(len(images)) % len(x)))
    for drawer, kind, images, of in jobs:
        found = asdict(quality(images.to(device), x.to(device), of.to(device), classifier, lpips))
        found["psnr"] = found["psnr"] if np.isfinite(found["psnr"]) else None  # infinite for equal images
        rows.append({"generator": drawer, "prompt": kind, "text": p.tgvig.caption if kind == "caption" else prompts.get(kind, ""), **found})
    with run.writing("quality.json") as path:
        write_json(path, rows)


# -------------------------------------------------------------------- stage 3
def arms(run: Run) -> list[str]:
    """The arms of a run: the profile's, then one for each rival generator and for each of a user's folders of Table 1.

    Raises:
        FsadError: a folder ``outside.checkpoint`` that holds none of :data:`OUTSIDE`.
    """
    p, folder = run.profile, run.profile.path("outside")
    own = [name for name in OUTSIDE if folder is not None and (folder / name).is_dir()]
    if folder is not None and not own:
        raise FsadError(f"{folder} holds none of the folders {', '.join(OUTSIDE)}; put an image of the product into one of them.")
    return list(dict.fromkeys([*p.baselines.arms, *p.tgvig.rivals, *own]))


def added_images(run: Run, made: Synthesized, arm: str) -> Tensor:
    """What an arm adds to the shots (n, 3, H, W) in [0, 1], at the VQGAN's size; n is the same for generated and control images, 1 for Table 1's others.

    ===============  ==========================================================================================
    shots            nothing
    generated        the set that the best prompt chose
    duplicated       control: each shot again, as often as it got generated images
    augmented        control: as many augmented versions of each shot, by the generator's own augmentations, no VQGAN
    without_text     the last iteration's set
    worst_prompt, word, naive    the sets that these prompts chose
    ===============  ==========================================================================================
    """
    each = images_each(run.profile.tgvig.images, len(made.x))
    if arm == "shots":
        return made.x[:0]
    if arm == "duplicated":
        return made.x.repeat_interleave(each, 0)
    if arm == "augmented":
        how = augmentation(run.profile)
        return torch.cat([generator.augment(x, each + 1, made.factor, f"{run.seed}/control/{k}", how)[1:] for k, x in enumerate(made.x)])
    if arm in SET_OF:
        return made.sets[SET_OF[arm]]
    if arm in made.rivals:
        return made.rivals[arm][:1]
    folder = run.profile.path("outside") / arm
    files = [str(path) for path in list_images(folder)]
    if not files:
        raise FsadError(f"no image in {folder}; put one there, or remove the folder.")
    return datasets.read_images(files[:1], made.x.shape[-1])


def training_images(run: Run, made: Synthesized, arm: str, side: int) -> Tensor:
    """The shots, read at the detector's own size, then what the arm adds: (N, 3, side, side) in [0, 1]."""
    shots = datasets.read_images(made.paths, side)
    if arm == "duplicated":  # the very same images
        return torch.cat([shots, shots.repeat_interleave(images_each(run.profile.tgvig.images, len(shots)), 0)])
    return torch.cat([shots, resize(added_images(run, made, arm), side)])


def make_detector(run: Run, name: str) -> Any:
    """An untrained baseline with the profile's weights and settings."""
    from fsad_lib.foundation.backbones import load_backbone, load_trunk

    p, b, device = run.profile, run.profile.baselines, best_device()
    if name == "efficientad":
        from fsad_lib.baselines.efficientad import load_teacher

        return baselines.make(
            name, teacher=load_teacher(p.path("efficientad_teacher")).to(device), penalty=partial(_penalty, run), image_size=b.efficientad_image_size,
            lr=b.efficientad_lr, weight_decay=b.efficientad_weight_decay, device=device,
        )  # fmt: skip
    if name == "reverse_distillation":
        q = p.distillation_backbone
        backbone = load_trunk(q.name, p.path("distillation_backbone"), q.image_size, device)
        return baselines.make(name, backbone=backbone, lr=b.distillation_lr, batch_size=b.distillation_batch_size)
    q = p.baseline_backbone
    backbone = load_backbone(q.name, p.path("baseline_backbone"), q.image_size, device=device)
    if name == "cflow":
        return baselines.make(
            name, backbone=backbone, coupling_blocks=b.cflow_blocks, condition=b.cflow_condition, fibers=b.cflow_fibers, lr=b.cflow_lr,
            batch_size=b.cflow_batch_size,
        )  # fmt: skip
    return baselines.make(name, backbone=backbone, coreset=b.coreset, coreset_size=b.coreset_size, neighbours=b.neighbours)


def _penalty(run: Run) -> Tensor:
    """Images of other things for EfficientAD's student: photographs drawn from a folder of the profile's, else good images of MiniFab's other
    development designs. Photographs are treated as EfficientAD does: enlarged to twice the side, three in ten turned grey, the centre cut out."""
    p, b = run.profile, run.profile.baselines
    folder = p.path("efficientad_penalty")
    if folder is not None:
        files = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise FsadError(f"no .jpg or .png in {folder}; expected photographs of other things. {p.efficientad_penalty.source}")
        draw, side = np.random.default_rng([run.seed, 8]), b.efficientad_image_size
        chosen, centre = draw.permutation(files)[: b.efficientad_penalty], slice(side // 2, side // 2 + side)
        x = torch.cat([datasets.read_images([path], 2 * side)[..., centre, centre].clone() for path in chosen.tolist()])
        grey = torch.from_numpy(draw.random(len(x)) < 0.3).view(-1, 1, 1, 1)
        return torch.where(grey, rgb_to_grayscale(x, 3), x)
    own = run.category if run.dataset == "minifab_dev" else ""
    others = [name for name in datasets.categories("minifab_dev") if name != own]
    each = -(-b.efficientad_penalty // len(others))
    tables = [datasets.load("minifab_dev", name).query("split == 'train'") for name in others]
    return datasets.read_images([path for table in tables for path in table.path[:each]][: b.efficientad_penalty], b.efficientad_image_size)


def _side(run: Run, name: str) -> int:
    p = run.profile
    sides = {"efficientad": p.baselines.efficientad_image_size, "reverse_distillation": p.distillation_backbone.image_size}
    return sides.get(name, p.baseline_backbone.image_size)


def _steps(run: Run, name: str) -> int | None:
    b = run.profile.baselines
    return {"cflow": b.cflow_steps, "efficientad": b.efficientad_steps, "reverse_distillation": b.distillation_steps}.get(name)


def augment(run: Run) -> Augmented:
    """Every baseline of the profile, trained anew in every arm: from the same seed, for the same number of optimizer steps.

    Args:
        run: a run of stage "32_augment". Products lie in the folder of :func:`trained_run`.

    Raises:
        FsadError: see :func:`synthesize`, which runs first where it has not, and the detectors' own ``fit``.
    """
    run = trained_run(run)
    run.check_inputs()
    made, several, records, losses = None, arms(run), [], []
    for name in dict.fromkeys(run.profile.baselines.names):
        for arm in several:
            product = f"{name}-{arm}"
            if not run.has(f"{product}.safetensors", f"{product}.json"):
                if made is None:
                    for each in run.profile.baselines.names:  # refuses what none can be made of, before the images take their time
                        make_detector(run, each)
                    made = synthesize(run)
                with run.making():
                    if not run.has(f"{product}.safetensors", f"{product}.json"):  # another process may have been quicker
                        _train(run, made, name, arm)
            record = json.loads(run.product_path(f"{product}.json").read_text())
            values = record.pop("losses")
            tenth = max(1, len(values) // 10)
            ends = {"first_loss": np.mean(values[:tenth]), "last_loss": np.mean(values[-tenth:])} if values else {}
            records.append({"baseline": name, "arm": arm, **record, **ends})
            losses.append(pd.DataFrame({"baseline": name, "arm": arm, "step": range(1, len(values) + 1), "loss": values}))
    return Augmented(pd.DataFrame(records), pd.concat(losses, ignore_index=True))


def _train(run: Run, made: Synthesized, name: str, arm: str) -> None:
    detector, steps = make_detector(run, name), _steps(run, name)
    x = training_images(run, made, arm, _side(run, name))
    unfinished = run.scratch(f"{name}-{arm}.pt")
    how = {"steps": steps, "checkpoint": unfinished} if steps else {}  # PatchCore trains nothing
    losses = detector.fit(x, seed=run.seed, progress=counter(f"{name}, {arm}"), **how)
    with run.writing(f"{name}-{arm}.safetensors") as path:
        save_file(detector.state(), path)
    record = {"images": len(x), "added": len(x) - len(made.paths), "steps": steps or 0, "losses": losses}
    if name == "patchcore":
        record |= {"memory": detector.memory_size, "patches": detector.patches_seen}
    with run.writing(f"{name}-{arm}.json") as path:
        write_json(path, record)
    unfinished.unlink(missing_ok=True)


# -------------------------------------------------------------------- stage 4
def load_detector(run: Run, name: str, arm: str) -> Any:
    """A baseline as it was trained in an arm, by the :func:`trained_run` of ``run``; it is trained now if it has not been."""
    source = trained_run(run)
    product = f"{name}-{arm}"
    if not source.has(f"{product}.safetensors", f"{product}.json"):
        augment(source)
    return make_detector(run, name).load(load_file(source.product_path(f"{product}.safetensors")))


def evaluate(run: Run) -> Evaluated:
    """Judge the test images by every baseline of every arm.

    ``method`` is the baseline, ``part`` the arm (see :func:`added_images`); "shots" is the baseline as it is. Besides the groups of
    :func:`fsad_lib.metrics.metric_rows`, rows of the groups "logical" and "structural" are measured where defects are of both kinds.

    MVTec LOCO's rows have ``au_spro`` in addition, measured at the maps' size.

    Args:
        run: a run of stage "42_evaluate".

    Raises:
        FsadError: no test image, a mask that does not fit its image; see also :func:`augment`, which runs first where it has not.
    """
    made = ("predictions.parquet", "maps.npz", "rows.json")
    run.check_inputs()
    if not run.has(*made):
        limit = limit_of(run.profile.baselines.test_images, run.dataset)
        test = sample(run.table().query("split == 'test'"), limit).reset_index(drop=True)
        if test.empty:
            raise FsadError(f"no test images in {run.dataset}/{run.category}; put the images to judge into test/ folders.")
        found = {}
        for name in dict.fromkeys(run.profile.baselines.names):
            for arm in arms(run):
                found[name, arm] = _judged(run, test, name, arm)
        predictions, rows = _measure(run, test, found)
        with run.writing(made[0]) as path:
            predictions.assign(path=predictions["path"].map(portable_path)).to_parquet(path, index=False)
        with run.writing(made[1]) as path:
            small = {"/".join(key): _shrunk(maps, KEPT_SIZE).astype(np.float16) for key, (_, maps) in found.items()}
            np.savez_compressed(path, paths=np.array([portable_path(p) for p in test.path], str), **small)
        with run.writing(made[2]) as path:
            write_json(path, rows)
    with np.load(run.product_path(made[1])) as file:
        paths = [absolute_path(p) for p in file["paths"].tolist()]
        maps = {key: file[key].astype(np.float32) for key in file.files if key != "paths"}
    predictions = pd.read_parquet(run.product_path(made[0]))
    predictions = predictions.assign(path=predictions["path"].map(absolute_path))
    return Evaluated(predictions, json.loads(run.product_path(made[2]).read_text()), maps, paths)


def _judged(run: Run, test: pd.DataFrame, name: str, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) and maps (N, side, side) of one detector, kept the moment they are complete."""
    file = run.scratch(f"judged-{name}-{arm}.npz")
    if not file.is_file():
        detector, side, parts, report = load_detector(run, name, arm), _side(run, name), [], counter(f"evaluate {name}, {arm}")
        paths = test["path"].tolist()
        for i in range(0, len(paths), 8):
            scores, maps = detector(datasets.read_images(paths[i : i + 8], side))
            parts.append((scores.numpy(), _shrunk(maps.numpy(), min(MAP_SIZE, run.profile.vqgan.image_size))))
            if report:
                report(min(i + 8, len(paths)), len(paths))
        with replacing(file) as path:
            np.savez(path, scores=np.concatenate([s for s, _ in parts]), maps=np.concatenate([m for _, m in parts]))
    with np.load(file) as kept:
        return kept["scores"], kept["maps"]


def _shrunk(maps: np.ndarray, side: int) -> np.ndarray:
    """(N, h, w) averaged down to at most ``side``."""
    if maps.shape[-1] <= side:
        return maps
    return F.interpolate(torch.from_numpy(maps)[:, None].float(), (side, side), mode="area")[:, 0].numpy()


def _measure(run: Run, test: pd.DataFrame, found: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    seen, minifab = pd.Series(True, test.index), run.dataset.startswith("minifab")
    if minifab:
        from fsad_lib.datasets.minifab import UNSEEN

        seen = ~test["defect"].isin(UNSEEN)
    base = test[["path", "category", "label", "defect"]].assign(seen=seen)
    predictions = pd.concat([base.assign(method=m, part=part, score=scores.astype(float)) for (m, part), (scores, _) in found.items()], ignore_index=True)
    masks, pixel, known = None, {}, (test["label"] >= 0).to_numpy(copy=True)  # writable, as torch wants its index
    if datasets.measurable(test):
        masks = datasets.read_masks(test[known], next(iter(found.values()))[1].shape[-1])
        pixel = {key: pixel_metrics(masks, maps[known], test["path"][known].tolist()) for key, (_, maps) in found.items()}
    if pixel and run.dataset == "mvtec_loco":
        regions = _regions(test, next(iter(found.values()))[1].shape[-1])
        pixel = {key: values | {"au_spro": au_spro(regions, found[key][1])} for key, values in pixel.items()}
    rows = metric_rows(predictions, pixel, minifab)
    for group, of in _kinds(run.dataset, test).items():
        keep = known & (of | test["label"].eq(0)).to_numpy()
        for (method, part), (scores, maps) in found.items():
            row = {"method": method, "part": part, "group": group, "n": int(keep.sum()), **image_metrics(test["label"][keep], scores[keep])}
            rows.append(row | (pixel_metrics(masks[keep[known]], maps[keep]) if masks is not None else {}))
    return predictions, [{"category": run.category, **row} for row in rows]


def _regions(test: pd.DataFrame, side: int) -> list[list[tuple[np.ndarray, int]]]:
    """MVTec LOCO's defects of every image at the maps' side: (mask, saturation in pixels); a saturation shrinks as its mask does."""
    from fsad_lib.datasets.mvtec_loco import regions

    found = []
    for path in test["mask_path"]:
        found.append([])
        for m, saturation, *_ in regions(path) if isinstance(path, str) else ():
            share = F.interpolate(torch.from_numpy(m)[None, None].float(), (side, side), mode="area")[0, 0].numpy()
            small = share >= 0.5 if (share >= 0.5).any() else share > 0  # a thin defect does not vanish
            found[-1].append((small, max(1, round(saturation * int(small.sum()) / int(m.sum())))))
    return found


def _kinds(dataset: str, test: pd.DataFrame) -> dict[str, pd.Series]:
    """"logical" and "structural" -> which images have such a defect; empty unless both kinds and good images are there."""
    logical = test["defect"].eq("logical_anomalies")
    if dataset.startswith("minifab"):
        from fsad_lib.datasets.minifab import LOGICAL

        logical = test["defect"].isin(LOGICAL)
    kinds = {"logical": logical, "structural": test["label"].eq(1) & ~logical}
    both = dataset.startswith(("minifab", "mvtec_loco")) and all(of.any() for of in kinds.values()) and test["label"].eq(0).any()
    return kinds if both else {}
