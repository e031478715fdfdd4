"""What the paper claims, and what was found here."""

from pathlib import Path

import numpy as np
import pandas as pd

from fsad_lib.runs import overrides_tag
from fsad_lib.tables._rows import NOT_RUN, bootstrap_categories, expected_categories
from fsad_lib.tables._text import interval, verdict
from fsad_lib.tables.tgvig._gains import paired_gap, rows_of
from fsad_lib.tables.tgvig._names import (
    ABLATIONS,
    BASELINES,
    CONTROLS,
    SETTINGS,
    TABLE1,
    reported,
    surface,
    words,
)
from fsad_lib.tables.tgvig._tables import SAME_PRODUCTS, quality, synthesized, table1, table3


def claims(root: str | Path | None = None, profile: str = "mini", setting: str = "1", rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """What the paper claims in prose, and whether it holds in our runs: id, claim, reported, ours, holds. In ``mini`` on MiniFab, which can
    neither confirm nor refute it; in ``paper`` on the paper's own data. ``rows``: as in :func:`fsad_lib.tables.tgvig.gains`."""
    said, unit = reported("claims", root), {"mini": "minifab", "paper": "mvtec_ad"}[profile]
    rows = rows_of(root, profile) if rows is None else rows
    records = []
    for claim in said.itertuples():
        dataset = {"btad": "btad", "mvtec_loco": "mvtec_loco"}.get(claim.dataset, unit) if profile == "paper" else unit
        ours, holds = _JUDGES.get(claim.id, _by_eye)(root, profile, rows[rows.dataset == dataset], dataset, setting)
        records.append({"id": claim.id, "Claim": claim.claim, "Reported": claim.reported, "Ours": ours, "Holds": holds, "Where": dataset, "About the paper's number": claim.note})
    return pd.DataFrame(records)


def _by_eye(*_: object) -> tuple[str, str]:
    return NOT_RUN, NOT_RUN


def _judge_general(root, profile, rows, dataset, setting) -> tuple[str, str]:
    texts, worst, partly = [], "yes", False
    expected = len(expected_categories(dataset) or [0])
    for of in SETTINGS:
        for name, label in BASELINES.items():
            block = rows[(rows.setting == of) & (rows.method == name) & (rows.group == "all")]
            for control in CONTROLS:
                gap = paired_gap(block, "generated", control)
                if pd.isna(gap["mean"]):
                    continue
                says, products = verdict(gap), len(gap["per_category"])
                says = says if says in ("yes", "no") and products > 2 else "unclear"  # no interval, no verdict; of two products it is their range
                worst, partly = min(worst, says, key=["no", "unclear", "yes"].index), partly or products < expected
                texts.append(f"{label}, {words(of)}, over {control}: {interval(gap)}" + (f" ({products} of {expected} products)" if products < expected else ""))
    missing = len(SETTINGS) * len(BASELINES) * len(CONTROLS) - len(texts)
    whole = (not missing and not partly) or worst == "no"
    return ("; ".join(texts), worst if whole else f"{worst} in what was run") if texts else (NOT_RUN, NOT_RUN)


def _judge_fewer(root, profile, rows, dataset, setting) -> tuple[str, str]:
    rows = rows[(rows.method == "patchcore") & (rows.group == "all")]
    found = {of: paired_gap(rows[rows.setting == of], "generated", "shots")["per_category"] for of in SETTINGS}
    have = pd.DataFrame({of: v for of, v in found.items() if len(v)}).dropna()  # the products that every number of shots has
    if have.shape[1] < 2 or have.empty:
        return NOT_RUN, NOT_RUN
    values, expected = have.mean().tolist(), len(expected_categories(dataset) or have)
    text = "PatchCore: " + ", ".join(f"{words(of)} {v:+.1f}" for of, v in have.mean().items())
    text += f" ({len(have)} of {expected} products)" if len(have) < expected else ""
    if max(values) <= 0:
        return text, "no gain"
    return text, "yes, no interval" if values == sorted(values, reverse=True) else "no, no interval"


_TASKS = {"image_auroc": "detection", "pixel_auroc": "segmentation"}


def _both(says: dict[str, bool]) -> str:
    """One verdict of detection's and segmentation's.

    >>> _both({}), _both({"detection": True, "segmentation": True}), _both({"detection": False, "segmentation": True})
    ('not run', 'yes, no interval', 'detection no, segmentation yes, no interval')
    """
    if not says:
        return NOT_RUN
    if len(set(says.values())) == 1:
        return "yes, no interval" if all(says.values()) else "no, no interval"
    return ", ".join(f"{task} {'yes' if holds else 'no'}" for task, holds in says.items()) + ", no interval"


def _judge_objects(root, profile, rows, dataset, setting) -> tuple[str, str]:
    block = rows[(rows.setting == setting) & (rows.method == "patchcore") & (rows.group == "all")]
    texts, says = [], {}
    for metric, task in _TASKS.items():
        gap = paired_gap(block, "generated", "shots", metric)["per_category"]
        kind = np.array([surface(dataset, category) for category in gap.index], dtype=object)
        a, b = gap[kind == "objects"], gap[kind == "textures"]
        if len(a) and len(b):
            texts.append(f"{task}: objects {a.mean():+.1f} ({len(a)}), textures {b.mean():+.1f} ({len(b)})")
            says[task] = a.mean() > max(b.mean(), 0)  # losing less is no gain
    return "; ".join(texts) or NOT_RUN, _both(says)


def _judge_logical(root, profile, rows, dataset, setting) -> tuple[str, str]:
    texts, says = [], {}
    for metric, task in _TASKS.items():
        block = rows[(rows.setting == setting) & (rows.method == "patchcore")]
        found = {group: paired_gap(block, "generated", "shots", metric, group)["mean"] for group in ("logical", "structural")}
        if not any(map(pd.isna, found.values())):
            texts.append(f"{task}: " + ", ".join(f"{group} {gap:+.1f}" for group, gap in found.items()))
            says[task] = all(gap > 0 for gap in found.values())
    return "; ".join(texts) or NOT_RUN, _both(says)


def _judge_quality(root, profile, rows, dataset, setting) -> tuple[str, str]:
    table = table1(root, profile).set_index("method").image_auroc_ours
    original, others = table.get("Original image alone", np.nan), [TABLE1[key][0] for key in TABLE1 if key not in ("original", "tgvig", "duplicated", "augmented")]
    have = table[table.index.isin(others)].dropna()
    if pd.isna(original) or have.empty:
        return NOT_RUN, NOT_RUN
    below = have.index[have < original].tolist()
    return f"other generators below the original alone: {', '.join(below) or 'none'} (of {len(have)}); nothing here measures looks", "yes, no interval" if below else "no, no interval"


def _judge_prompt(root, profile, rows, dataset, setting) -> tuple[str, str]:
    table = quality(root, profile)
    table = table[table.generator == "tgvig"].set_index("prompt")
    table = table.loc[[p for p in ("best", "worst", "word", "naive") if p in table.index]]
    if table.empty or table.lpips_ours.isna().any():
        return NOT_RUN, NOT_RUN
    says = {}
    for name, metric, sign in (("IS", "inception_score", 1), ("SSIM", "ssim", 1), ("PSNR", "psnr", 1), ("LPIPS", "lpips", -1)):
        values = sign * table[f"{metric}_ours"]
        top = values.index[values >= values.max() - 1e-9]  # prompts that chose the same set are equal
        says[name] = top[0] if len(top) == 1 else "equal: " + ", ".join(top)
    return "; ".join(f"{name}: {p}" for name, p in says.items()), "yes" if set(says.values()) == {"best"} else "no"


def _judge_peak(root, profile, rows, dataset, setting) -> tuple[str, str]:
    runs = synthesized(root, profile)
    runs = runs[(runs.dataset == dataset) & (runs.shots == 1) & (runs.tag == "")]
    if runs.empty:
        return NOT_RUN, NOT_RUN
    inside = pd.Series([0 < int(np.argmax(s)) < len(s) - 1 for s in runs.similarity], index=runs.category)
    chance = float(np.mean([max(0, len(s) - 2) / len(s) for s in runs.similarity]))  # of numbers in random order
    share = inside.groupby(level=0).mean()  # a product's seeds are no independent trials
    low = bootstrap_categories(share)[1] if len(share) > 1 else np.nan
    text = f"an inner peak in {inside.sum()} of {len(inside)} runs; random order: {chance:.0%}"
    return text, "no interval" if np.isnan(low) else "yes" if low > chance else "not told from chance"


def _judge_one(root, profile, rows, dataset, setting) -> tuple[str, str]:
    """One image with the method against the same detector with all images (else five) and without it, PatchCore."""
    block = rows[(rows.method == "patchcore") & (rows.group == "all")]
    for many in ("full", "5"):
        one, other = block[(block.setting == "1") & (block.part == "generated")], block[(block.setting == many) & (block.part == "shots")]
        if len(one) and len(other):
            gap = paired_gap(pd.concat([one, other]), "generated", "shots")
            return f"against {words(many)} without it: {interval(gap)}", verdict(gap)
    return NOT_RUN, NOT_RUN


def _component(name: str):
    def judge(root, profile, rows, dataset, setting) -> tuple[str, str]:
        table = table3(root, profile, setting)
        table = table[table.data_set.isin(rows.unit.unique()) & table.gain.notna()].set_index(["component", "variant"])
        part = table.loc[[key for key in table.index if key[0] == name]]
        if part.empty or ("whole method", "plain run") not in table.index:
            return NOT_RUN, NOT_RUN
        whole = table.loc[SAME_PRODUCTS if SAME_PRODUCTS in table.index else ("whole method", "plain run"), "gain"]
        text = f"whole {whole:+.1f}; " + ", ".join(f"{v} {g:+.1f}" for (_, v), g in part.gain.items())
        if name == "copies":
            return text, "yes, no interval" if np.ptp(part.gain) <= 1.1 else "no, no interval"  # the paper calls its own 1.1 points saturated
        if name == "variance":  # what the gain hangs on most: what is lost without it, beside what is lost without text
            others = [whole - g for (component, _), g in table.gain.items() if component == "text"]
            if not others:
                return text + "; text was not run", NOT_RUN
            return text + f"; without text {whole - max(others):+.1f}", "yes, no interval" if (whole - part.gain > max(0.0, *others)).all() else "no, no interval"
        return text, "yes, no interval" if (part.gain < whole).all() else "no, no interval"

    return judge


def _judge_looks(root, profile, rows, dataset, setting) -> tuple[str, str]:
    """Images with the estimated variance beside those with none and with unit variance, same products and seeds; nearness to the original stands
    for quality, which no number of the paper states."""
    runs, key = synthesized(root, profile), ["category", "seed"]
    runs = runs[(runs.dataset == dataset) & (runs.shots == 1)]
    found = {}
    for label, tag in {"estimated": "", **{arm: overrides_tag(text) for (component, arm), text in ABLATIONS.items() if component == "variance"}}.items():
        records = [{**{k: getattr(run, k) for k in key}, **row} for run in runs[runs.tag == tag].itertuples() for row in run.quality]
        table = pd.DataFrame(records, columns=[*key, "generator", "prompt", "ssim", "psnr", "lpips"])
        found[label] = table[(table.generator == "tgvig") & (table.prompt == "best")].set_index(key)[["ssim", "psnr", "lpips"]].astype(float)
    both = set.intersection(*(set(table.index) for table in found.values()))
    if not both:
        return NOT_RUN, NOT_RUN
    means = {label: table.loc[sorted(both)].groupby("category").mean().mean() for label, table in found.items()}
    text = "; ".join(f"{label}: SSIM {m.ssim:.3f}, PSNR {m.psnr:.2f} dB, LPIPS {m.lpips:.3f}" for label, m in means.items())
    own = means.pop("estimated")
    better = {label: bool(own.ssim > m.ssim and own.psnr > m.psnr and own.lpips < m.lpips) for label, m in means.items()}
    if len(set(better.values())) == 1:
        return text, "yes, no interval" if all(better.values()) else "no, no interval"
    return text, ", ".join(f"{'better' if says else 'not better'} than {label}" for label, says in better.items()) + ", no interval"


_JUDGES = {
    "general": _judge_general, "fewer_more": _judge_fewer, "objects": _judge_objects, "logical": _judge_logical, "quality": _judge_quality,
    "prompt": _judge_prompt, "peak": _judge_peak, "text": _component("text"), "saturation": _component("copies"), "variance": _component("variance"),
    "variance_looks": _judge_looks,
    "one_beats_many": _judge_one,
}  # fmt: skip
