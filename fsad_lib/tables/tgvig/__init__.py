"""TGVIG's tables: gains over the controls, Tables 1 to 4, per class, claims; percent everywhere.

The rules are those of :mod:`fsad_lib.tables`: a miniature's number never stands beside a paper's, what was not run reads "not run", and
the controls are part of every table. Gains are given absolute (percent points) and relative (percent of the arm they are measured
against), since the paper does not say which of the two it prints.
"""

from pathlib import Path

import pandas as pd

from fsad_lib.runs import project_root, replacing
from fsad_lib.tables._paper import own_choices
from fsad_lib.tables._rows import NOT_RUN
from fsad_lib.tables._text import MINI_NOTE, check_file_name, to_csv, write_rows, write_table
from fsad_lib.tables.tgvig._claims import claims
from fsad_lib.tables.tgvig._convergence import LATE, convergence, losses, show_convergence
from fsad_lib.tables.tgvig._gains import (
    all_rows,
    committed_rows,
    full_shot,
    gains,
    gains_reported,
    memories,
    paired_gap,
    per_class,
    rows_of,
    run_part,
    show_gains,
    show_gains_reported,
    show_memories,
    show_per_class,
)
from fsad_lib.tables.tgvig._names import (
    ABLATIONS,
    ARMS,
    BASELINES,
    CONTROLS,
    MEMORIES,
    METRICS,
    SETTINGS,
    SHOWN,
    TABLE1_TAG,
    UNITS,
    ablation_overrides,
    baseline_overrides,
    reported,
    surface,
    table1_overrides,
    words,
)
from fsad_lib.tables.tgvig._one_run import compare, one_run
from fsad_lib.tables.tgvig._tables import (
    prompts,
    quality,
    quality_rows,
    show_quality,
    show_table1,
    show_table3,
    table1,
    table3,
)

__all__ = [
    "ABLATIONS", "ARMS", "BASELINES", "CONTROLS", "MEMORIES", "METRICS", "SETTINGS", "SHOWN", "TABLE1_TAG", "UNITS", "ablation_overrides", "all_rows",
    "baseline_overrides", "claims", "committed_rows", "compare", "convergence", "full_shot", "gains", "gains_reported", "losses", "memories", "one_run",
    "paired_gap", "per_class", "prompts", "quality", "quality_rows", "reported", "rows_of", "run_part", "show_convergence", "show_gains",
    "show_gains_reported", "show_memories", "show_per_class", "show_quality", "show_table1", "show_table3", "surface", "table1", "table1_overrides",
    "table3", "words", "write_all",
]  # fmt: skip


def _write_rows(root: Path, profile: str) -> list[Path]:
    """What the tables are made of: data/results/tgvig_<profile>.csv, tgvig_quality_<profile>.csv."""
    path = root / "data" / "results" / f"tgvig_quality_{check_file_name(profile)}.csv"
    with replacing(path) as temporary:
        temporary.write_text(to_csv(quality_rows(root, profile)), encoding="utf-8")
    return [write_rows(all_rows(root, profile), "tgvig", profile, root), path]


def write_all(root: str | Path | None = None, profile: str = "mini", setting: str = "1", folder: Path | None = None) -> list[Path]:
    """Every table of TGVIG into ``folder`` (``root/figures``); only there, the rows behind them into ``root/data/results``, too: metrics, and
    the quality of the images."""
    root = Path(root or project_root())
    suffix, folder = "" if profile == "mini" else f"_{profile}", folder or root / "figures"
    percent = f'Percent. Mean ± standard deviation (n − 1) over seeds of the data-set mean, number of seeds in round brackets. "{NOT_RUN}": no complete run.'
    over = (
        "in percent points, with the 95 % interval over categories (seeds averaged first; over the test images where there is one category, which "
        "says nothing of other seeds; of two categories it is no more than their range)"
    )
    each = f'Percent. Ours: shots + generated (TGVIG), the mean over seeds; the controls stand in the CSV. "{NOT_RUN}": no complete run.'
    gain = f"Gain: shots + generated minus this arm, {over}; relative: in percent of this arm."
    part = f"Gain: this row minus the shots alone of the same runs (minus the augmentations without a VQGAN of the plain run), {over}; relative: in percent of the shots alone."
    sources = (
        "Reported: Lee and Choi, arXiv 2403.06247v1, and the tables in the authors' repository; data/reported/tgvig_*.csv holds every "
        "source and inconsistency."
    )
    closed = "Percent. A web image and those of Midjourney and DALL-E are not made here: put an image into web_image/, midjourney/ or dalle/ of a folder of yours."
    notes_of = {name: list(dict.fromkeys(n for n in reported(name, root).note if n)) for name in ("table1", "table2", "table3", "table4", "averages", "gains")}
    main, first, second, third = gains(root, profile), table1(root, profile), quality(root, profile), table3(root, profile, setting)
    if profile == "mini":  # the paper's rows, in blocks of their own
        first = pd.concat([table1(root, "paper"), first], ignore_index=True)
        second = pd.concat([quality(root, "paper"), second], ignore_index=True)
    sentences = prompts(root, profile) if profile == "paper" else pd.concat([prompts(root, "paper"), prompts(root, profile)], ignore_index=True)
    pixels = table3(root, profile, setting, "pixel_auroc")
    pixels = pixels[pixels.data_set.isin(pixels.data_set[pixels.ours.notna() | pixels.reported.notna()])].reset_index(drop=True)  # data sets with masks
    kept = memories(root, profile, setting)
    fab = per_class(root, profile, "minifab" if profile == "mini" else "mvtec_ad")
    said_class = per_class(root, "paper")
    text_gains, ends = gains_reported(root, profile), convergence(losses(root, profile))
    course = (
        f"From the mean of the runs' losses. Flat: the last fifth of the steps brings at most {LATE:.0%} of the whole fall (of a straight line it would be 22 %). "
        "Where a loss still falls the detector is undertrained: in every arm after the same number of steps, but not equally far (an arm with more to learn ends higher)."
    )
    spro = "AU-sPRO: MVTec LOCO's own metric, up to 5 % of false positives, measured at the maps' size."
    written = _write_rows(root, profile) if folder == root / "figures" else []
    for name, table, display, caption, notes in (
        ("gains", main, show_gains(main), "TGVIG: four detectors with generated images, and their controls",
         [percent, gain, "The gains that the paper's text gives: tgvig_gains_reported.", spro, sources, *notes_of["averages"], MINI_NOTE]),
        ("gains_reported", text_gains, show_gains_reported(text_gains), "TGVIG: the gains of the paper's text, and ours",
         ["Gain of shots + generated over the shots alone, as in the paper; beside it the gain over the same augmentations without a VQGAN. Points: difference of two percentages, "
          "with the 95 % interval over products where there are several (of two it is no more than their range). Relative: in percent of the shots alone; of several detectors the mean. MiniFab, logical and structural: the products that have both kinds.", sources, *notes_of["gains"], MINI_NOTE]),
        ("convergence", ends, show_convergence(ends), "TGVIG: do the trained detectors converge?", [course, MINI_NOTE]),
        ("full_shot", full_shot(root), None, "TGVIG: the detectors without generated images, beside anomalib's own numbers",
         [percent, "anomalib: the README of each of its models, seed 42. Our profile's backbone is ResNet-18 where the detector has one; another backbone of theirs is context."]),
        ("table1", first, show_table1(first), "TGVIG, Table 1: PatchCore from one image and what generators add to it",
         [closed, sources, *notes_of["table1"], MINI_NOTE]),
        ("table2", second, show_quality(second), "TGVIG, Table 2: how good and how different the generated images are",
         ["n: images of a run, the upper bound of an Inception Score (one split). ∞: equal images.", sources, *notes_of["table2"], MINI_NOTE]),
        ("table3", third, show_table3(third), f"TGVIG, Table 3: its parts, PatchCore, {words(setting)}", [percent, part, sources, *notes_of["table3"], MINI_NOTE]),
        ("table3_pixel", pixels, show_table3(pixels), f"TGVIG, Table 3, segmentation: its parts by pixel AUROC, PatchCore, {words(setting)}", [percent, part, sources, MINI_NOTE]),
        ("memory", kept, show_memories(kept), f"TGVIG: PatchCore's memory, {words(setting)}: added by us", [percent, gain, MINI_NOTE]),
        ("table4", sentences, None, "TGVIG, Table 4: prompts", [sources, *notes_of["table4"], MINI_NOTE]),
        ("per_class", said_class, show_per_class(said_class), "TGVIG, MVTec AD: image AUROC of every class", [each, sources, *notes_of["averages"]]),
        ("per_category", fab, show_per_class(fab), "TGVIG: image AUROC of every category", [each, MINI_NOTE]),
        ("claims", claims(root, profile, setting), None, "TGVIG: what the paper claims",
         ["A miniature's verdict neither confirms nor refutes the paper.", sources]),
        ("own_choices", own_choices(root, profile, "tgvig"), None, "TGVIG: values not known from the sources at hand", []),
    ):  # fmt: skip
        written += write_table(table, f"tgvig_{name}{suffix}", folder, display=table if display is None else display, caption=caption, notes=notes)
    return written
