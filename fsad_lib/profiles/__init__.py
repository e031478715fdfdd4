"""Profiles: what is loaded and with which hyper-parameters.

A profile is a YAML file beside this module (``mini``, ``paper``), read into frozen pydantic models that refuse
unknown keys. Paths are relative to the project root; :meth:`Profile.path` resolves them.
"""

import difflib
import json
import math
import os
import re
import zipfile
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError
from safetensors import SafetensorError, safe_open

from fsad_lib.errors import FsadError
from fsad_lib.runs import project_root

LARGEST = 10_000_000
"""No count, number of steps or size is greater: a slip of the finger is refused now, not when memory or time runs out."""

Positive = Annotated[int, Field(gt=0, le=LARGEST)]
LARGEST_SIDE = 4096
"""No model here reads larger pictures, and memory grows with the square of the side."""
Side = Annotated[int, Field(gt=0, le=LARGEST_SIDE)]
Steps = Annotated[int, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Above0 = Annotated[float, Field(gt=0)]
AtLeast0 = Annotated[float, Field(ge=0)]
AtLeast2 = Annotated[int, Field(ge=2, le=LARGEST)]
DatasetName = Literal["minifab", "minifab_dev", "elpv", "mvtec_ad", "visa", "mvtec_loco", "btad", "folder"]


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise PydanticCustomError("order", "expected the least share first, then the greatest")
    return pair


def _distinct(scales: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(scales)) < len(scales):
        raise PydanticCustomError("distinct", "expected different numbers, each once")
    return scales


def _at_least_one_step(steps: int, strength: float | None) -> int:
    """Refuse a strength of less than one step now: SDEdit and inpainting would do so after the training (None: refused already)."""
    if strength is not None and int(steps * strength) == 0:
        from fsad_lib.foundation.diffusion import least_strength

        raise PydanticCustomError(
            "steps", "at strength {strength} that is less than one step: raise it to at least {steps}, or the strength to at least {least}",
            {"strength": strength, "steps": math.ceil(1 / strength), "least": least_strength(steps)},
        )  # fmt: skip
    return steps


def _without_placeholders(prompts: tuple[str, ...], known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Refuse learned words that will have no vector when the prompts are used, which is after a training."""
    found = {word for prompt in prompts for word in _PLACEHOLDER.findall(prompt)} - set(known)
    if found:
        text = "the learned word {found} does not exist when these prompts are used; expected {known}"
        context = {"found": ", ".join(sorted(found)), "known": f"only {', '.join(known)}" if known else "none of the form <...>"}
        raise PydanticCustomError("placeholder", text, context)
    return prompts


def _with_concepts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    return _without_placeholders(prompts, _CONCEPTS)


_PLACEHOLDER = re.compile(r"<[A-Za-z0-9_*\-]+>")  # as foundation.tokens, which would import torch
_CONCEPTS = ("<ti>", "<c_n>", "<c_a>")  # what the first stage of ADP learns
Range = Annotated[tuple[Fraction, Fraction], AfterValidator(_ordered)]
Scales = Annotated[tuple[Positive, ...], Field(min_length=1), AfterValidator(_distinct)]
Prompts = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_without_placeholders)]
PromptsWithConcepts = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_with_concepts)]
TestImages = AtLeast2 | tuple[tuple[DatasetName, AtLeast2], ...] | None


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false, which pydantic would take for 1 and 0, wherever they are not asked for."""
        asked = cls.model_fields[info.field_name].annotation is bool
        if not asked and any(isinstance(v, bool) for v in (value, *(value if isinstance(value, list | tuple) else ()))):
            raise PydanticCustomError("truth", "true and false (in YAML also yes, no, on, off) are no value of this key")
        return value


class Clip(_Model):
    """An open_clip checkpoint: a folder, or a file together with the name of its architecture."""

    checkpoint: str
    architecture: str | None = None
    source: str = ""


class Diffusion(_Model):
    """A diffusers folder in hub layout; ``image_size`` in pixels."""

    checkpoint: str
    image_size: Side
    source: str = ""


class Backbone(_Model):
    """A timm backbone for ``patch_memory``; without ``checkpoint`` the weights come from its Python package."""

    name: str
    checkpoint: str | None = None
    image_size: Side = 224
    source: str = ""


class Adp(_Model):
    """Hyper-parameters of ADP (equations 1 to 7)."""

    alpha: AtLeast0
    gamma: Annotated[float, Field(ge=0, le=1)]
    tau: Above0
    lr: Above0
    steps_ti: Steps
    steps_normal: Steps
    steps_anomaly: Steps
    batch_size: Positive
    templates: Annotated[int, Field(ge=1, le=27)]
    n_pseudo: Positive
    n_pseudo_tuning: Positive
    strength: Fraction
    guidance_scale: AtLeast0
    num_inference_steps: Positive
    crop_scale: Range
    visual_weight: AtLeast0
    gradient_checkpointing: bool = False
    prompts_pseudo: Prompts
    prompts_tuning: PromptsWithConcepts

    @field_validator("num_inference_steps")
    @classmethod
    def _one_step(cls, steps: int, info: ValidationInfo) -> int:
        return _at_least_one_step(steps, info.data.get("strength"))


class Winclip(_Model):
    """``tau`` None means 1 / the model's own logit scale; ``scales`` are window sides in patches."""

    tau: Above0 | None = None
    scales: Scales = (2, 3)


class Perceptual(_Model):
    """The folder of the LPIPS weights."""

    checkpoint: str
    source: str = ""


class Anomalysd(_Model):
    """Hyper-parameters of AnomalySD: prompts, fine-tuning of U-Net and decoder, inference (the names of
    ``anomalysd.detector.Settings``). ``test_images``: so many test images a category are judged, half of them good; pairs say it
    for single data sets; None: all."""

    prompt_levels: tuple[Literal["object", "detail"], ...]
    parts: tuple[tuple[str, str], ...] = ()
    foreground: bool
    area: Range
    steps_unet: Steps
    lr_unet: Above0
    steps_decoder: Steps
    lr_decoder: Above0
    beta: AtLeast0
    train_batch_size: Positive
    gradient_checkpointing: bool
    precision: Literal["float32", "bfloat16"]
    strength: Fraction
    scales: Scales
    alpha: Annotated[float, Field(ge=0, le=1)]
    guidance_scale: AtLeast0
    num_inference_steps: Positive
    prototype_share: Fraction
    prototype_margin: Annotated[float, Field(ge=0, lt=0.5)]
    packed: bool
    merged: bool
    image_share: Annotated[float, Field(ge=0, le=1)]
    sigma: AtLeast0
    epsilon: Above0
    perceptual_size: Annotated[int, Field(ge=31, le=LARGEST_SIDE)] | None
    batch_size: Positive
    test_images: TestImages = None

    @field_validator("num_inference_steps")
    @classmethod
    def _one_step(cls, steps: int, info: ValidationInfo) -> int:
        return _at_least_one_step(steps, info.data.get("strength"))


class Vqgan(_Model):
    """A VQGAN: the miniature's folder, or a checkpoint of taming-transformers; ``image_size`` in pixels."""

    checkpoint: str
    image_size: Side
    source: str = ""


class Files(_Model):
    """A file or a folder of images; without ``checkpoint`` there is none."""

    checkpoint: str | None = None
    source: str = ""


class Tgvig(_Model):
    """Hyper-parameters of TGVIG: prompt search (eq. 1), generator and integrator (eq. 2 to 7), and the images of Tables 1 and 2.

    ``weights``: of the VQGAN loss's perceptual, codebook and adversarial part. ``rivals``: further generators that are asked for
    ``rival_images`` images each; ``caption``: a sentence about the original for one of them, empty: there is none."""

    depth: Positive
    filter: Literal["printed", "reversed", "farthest"]
    farthest: Annotated[float, Field(ge=0, lt=1)]
    iterations: Positive
    images: Positive
    augmented: AtLeast2
    lam: AtLeast0
    lr: Above0
    variance: Literal["estimated", "unit", "none"]
    quantized: bool
    update_discriminator: bool
    gradient_checkpointing: bool
    weights: tuple[AtLeast0, AtLeast0, AtLeast0]
    augmentation: Literal["aligned", "flips"]
    brightness: Annotated[float, Field(ge=0, lt=1)]
    contrast: Annotated[float, Field(ge=0, lt=1)]
    colour: Annotated[float, Field(ge=0, lt=1)]
    gamma: Annotated[float, Field(ge=0, lt=1)]
    shift: Steps | None = None
    rivals: tuple[Literal["vqgan_clip_word", "vqgan_clip_naive", "vqgan_clip_caption", "vqgan_clip_worst", "vqgan_clip_best", "diffusion"], ...]
    rival_images: Positive
    rival_start: bool
    rival_steps: Positive
    rival_lr: Above0
    rival_cutouts: Positive
    caption: str = ""
    diffusion_strength: Fraction
    diffusion_guidance: AtLeast0
    diffusion_steps: Positive

    @field_validator("diffusion_steps")
    @classmethod
    def _one_step(cls, steps: int, info: ValidationInfo) -> int:
        return _at_least_one_step(steps, info.data.get("diffusion_strength"))


class Baselines(_Model):
    """What the detectors are trained on and for how long: the same in every arm. ``test_images``: as in anomalysd."""

    names: Annotated[tuple[Literal["patchcore", "cflow", "efficientad", "reverse_distillation"], ...], Field(min_length=1)]
    arms: Annotated[
        tuple[Literal["shots", "generated", "duplicated", "augmented", "without_text", "worst_prompt", "word", "naive"], ...], Field(min_length=1)
    ]
    coreset: Fraction
    coreset_size: Positive | None = None
    neighbours: Positive
    cflow_steps: Positive
    cflow_batch_size: Positive
    cflow_lr: Above0
    cflow_blocks: Positive
    cflow_condition: Annotated[int, Field(ge=4, le=LARGEST, multiple_of=4)]
    cflow_fibers: Positive
    efficientad_steps: Positive
    efficientad_lr: Above0
    efficientad_weight_decay: AtLeast0
    efficientad_image_size: Annotated[int, Field(ge=256, le=LARGEST_SIDE)]
    efficientad_penalty: Positive
    distillation_steps: Positive
    distillation_batch_size: Positive
    distillation_lr: Above0
    test_images: TestImages = None


def _home(path: str) -> str:
    return os.path.expanduser(path)  # "~" of an override: no shell has seen it


class Profile(_Model):
    """One resolved profile. Sections: clip, winclip_clip, diffusion, inpainting, perceptual, backbone, adp, anomalysd, winclip; of TGVIG
    vqgan, tgvig_clip, baseline_backbone (PatchCore, CFlow), distillation_backbone, efficientad_teacher, efficientad_penalty, inception,
    outside, tgvig, baselines."""

    name: Literal["mini", "paper"]
    models_root: str
    clip: Clip
    winclip_clip: Clip
    diffusion: Diffusion
    inpainting: Diffusion
    perceptual: Perceptual
    backbone: Backbone
    adp: Adp
    anomalysd: Anomalysd
    winclip: Winclip
    vqgan: Vqgan
    tgvig_clip: Clip
    baseline_backbone: Backbone
    distillation_backbone: Backbone
    efficientad_teacher: Files
    efficientad_penalty: Files
    inception: Backbone
    outside: Files
    tgvig: Tgvig
    baselines: Baselines

    @field_validator("anomalysd")
    @classmethod
    def _cells_of_a_pixel(cls, section: Anomalysd, info: ValidationInfo) -> Anomalysd:
        side = info.data["inpainting"].image_size if "inpainting" in info.data else None
        if side is not None and max(section.scales) > side:
            text = "found scales of {largest} cells a side; expected at most {side}, the pixels of inpainting.image_size"
            raise PydanticCustomError("scales", text, {"largest": max(section.scales), "side": side})
        return section

    def path(self, section: str) -> Path | None:
        """Absolute path of a section's checkpoint ("clip", "winclip_clip", "diffusion", "inpainting",
        "perceptual", "backbone", ...); None where the weights come with a Python package, or where there is nothing.

        >>> load_profile("mini").path("clip").parts[-2:]
        ('mini', 'clip')
        """
        checkpoint = getattr(self, section).checkpoint
        # "../mini" is resolved by name: the folder of the real checkpoints need not exist where every one lies elsewhere
        return None if checkpoint is None else Path(os.path.normpath(project_root() / _home(self.models_root) / _home(checkpoint)))


MODEL_SECTIONS = ("clip", "winclip_clip", "diffusion", "backbone")
"""What ADP and its rivals load."""

ANOMALYSD_SECTIONS = ("clip", "winclip_clip", "inpainting", "perceptual", "backbone")
"""What AnomalySD and its rivals load; ``clip`` only in mini, for the text encoder that its inpainting model shares."""

_OF_TGVIG = (
    "vqgan", "tgvig_clip", "baseline_backbone", "distillation_backbone", "efficientad_teacher", "efficientad_penalty", "inception", "outside",
    "tgvig", "baselines",
)  # fmt: skip
_OF_DETECTORS = ("baseline_backbone", "distillation_backbone", "efficientad_teacher", "efficientad_penalty", "outside", "baselines")

FINE_TUNING = (
    "prompt_levels", "parts", "foreground", "area", "steps_unet", "lr_unet", "steps_decoder", "lr_decoder", "beta", "train_batch_size",
    "gradient_checkpointing", "precision",
)  # fmt: skip
"""The values of ``anomalysd`` that its fine-tuning depends on."""

FOREIGN: dict[str | tuple[str, str], tuple[str, ...]] = {
    "adp": ("inpainting", "perceptual", "anomalysd", *_OF_TGVIG),
    "anomalysd": ("diffusion", "adp", *_OF_TGVIG),
    "tgvig": ("winclip_clip", "inpainting", "backbone", "adp", "anomalysd", "winclip"),
    ("11_personalize", "anomalysd"): (
        "winclip_clip", "backbone", "winclip", *(f"anomalysd.{name}" for name in Anomalysd.model_fields if name not in FINE_TUNING),
    ),
    ("22_synthesize", "tgvig"): _OF_DETECTORS,
    ("32_augment", "tgvig"): ("baselines.test_images",),
}  # fmt: skip
"""method, or (stage, method) -> the sections and values that cannot change its results, and stay out of its fingerprints."""


def concerns(key: str, method: str, stage: str = "") -> bool:
    """Whether a section of the profile, or a value of one, can change what a method, or a stage of it, makes.

    >>> concerns("anomalysd.beta", "anomalysd", "11_personalize"), concerns("anomalysd.alpha", "anomalysd", "11_personalize")
    (True, False)
    >>> concerns("winclip.tau", "anomalysd"), concerns("winclip.tau", "anomalysd", "11_personalize")
    (True, False)
    """
    foreign = (*FOREIGN.get(method, ()), *FOREIGN.get((stage, method), ()))
    return key not in foreign and key.partition(".")[0] not in foreign

DETECTORS = {
    "patchcore": ("baseline_backbone",), "cflow": ("baseline_backbone",), "efficientad": ("efficientad_teacher", "efficientad_penalty"),
    "reverse_distillation": ("distillation_backbone",),
}  # fmt: skip
"""baseline -> the sections with what it is pretrained on."""


def sections(method: str, profile: "Profile | None" = None, stage: str = "") -> tuple[str, ...]:
    """The profile's sections with the checkpoints that a method and its rivals load (without a profile: all that it may need); of TGVIG
    those of the profile's baselines and rival generators, in its stage 22 without the baselines'; of AnomalySD's stage 11 those of the fine-tuning.

    >>> "inpainting" in sections("anomalysd"), "inpainting" in sections("adp")
    (True, False)
    >>> "distillation_backbone" in sections("tgvig"), "distillation_backbone" in sections("tgvig", load_profile("mini"))
    (True, False)
    >>> "clip" in sections("anomalysd", load_profile("mini")), "clip" in sections("anomalysd", load_profile("paper"))
    (True, False)
    """
    if method == "anomalysd":
        own_text_encoder = profile is not None and profile.name == "paper"
        found = ANOMALYSD_SECTIONS[own_text_encoder:]
    elif method == "tgvig":
        rivals = profile is None or "diffusion" in profile.tgvig.rivals
        baselines = DETECTORS if profile is None else profile.baselines.names
        found = ("vqgan", "tgvig_clip", "perceptual", "inception", *(("clip", "diffusion") if rivals else ()))
        found += (*dict.fromkeys(section for name in baselines for section in DETECTORS[name]), "outside")
    else:
        found = MODEL_SECTIONS
    return tuple(section for section in found if concerns(section, method, stage))


def names() -> list[str]:
    """The profiles that exist.

    >>> names()
    ['mini', 'paper']
    """
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def _shown(value: Any) -> str:
    """A value for an error message, cut to 200 characters.

    >>> _shown("x"), len(_shown("x" * 1000))
    ("'x'", 203)
    """
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def parse_overrides(text: str) -> dict[str, Any]:
    """Read ``"adp.alpha=2,winclip.scales=[2,3]"``; values are YAML.

    >>> parse_overrides("adp.alpha=2, winclip.scales=[2,3]")
    {'adp.alpha': 2, 'winclip.scales': [2, 3]}
    """
    found: dict[str, Any] = {}
    for item in re.split(r",(?=\s*[A-Za-z_][\w.]*\s*=)", text.strip()) if text.strip() else []:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise FsadError(f"overrides: found {_shown(item.strip())}, expected key=value,key=value as in 'adp.alpha=2'.")
        if key.strip() in found:
            raise FsadError(f"overrides: {_shown(key.strip())} is given twice.")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except Exception as error:  # PyYAML lets through what its readers of numbers, dates and nested lists raise
            raise FsadError(f"overrides: the value of {_shown(key.strip())} is not valid YAML: {_shown(value)}.") from error
    return found


def _keys(raw: dict[str, Any]) -> list[str]:
    fields = []
    for name, info in Profile.model_fields.items():
        if isinstance(raw.get(name), dict):
            fields += [f"{name}.{key}" for key in info.annotation.model_fields]
        elif name != "name":
            fields.append(name)
    return fields


@cache
def _read(name: str) -> str:
    if name not in names():
        close = difflib.get_close_matches(str(name), names(), 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise FsadError(f"Unknown profile {name!r}; the profiles are {', '.join(names())}.{hint}")
    return (Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8")


def load_profile(name: str, overrides: dict[str, Any] | str | None = None) -> Profile:
    """Read a profile and apply ``overrides`` (a dict of dotted keys, or the string of :func:`parse_overrides`).

    Unknown names and keys, and values of the wrong type or range, raise :class:`FsadError`.

    >>> load_profile("mini", "adp.alpha=2").adp.alpha
    2.0
    >>> load_profile("mini", "adp.alfa=2")
    Traceback (most recent call last):
    fsad_lib.errors.FsadError: Profile 'mini' has no key 'adp.alfa'. Did you mean 'adp.alpha'?
    """
    raw = yaml.safe_load(_read(name))
    valid = _keys(raw)
    for key, value in (parse_overrides(overrides) if isinstance(overrides, str) else overrides or {}).items():
        if key not in valid:
            close = difflib.get_close_matches(key, valid, 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Keys: {', '.join(valid)}."
            raise FsadError(f"Profile {name!r} has no key {_shown(key)}. {hint}")
        section, _, field = key.partition(".")
        if field:
            raw[section][field] = value
        else:
            raw[section] = value
    try:
        return Profile.model_validate(raw)
    except ValidationError as error:
        lines = []
        for e in error.errors():
            found = "" if isinstance(e["input"], dict) else f"found {_shown(e['input'])}; "  # a whole section is not repeated
            lines.append(f"  {'.'.join(map(str, e['loc']))}: {found}{e['msg'][0].lower() + e['msg'][1:]}")
        raise FsadError("\n".join([f"Profile {name!r} is not valid:", *lines])) from None


def _missing_files(section: str, path: Path, shared_text_encoder: bool) -> list[Path]:
    if section in ("diffusion", "inpainting"):
        return _missing_in_hub_folder(path, shared_text_encoder)
    if section == "vqgan":
        return _missing_vqgan(path)
    if section in ("clip", "winclip_clip", "tgvig_clip") and path.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
        files = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
        missing = [path / "open_clip_config.json"] if not (path / "open_clip_config.json").is_file() else []
        return missing if any((path / f).is_file() for f in files) else [*missing, path / files[0]]
    return [] if path.is_file() or (path.is_dir() and section in ("backbone", "perceptual", "efficientad_penalty", "outside")) else [path]


def _missing_vqgan(path: Path) -> list[Path]:
    """The miniature's three files, or the one checkpoint of taming-transformers (``last.ckpt`` in a folder)."""
    if path.suffix in (".ckpt", ".pt", ".pth"):
        return [] if path.is_file() else [path]
    if (path / "last.ckpt").is_file() and not (path / "config.json").is_file():
        return []
    files = ("config.json", "diffusion_pytorch_model.safetensors", "discriminator.safetensors")
    return [path / name for name in files if not (path / name).is_file()]


def _missing_in_hub_folder(path: Path, shared_text_encoder: bool) -> list[Path]:
    """``shared_text_encoder``: text encoder and tokenizer may be absent, CLIP's stand in for them (mini only)."""
    files = [path / "model_index.json", path / "scheduler" / "scheduler_config.json"]
    missing = [file for file in files if not file.is_file()]
    stems = {"unet": ["diffusion_pytorch_model"], "vae": ["diffusion_pytorch_model"]}
    if not shared_text_encoder or (path / "text_encoder").is_dir():
        stems["text_encoder"] = ["model", "pytorch_model"]
    for part, names in stems.items():
        if not (path / part / "config.json").is_file():
            missing.append(path / part / "config.json")
        if not any(f for stem in names for end in ("safetensors", "bin") for f in (path / part).glob(f"{stem}*.{end}")):
            missing.append(path / part / f"{names[0]}.safetensors")
    tokenizer = path / "tokenizer"
    if not shared_text_encoder or tokenizer.is_dir():
        if not (tokenizer / "tokenizer.json").is_file():
            missing += [tokenizer / name for name in ("vocab.json", "merges.txt") if not (tokenizer / name).is_file()]
        if not any((tokenizer / name).is_file() for name in ("tokenizer_config.json", "special_tokens_map.json")):
            missing.append(tokenizer / "tokenizer_config.json")  # names the padding token; without it prompts are padded with another one
    return missing


def missing_checkpoints(profile: Profile, sections: tuple[str, ...] = MODEL_SECTIONS) -> None:
    """Return when every file of the profile's ``sections`` is there; else raise :class:`FsadError` naming each
    missing file, where to get it and where to put it; likewise for a backbone that an override names and timm does not know. No model is
    loaded: it takes milliseconds, seconds with such an override."""
    lines: list[str] = []
    unknown_backbones(profile, sections)
    for section in sections:
        path = profile.path(section)
        missing = _missing_files(section, path, profile.name == "mini") if path is not None else []
        if missing:
            source = getattr(profile, section).source or "see README.md"
            lines += [f"  {section}: put it at {path}", f"    from: {source}"]
            lines += [f"    missing: {file}" for file in missing]
    if lines:
        title = f"Profile {profile.name!r} needs checkpoints that are not on disk:"
        example = f"{lines[0].split(':')[0].strip()}.checkpoint=/path/to/it"
        remedy = f"Download them, or point to your copy with an override such as '{example}'."
        raise FsadError("\n".join([title, *lines, remedy]))


def unknown_backbones(profile: Profile, sections: tuple[str, ...]) -> None:
    """Return when timm knows every backbone that an override names; else raise :class:`FsadError`, before an earlier stage has trained for hours."""
    shipped = load_profile(profile.name)
    for section in sections:
        ours = getattr(profile, section)
        if isinstance(ours, Backbone) and ours.name != getattr(shipped, section).name:
            from fsad_lib.foundation.backbones import check_name  # here, because it takes seconds

            try:
                check_name(ours.name, ours.checkpoint is not None)
            except FsadError as error:
                raise FsadError(f"{section}.name: {error}") from None


def damaged_checkpoints(profile: Profile, sections: tuple[str, ...] = MODEL_SECTIONS) -> None:
    """Return when no file that a method loads is cut short, or of another kind than its name says, as far as its first and last bytes tell;
    else raise :class:`FsadError` naming each. No weights are read: it takes milliseconds."""
    lines: dict[str, None] = {}  # sections may share a file
    for section in sections:
        for file in loaded_files(section, profile.path(section)):
            if damage := _damage(file):
                lines[f"  {file}: {damage}"] = None
    if lines:
        remedy = "An interrupted download, or a clone without `git lfs pull`, looks like this: get them again."
        raise FsadError("\n".join([f"Profile {profile.name!r} needs checkpoints that are damaged on disk:", *lines, remedy]))


def read_folders(section: str, path: Path) -> list[Path]:
    """The folders of a section's checkpoint whose files are read."""
    if section in ("diffusion", "inpainting"):  # its own folder may hold other programs' files
        return [path / name for name in ("unet", "vae", "scheduler", "text_encoder", "tokenizer")]
    return [path]


def loaded_files(section: str, path: Path | None) -> list[Path]:
    """The files of weights and settings below a section's checkpoint that its loader may read; of folders of images none."""
    if path is None or section in ("outside", "efficientad_penalty"):  # folders of images
        return []
    if not path.is_dir():
        return [path]
    found = []
    for folder in read_folders(section, path):
        for ending in (".safetensors", ".bin", ".ckpt"):
            weights = sorted(folder.glob(f"*{ending}"))
            found += [f for f in weights if f.name.count(".") == 1] or weights  # model.fp16.safetensors only where it stands alone
            if weights:
                break
        found += [f for pattern in ("*config.json", "*.index.json", "vocab.json") for f in sorted(folder.glob(pattern))]
    return found


def _damage(file: Path) -> str:
    """What is wrong with a file of weights or settings, else ""."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(8)
        if head == b"version ":
            return "a pointer of git LFS in place of the file"
        if file.suffix == ".json":
            return _damage_of_settings(file)
        if file.suffix == ".safetensors":
            with safe_open(file, "np"):  # reads the header, and holds the file's length against it
                return ""
        if head[:2] == b"PK":  # a zip's list of contents stands at its end
            return "" if zipfile.is_zipfile(file) else "the beginning of a file only"
        return "" if head else "an empty file"
    except OSError as error:
        return error.strerror or str(error)
    except SafetensorError as error:
        return f"no whole safetensors file ({error})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "not what its name says"


def _damage_of_settings(file: Path) -> str:
    settings = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        return "not a JSON object"
    if not file.name.endswith(".index.json"):
        return ""
    lost = sorted({name for name in settings["weight_map"].values() if not (file.parent / name).is_file()})
    return f"of the files that it lists {', '.join(lost)} are missing" if lost else ""
