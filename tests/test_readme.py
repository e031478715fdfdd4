"""What the README says in numbers is what the committed results say."""

import re

import pandas as pd
import pytest

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


def results_table():
    """Row name -> the three cells of the README's table of results."""
    lines = README.split("| | MiniFab, 8 products |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines)
    return {name: values for name, *values in cells}


def test_the_table_of_results_has_every_row_and_is_sorted():
    table = results_table()
    assert set(table) == set(ROWS)
    first = [float(values[0].split()[0]) for values in table.values()]
    assert first == sorted(first, reverse=True)


@pytest.mark.parametrize("name", ROWS)
def test_the_numbers_of_the_readme_are_the_committed_results(name):
    rows = pd.read_csv(project_root() / "data/results/adp_mini.csv", dtype={"category": str})
    method, part = ROWS[name]
    rows = rows[(rows.shots == 4) & (rows.method == method) & (rows.part == part) & (rows.group == "all")]
    expected = []
    for dataset, category in COLUMNS:
        chosen = rows[(rows.dataset == dataset) & (rows.category == category if category else True)]
        per_seed = 100 * chosen.groupby("seed").image_auroc.mean()
        assert len(per_seed) == 3 and len(chosen) == 3 * chosen.category.nunique()
        expected.append(f"{per_seed.mean():.1f} ± {per_seed.std():.1f}")
    assert results_table()[name] == expected, f"the README's row should read | {name} | {' | '.join(expected)} |"


def test_every_link_and_picture_of_the_readme_is_there():
    linked = [path for path in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in path]
    assert linked and not [path for path in linked if not (project_root() / path).exists()]
