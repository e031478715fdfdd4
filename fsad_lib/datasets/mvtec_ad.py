"""MVTec AD (Bergmann et al., CVPR 2019): 15 categories, 5,354 images, pixel masks.

Licence: CC BY-NC-SA 4.0 (no commercial use), so it is not downloaded for you. Get it from
https://www.mvtec.com/company/research/datasets/mvtec-ad and unpack it so that the tree is::

    <data_root>/mvtec_ad/bottle/train/good/000.png
    <data_root>/mvtec_ad/bottle/test/good/000.png
    <data_root>/mvtec_ad/bottle/test/broken_large/000.png
    <data_root>/mvtec_ad/bottle/ground_truth/broken_large/000_mask.png
    <data_root>/mvtec_ad/cable/...

`data_root` may also be the data set's folder itself, and the folder may keep its archive's name
(``mvtec_anomaly_detection``). The numbers of images are checked against the paper's Table 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fsad_lib.datasets import folder
from fsad_lib.datasets._common import Benchmark, load_benchmark

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("mvtec_ad", "mvtec_anomaly_detection", "MVTecAD", "MVTec", "mvtec")
# Bergmann et al. 2019, Table 1: train good, test good, test defective
COUNTS: dict[str, tuple[int, int, int]] = {
    "bottle": (209, 20, 63), "cable": (224, 58, 92), "capsule": (219, 23, 109), "carpet": (280, 28, 89),
    "grid": (264, 21, 57), "hazelnut": (391, 40, 70), "leather": (245, 32, 92), "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141), "screw": (320, 41, 119), "tile": (230, 33, 84), "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40), "wood": (247, 19, 60), "zipper": (240, 32, 119),
}  # fmt: skip
CATEGORIES = sorted(COUNTS)

WHERE = """MVTec AD is not here and cannot be downloaded for you (licence CC BY-NC-SA 4.0).
  get it:  https://www.mvtec.com/company/research/datasets/mvtec-ad
  put it:  {root}/mvtec_ad/<category>/train/good/000.png
           {root}/mvtec_ad/<category>/test/<good or kind>/000.png
           {root}/mvtec_ad/<category>/ground_truth/<kind>/000_mask.png"""


BENCHMARK = Benchmark(
    "MVTec AD", "category", NAMES, COUNTS, folder.rows_of, "<name>_mask.png in ground_truth/<kind of defect>", WHERE,
    "https://www.mvtec.com/company/research/datasets/mvtec-ad",
)  # fmt: skip


def load(data_root: str | Path, category: str | None = None) -> pd.DataFrame:
    """The table of one category, or of all 15 (None); what it raises, :func:`fsad_lib.datasets._common.load_benchmark` says."""
    return load_benchmark(BENCHMARK, data_root, category)
