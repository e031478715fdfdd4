"""Tables 1 to 4."""

from pathlib import Path

import numpy as np
import pandas as pd

from fsad_lib.runs import project_root, read_json
from fsad_lib.tables._rows import NONE, NOT_RUN, expected_categories, is_stale, mean_over_categories, units
from fsad_lib.tables._text import cell_text, interval, number
from fsad_lib.tables.tgvig._gains import paired_gap, rows_of
from fsad_lib.tables.tgvig._names import (
    ABLATIONS,
    METRICS,
    TABLE1,
    TABLE1_TAG,
    TABLE2,
    UNITS,
    reported,
)

_PLACE = {"mini": "MiniFab", "paper": "MVTec AD, hazelnut"}


def table1(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """Table 1: one image, PatchCore, one further image from each generator; mean over the products that were run with the tag "table1".

    Reported numbers stand beside runs of the paper profile on MVTec AD's hazelnut only.
    """
    said = reported("table1", root).set_index(["method", "metric"])["mean"]
    rows, records = rows_of(root, profile, tag=TABLE1_TAG).query("group == 'all' and shots == 1 and method == 'patchcore'"), []
    rows = rows[(rows.dataset == "mvtec_ad") & (rows.category == "hazelnut")] if profile == "paper" else rows[rows.dataset == "minifab"]
    for key, (label, arm) in TABLE1.items():
        picked = rows[rows.part == arm]
        record = {"data_set": _PLACE[profile], "method": label, "profile": profile, "products": picked.category.nunique(), "seeds": picked.seed.nunique()}
        for metric in METRICS:
            value = picked.groupby("category")[metric].mean().mean() if len(picked) else np.nan
            record |= {f"{metric}_reported": said.get((key, metric), np.nan) if profile == "paper" else np.nan, f"{metric}_ours": 100 * value}
        records.append(record)
    return pd.DataFrame(records)


def show_table1(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`table1` for reading: Reported | Ours of detection and segmentation, and what the further image gains over the original alone, in points and
    in percent of it."""
    out = pd.DataFrame({"Data set": table.data_set, "Profile": table.profile, "Method": table.method})
    for metric, name in (("image_auroc", "Detection"), ("pixel_auroc", "Segmentation")):
        if table[f"{metric}_reported"].notna().any():
            out[f"{name}: Reported"] = table[f"{metric}_reported"].map(number)
        out[f"{name}: Ours"] = [
            number(v) if pd.notna(v) else "your own image: outside.checkpoint" if label in ("Web image", "Midjourney", "DALL-E") else NOT_RUN
            for v, label in zip(table[f"{metric}_ours"], table.method, strict=True)
        ]
        first = table.method == TABLE1["original"][0]
        alone = table[f"{metric}_ours"].where(first).groupby([table.data_set, table.profile]).transform("max")  # the original's own
        gain = (table[f"{metric}_ours"] - alone).mask(first)
        if gain.notna().any():
            out[f"{name}: gain, points"] = [NONE if pd.isna(v) else f"{v:+.1f}" for v in gain]
            out[f"{name}: relative, %"] = [NONE if pd.isna(v) else f"{v:+.1f}" for v in 100 * gain / alone]
    return out.assign(Products=table["products"], Seeds=table.seeds)


def synthesized(root: str | Path | None, profile: str) -> pd.DataFrame:
    """metrics.json of every complete stage 22 run: dataset, category, shots, seed, tag, and what it holds."""
    root, records = Path(root or project_root()).resolve(), []
    for path in sorted((root / "data" / "runs" / profile).glob("*/*/22_synthesize_tgvig/k*_seed*/metrics.json")):
        metrics = read_json(path) or {}
        if root == project_root() and is_stale(path.parent, "tgvig"):
            continue
        if "best" in metrics and path.parts[-5] != "folder":
            records.append({**{k: metrics["identity"][k] for k in ("dataset", "category", "shots", "seed", "tag")}, **metrics, "folder": str(path.parent)})
    columns = "dataset category shots seed tag best worst best_cosine worst_cosine similarity quality folder".split()
    return pd.DataFrame(records, columns=columns)


def quality_rows(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """The image quality of every complete stage 22 run: dataset, category, shots, seed, tag, and a run's rows (generator, prompt, text, n, ...)."""
    head = ["dataset", "category", "shots", "seed", "tag"]
    found = synthesized(root, profile).sort_values(head)
    records = [{name: getattr(run, name) for name in head} | row for run in found.itertuples() for row in run.quality]
    measured = ["generator", "prompt", "text", "n", "inception", "inception_label", "ssim", "psnr", "lpips"]
    return pd.DataFrame.from_records(records, columns=None if records else [*head, *measured])


def quality(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """Table 2: Inception Score, SSIM, PSNR, LPIPS of one shot's images by prompt; means over the runs with the tag "table1", else the plain ones."""
    runs = synthesized(root, profile).query("shots == 1")
    runs = runs[runs.tag == TABLE1_TAG] if (runs.tag == TABLE1_TAG).any() else runs[runs.tag == ""]
    runs = runs[(runs.dataset == "mvtec_ad") & (runs.category == "hazelnut")] if profile == "paper" else runs[runs.dataset == "minifab"]
    rows = pd.DataFrame([row for found in runs.quality for row in found])
    said = reported("table2", root).set_index(["method", "metric"])["value"]
    wanted = {key: (*pair, key) for key, pair in TABLE2.items()}
    if len(rows):
        for pair in rows[["generator", "prompt"]].drop_duplicates().itertuples(index=False):
            if tuple(pair) not in TABLE2.values():
                wanted[f"{pair[0]} {pair[1]}"] = (*pair, "")
    records = []
    for generator, prompt, of in wanted.values():
        found = rows[(rows.generator == generator) & (rows.prompt == prompt)] if len(rows) else rows
        record = {"data_set": _PLACE[profile], "generator": generator, "prompt": prompt or NONE, "profile": profile, "runs": len(found)}
        record |= {"n": found.n.iloc[0] if len(found) else np.nan, "network": found.inception_label.iloc[0] if len(found) else ""}
        for metric, column in (("inception_score", "inception"), ("ssim", "ssim"), ("psnr", "psnr"), ("lpips", "lpips")):
            record[f"{metric}_reported"] = said.get((of, metric), np.nan) if profile == "paper" else np.nan
            record[f"{metric}_ours"] = pd.to_numeric(found[column]).mean() if len(found) else np.nan
        records.append(record)
    return pd.DataFrame(records)


_QUALITY = {"inception_score": "IS", "ssim": "SSIM", "psnr": "PSNR", "lpips": "LPIPS"}


def _quality_block(table: pd.DataFrame) -> pd.DataFrame:
    out = pd.DataFrame(
        {"Data set": table.data_set, "Profile": table.profile, "Method": table.generator, "Prompt": table.prompt, "Runs": table.runs,
         "n": table.n.map(lambda v: NONE if pd.isna(v) else f"{v:.0f}")}
    )  # fmt: skip
    label = next((text for text in table.network if text), "")  # of this block's runs: another profile's network says nothing about it
    for metric, name in _QUALITY.items():
        head = f"IS ({label.partition('(')[2].rstrip(')')})" if metric == "inception_score" and "proxy" in label else name
        if table[f"{metric}_reported"].notna().any():  # the paper's is a plain Inception Score
            out[f"{name}: Reported"] = table[f"{metric}_reported"].map(lambda v: NONE if pd.isna(v) else f"{v:.2f}")
        digits = 2 if metric == "psnr" else 4  # what prompts differ by
        out[f"{head}: Ours"] = [NOT_RUN if not n else "∞" if pd.isna(v) else f"{v:.{digits}f}" for v, n in zip(table[f"{metric}_ours"], table.runs, strict=True)]
    return out


def show_quality(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`quality` for reading: Reported | Ours of each measure, the Inception Score by the name of its network."""
    shown = pd.concat([_quality_block(block) for _, block in table.groupby(["data_set", "profile"], sort=False)], ignore_index=True).fillna(NONE)
    place = {name: i for i, name in enumerate(_QUALITY.values())}
    return shown[sorted(shown, key=lambda head: place.get(head.split(":")[0].split(" (")[0], -1))]  # sorted keeps the order of equals


SAME_PRODUCTS = ("whole method", "on the variants' products")


def table3(root: str | Path | None = None, profile: str = "mini", setting: str = "1", metric: str = "image_auroc") -> pd.DataFrame:
    """Table 3: PatchCore without text, with other numbers of images, with other variances: each against the shots of the same run, and
    against their augmentations in the plain run. The paper states neither class nor shots, so its numbers have a block of their own."""
    said = reported("table3", root).query("metric == @metric").set_index(["component", "arm"])
    plain, records = rows_of(root, profile), []
    jobs = [("whole method", "plain run", plain, "generated")]
    for (component, arm), overrides in ABLATIONS.items():
        jobs.append((component, arm, rows_of(root, profile, overrides), "without_text" if component == "text" else "generated"))
    varied = {pair for _, _, rows, _ in jobs[1:] for pair in zip(rows.dataset, rows.category, strict=True)}
    if varied:  # the variants were run on fewer products: the whole beside them, on the same ones
        same = [pair in varied for pair in zip(plain.dataset, plain.category, strict=True)]
        jobs.insert(1, (*SAME_PRODUCTS, plain[same], "generated"))
    own = [(d, u) for of, d, u in units(UNITS, plain, profile) if of == profile]
    for dataset, unit in own:
        for component, arm, rows, part in jobs:
            rows = rows[(rows.unit == unit) & (rows.setting == setting) & (rows.method == "patchcore") & (rows.group == "all")]
            if (component, arm) == SAME_PRODUCTS and rows.category.nunique() in (0, plain[(plain.unit == unit) & (plain.setting == setting)].category.nunique()):
                continue
            cell = mean_over_categories(rows[rows.part == part], expected_categories(dataset), metric)
            gap = paired_gap(rows, part, "shots", metric)
            base = plain.query("unit == @unit and setting == @setting and method == 'patchcore' and group == 'all' and part == 'augmented'")
            against = paired_gap(pd.concat([rows[rows.part == part], base]), part, "augmented", metric)
            records.append(
                {"data_set": unit, "profile": profile, "shots": setting, "component": component, "variant": arm,
                 "reported": np.nan, "reported_gain": np.nan, "ours": cell["mean"], "ours_std": cell["std"], "n_seeds": cell["n"], "categories": cell["categories"],
                 "expected": cell["expected"], "state": cell["state"], "gain": gap["mean"], "gain_low": gap["low"], "gain_high": gap["high"],
                 "relative": gap["relative"], "over_augmented": against["mean"], "over_augmented_low": against["low"], "over_augmented_high": against["high"]}
            )  # fmt: skip
    paper = [
        {"data_set": "class not stated", "profile": "paper", "shots": "not stated", "component": component, "variant": arm, "reported": row["mean"],
         "reported_gain": row["gain"], "state": NOT_RUN} for (component, arm), row in said.iterrows()
    ]  # fmt: skip
    counts = ["n_seeds", "categories", "expected"]  # whole numbers, also beside the paper's rows, which have none
    return pd.DataFrame.from_records(paper + records).pipe(lambda t: t.astype(dict.fromkeys([c for c in counts if c in t], "Int64")))


def show_table3(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`table3` for reading: ours, its gain over both controls, and what the paper reports."""
    records = []
    for row in table.itertuples():
        gap, over = ({"mean": getattr(row, n), "low": getattr(row, f"{n}_low"), "high": getattr(row, f"{n}_high")} for n in ("gain", "over_augmented"))
        records.append(
            {"Data set": row.data_set, "Profile": row.profile, "Method": f"{row.component}: {row.variant}", "Ours": cell_text(row),
             "Gain over the shots, points": NONE if pd.isna(row.gain) else interval(gap), "relative, %": NONE if pd.isna(row.gain) else f"{row.relative:+.1f}",
             "Over augmentations, points": NONE if pd.isna(row.over_augmented) else interval(over),
             "Reported": number(row.reported), "Reported gain, points": NONE if pd.isna(row.reported_gain) else f"{row.reported_gain:+.1f}"}
        )  # fmt: skip
    return pd.DataFrame(records)


def prompts(root: str | Path | None = None, profile: str = "mini") -> pd.DataFrame:
    """Table 4: best and worst prompt of each object (1 shot, plain runs, lowest seed), the paper's words beside those of its objects."""
    runs = synthesized(root, profile).query("shots == 1 and tag == ''").sort_values("seed").drop_duplicates(["dataset", "category"])
    said = reported("table4", root).set_index("object") if profile == "paper" else pd.DataFrame()
    records = []
    for row in runs.itertuples():
        key = row.category.replace("_", "")
        words = said.loc[key] if key in said.index else {}
        records.append(
            {"Data set": row.dataset, "Object": row.category, "Best prompt": row.best, "cosine": f"{row.best_cosine:.3f}", "Worst prompt": row.worst,
             "cosine ": f"{row.worst_cosine:.3f}", "Paper: best": words.get("best", NONE), "Paper: worst": words.get("worst", NONE)}
        )  # fmt: skip
    if not records and profile == "mini":
        records.append({"Data set": "minifab", "Object": NOT_RUN} | dict.fromkeys(["Best prompt", "Worst prompt"], NOT_RUN))
    if profile == "paper":  # what was not run stays visibly empty
        for name, words in said.iterrows():
            if name not in {r["Object"].replace("_", "") for r in records}:
                records.append({"Data set": "mvtec_ad", "Object": name, "Best prompt": NOT_RUN, "cosine": NONE, "Worst prompt": NOT_RUN, "cosine ": NONE,
                                "Paper: best": words.best, "Paper: worst": words.worst})  # fmt: skip
    columns = ["Data set", "Object", "Best prompt", "cosine", "Worst prompt", "cosine ", "Paper: best", "Paper: worst"]
    return pd.DataFrame(records, columns=columns).fillna(NONE)
