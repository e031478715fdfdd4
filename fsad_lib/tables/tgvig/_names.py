"""The words, arms, overrides and reported numbers that TGVIG's tables share."""

from pathlib import Path

import pandas as pd

from fsad_lib.profiles import load_profile
from fsad_lib.tables._rows import read_reported

BASELINES = {"patchcore": "PatchCore", "cflow": "CFlow", "efficientad": "EfficientAD", "reverse_distillation": "Reverse Distillation"}
ARMS = {
    "shots": "shots alone", "generated": "shots + generated (TGVIG)", "duplicated": "shots duplicated (control)",
    "augmented": "shots + augmentations, no VQGAN (control)", "without_text": "shots + generated, last iteration",
    "worst_prompt": "shots + generated, worst prompt",
    "word": "shots + generated, word alone", "naive": "shots + generated, naive prompt",
}  # fmt: skip
CONTROLS = ("shots", "duplicated", "augmented")
"""What the generated images are measured against; only the first is the paper's."""
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC"}
SHOWN = METRICS | {"au_spro": "AU-sPRO"}
"""The metrics of one run; AU-sPRO (up to 5 % of false positives) is MVTec LOCO's own."""
SETTINGS = ("1", "5", "full")
"""The paper's numbers of shots; "full": all normal training images."""
UNITS = {"mvtec_ad": "MVTec AD", "btad": "BTAD", "mvtec_loco": "MVTec LOCO"}
TABLE1_TAG = "table1"
COPIES = (1, 10, 20, 30, 50, 100)

_TWO = "baselines.arms=[shots,generated]"
ABLATIONS: dict[tuple[str, str], str] = {
    ("text", "without text"): "baselines.arms=[shots,generated,without_text]",
    **{("copies", str(n)): f"tgvig.images={n},{_TWO}" for n in COPIES},
    ("variance", "without variance"): f"tgvig.variance=none,{_TWO}",
    ("variance", "unit variance"): f"tgvig.variance=unit,{_TWO}",
}
"""(component, arm) of Table 3 -> the overrides of its runs."""

_SIZE, _SHARE, _ALL = "one size in every arm", "a tenth of an arm's patches, anomalib's default", "every patch"
_EVERY = "baselines.coreset=1,baselines.coreset_size=null"
MEMORIES = {
    "mini": {_SIZE: "", _SHARE: "baselines.coreset_size=null", _ALL: _EVERY},
    "paper": {_SHARE: "", _SIZE: "baselines.coreset_size=1000", _ALL: _EVERY},
}
"""profile -> what PatchCore's memory keeps -> the overrides of the runs. With one shot, a tenth is 78 patches, and eleven times as many
with ten images added, whatever these show. Where every patch is kept, none can push out another."""

TABLE1 = {
    "original": ("Original image alone", "shots"), "web_image": ("Web image", "web_image"), "midjourney": ("Midjourney", "midjourney"),
    "dalle": ("DALL-E", "dalle"), "vqgan_clip_word": ("VQGAN-CLIP, word alone", "vqgan_clip_word"),
    "vqgan_clip_naive": ("VQGAN-CLIP, naive prompt", "vqgan_clip_naive"), "vqgan_clip_caption": ("VQGAN-CLIP, generated prompt", "vqgan_clip_caption"),
    "tgvig": ("Ours", "generated"), "diffusion": ("Diffusion model, an edit of the original (added by us)", "diffusion"),
    "duplicated": ("Original image duplicated (control, added by us)", "duplicated"),
    "augmented": ("Original image augmented, no VQGAN (control, added by us)", "augmented"),
}  # fmt: skip
"""row of Table 1 -> its name and the arm that fills it."""

TABLE2 = {
    "original": ("original", ""), "only_word": ("tgvig", "word"), "naive_prompt": ("tgvig", "naive"), "worst_prompt": ("tgvig", "worst"),
    "our_prompt": ("tgvig", "best"),
}  # fmt: skip
"""row of Table 2 -> (generator, prompt) of a run's quality rows; further rows of a run are added as ours."""


def words(setting: str) -> str:
    """A setting in words.

    >>> words("1"), words("5"), words("full")
    ('1 shot', '5 shots', 'all images')
    """
    return "all images" if setting == "full" else f"{setting} shot{'' if setting == '1' else 's'}"


def baseline_overrides(name: str) -> str:
    """The overrides of the runs of one baseline; the profile's own, PatchCore, needs none.

    >>> baseline_overrides("patchcore"), baseline_overrides("cflow")
    ('', 'baselines.names=[cflow]')
    """
    return "" if name == "patchcore" else f"baselines.names=[{name}]"


def ablation_overrides(profile: str = "mini") -> list[str]:
    """The overrides of every run behind ``table3``: the same in each profile, unlike AnomalySD's, which are asked for in the same way."""
    return list(ABLATIONS.values())


def table1_overrides(profile: str = "mini", outside: str = "") -> str:
    """The overrides of Table 1's runs (tag :data:`TABLE1_TAG`): every generator that can be run here, and a user's folder for the closed ones."""
    caption = ["vqgan_clip_caption"] if load_profile(profile).tgvig.caption else []
    drawn = ["vqgan_clip_word", "vqgan_clip_naive", *caption, "vqgan_clip_worst", "vqgan_clip_best", "diffusion"]
    return f"tgvig.rivals=[{','.join(drawn)}]" + (f",outside.checkpoint={outside}" if outside else "")


def reported(name: str, root: str | Path | None = None) -> pd.DataFrame:
    """One of the paper's tables, ``data/reported/tgvig_<name>.csv``, mean, std, value, gain and gain_percent as numbers, shots as text.

    Raises:
        FsadError: no such table.

    >>> table = reported("table1").set_index(["method", "metric"])["mean"]
    >>> float(table["tgvig", "image_auroc"])
    93.3
    """
    table = read_reported(f"tgvig_{name}", root)
    for column in ("mean", "std", "value", "gain", "gain_percent"):
        if column in table:
            table[column] = pd.to_numeric(table[column])
    return table


def surface(dataset: str, category: str) -> str:
    """ "objects", "textures", or "" for BTAD's third product, which the paper's text does not name.

    >>> surface("btad", "01"), surface("btad", "02"), surface("btad", "03"), surface("minifab", "wood")
    ('objects', 'textures', '', 'textures')
    """
    from fsad_lib.datasets.minifab import TEXTURES

    if dataset == "btad":
        return {"01": "objects", "02": "textures"}.get(category, "")
    textures = TEXTURES if dataset.startswith("minifab") else ("carpet", "grid", "leather", "tile", "wood") if dataset == "mvtec_ad" else ()
    return "textures" if category in textures else "objects"
