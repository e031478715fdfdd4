"""What the README says in numbers is what the committed results say."""

import re

import pandas as pd
import pytest

from fsad_lib import tables
from fsad_lib.runs import project_root

README = (project_root() / "README.md").read_text(encoding="utf-8")
ROWS = {
    "patch memory over an ImageNet network (control)": ("patch_memory", "memory"),
    "memory alone (control)": ("adp", "memory"),
    "ADP, text only (control)": ("adp", "text"),
    'untrained word "object" (control)': ("object", "sum"),
    "class label, untrained (control)": ("label", "sum"),
    "TI": ("ti", "sum"),
    "c_n": ("c_n", "sum"),
    "c_a": ("c_a", "sum"),
    "ADP": ("adp", "sum"),
    "ADP_l": ("adp_l", "sum"),
    "WinCLIP+": ("winclip", "sum"),
}
COLUMNS = (("minifab", None), ("elpv", "mono"), ("elpv", "poly"))
UNITS = ("MiniFab", "ELPV mono", "ELPV poly")


SHOTS = ("patch memory over an ImageNet network (control)", "memory alone (control)", "WinCLIP+", "ADP")


def results_table(head="| | MiniFab, 8 products |"):
    """Row name -> the cells of one of the README's tables of results."""
    lines = README.split(head, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines)
    return {name: values for name, *values in cells}


def test_the_table_of_results_has_every_row_and_is_sorted():
    table = results_table()
    assert set(table) == set(ROWS)
    first = [float(values[0].split()[0]) for values in table.values()]
    assert first == sorted(first, reverse=True)


def cell(rows, method, part, dataset, category, shots, metric="image_auroc"):
    """Mean and standard deviation over three seeds of the mean over categories, as the README writes them."""
    rows = rows[rows.tag.isna() & (rows.method == method) & (rows.part == part) & (rows.group == "all") & (rows.shots == shots)]
    chosen = rows[(rows.dataset == dataset) & (rows.category == category if category else True)]
    per_seed = 100 * chosen.groupby("seed")[metric].mean()
    assert len(per_seed) == 3 and len(chosen) == 3 * chosen.category.nunique()
    return f"{per_seed.mean() + 1e-9:.1f} ± {per_seed.std():.1f}"  # the rows have four places: a half goes up, as the tables' unrounded values do


ANOMALYSD = {
    "AnomalySD": ("anomalysd", "given"),
    "AnomalySD, product unknown": ("anomalysd", "unknown"),
    "autoencoder alone (control)": ("roundtrip", "given"),
    "autoencoder and AnomalySD's mask, nothing repainted (control)": ("guided_roundtrip", "given"),
    "WinCLIP+": ("winclip", "given"),
    "WinCLIP+, product unknown": ("winclip", "unknown"),
    "patch memory": ("patch_memory", "given"),
    "patch memory, product unknown": ("patch_memory", "unknown"),
}
TGVIG = {
    "shots alone": ("patchcore", "shots"),
    "shots duplicated (control)": ("patchcore", "duplicated"),
    "shots + augmentations, no VQGAN (control)": ("patchcore", "augmented"),
    "shots + generated (TGVIG)": ("patchcore", "generated"),
}
OTHERS = {
    "anomalysd": ("| One model, 1 shot of each product |", ANOMALYSD, [("minifab", None, 1, "image_auroc"), ("minifab", None, 1, "pixel_auroc")]),
    "tgvig": ("| PatchCore, 1 shot |", TGVIG, [("minifab", None, 1, "image_auroc"), ("minifab", None, 1, "pixel_auroc")]),
}  # fmt: skip
"""method -> head of its table, its rows, its columns (data set, category, shots, metric)."""


@pytest.mark.parametrize("method", OTHERS)
def test_the_other_papers_tables_are_the_committed_results(method):
    head, named, columns = OTHERS[method]
    rows = pd.read_csv(project_root() / f"data/results/{method}_mini.csv", dtype={"category": str})
    expected = {name: [cell(rows, *key, d, c, k, metric) for d, c, k, metric in columns] for name, key in named.items()}
    assert results_table(head) == expected, "\n".join(f"| {name} | {' | '.join(values)} |" for name, values in expected.items())


def test_anomalysds_numbers_by_shots_are_the_written_table():
    table = pd.read_csv(project_root() / "figures/anomalysd_main.csv")
    table = table[(table.data_set == "MiniFab") & (table.protocol == "given")].set_index(["method", "shots", "metric"])
    names = {"AnomalySD": "AnomalySD", "autoencoder and mask (control)": "autoencoder and prototype-guided mask, nothing repainted", "patch memory": "patch memory (nearest neighbour)"}
    expected = {}
    for name, method in names.items():
        both = [[table.loc[(method, k, metric)] for metric in ("image_auroc", "pixel_auroc")] for k in (1, 2, 4, 16)]
        assert all(row.n_seeds == 3 for pair in both for row in pair)
        expected[name] = [f"{image.ours:.1f} / {pixel.ours:.1f}" for image, pixel in both]
    assert results_table("| MiniFab, image / pixel AUROC, three seeds: shots |") == expected


KEYS = {row.source: row.key for row in tables.ROWS.values()}


def written(source, unit, shots):
    """A cell of ADP's written tables, whose means and deviations were taken before any rounding."""
    both = pd.concat([pd.read_csv(project_root() / f"figures/adp_table{i}.csv") for i in (1, 2)])
    row = both[(both.data_set == unit) & (both.shots == shots) & (both.key == KEYS[source])].iloc[0]
    assert row.n_seeds == 3
    return f"{row.ours:.1f} ± {row.ours_std:.1f}"


@pytest.mark.parametrize("name", SHOTS)
def test_the_numbers_by_shots_are_the_committed_results(name):
    table = results_table("| MiniFab, 8 products: shots |")
    shots = [int(word) for word in re.search(r"\| MiniFab, 8 products: shots \|([^\n]+)", README)[1].strip(" |").split("|")]
    assert set(table) == set(SHOTS)
    expected = [written(ROWS[name], "MiniFab", k) for k in shots]
    assert table[name] == expected, f"the README's row should read | {name} | {' | '.join(expected)} |"


@pytest.mark.parametrize("name", ROWS)
def test_the_numbers_of_the_readme_are_the_committed_results(name):
    expected = [written(ROWS[name], unit, 4) for unit in UNITS]
    assert results_table()[name] == expected, f"the README's row should read | {name} | {' | '.join(expected)} |"


@pytest.mark.parametrize("name", ROWS)
def test_the_written_tables_are_made_of_the_committed_rows(name):
    rows = pd.read_csv(project_root() / "data/results/adp_mini.csv", dtype={"category": str})
    for unit, (dataset, category) in zip(UNITS, COLUMNS, strict=True):
        for ours, theirs in zip(cell(rows, *ROWS[name], dataset, category, 4).split(" ± "), written(ROWS[name], unit, 4).split(" ± "), strict=True):
            assert abs(float(ours) - float(theirs)) < 0.11  # the rows have four places


@pytest.mark.parametrize("name", ["CFlow", "EfficientAD", "Reverse Distillation"])
def test_the_trained_detectors_are_the_written_table(name):
    table = pd.read_csv(project_root() / "figures/tgvig_gains.csv", dtype={"shots": str})
    table = table[(table.data_set == "MiniFab") & (table.shots == "1") & (table.metric == "image_auroc")]
    arms = table[table.baseline == name].set_index("arm")
    assert set(arms.n_seeds) == {3}

    def gain(arm):
        return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*arms.loc[arm, ["gain", "gain_low", "gain_high"]]).replace("-", "−")

    levels = [f"{arms.ours[arm]:.1f} ± {arms.ours_std[arm]:.1f}" for arm in ("shots", "generated")]
    assert results_table("| gear and wood, 1 shot |")[name] == [*levels, gain("shots"), gain("augmented")]


def test_every_link_and_picture_of_the_readme_is_there():
    linked = [path for path in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in path]
    assert linked and not [path for path in linked if not (project_root() / path).exists()]
