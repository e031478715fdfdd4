"""The user's report, where files have odd names."""

import numpy as np
import pandas as pd
from PIL import Image

from fsad_lib import plots
from fsad_lib.report import masks_note, write_report


def test_odd_names_do_not_break_the_report(tmp_path):
    names = ["a\nb", "<b>bold|x", "é" * 120, "x" * 240 + "1", "x" * 240 + "2"]  # the longest that a file system takes is 255 bytes
    for name in names:
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in names]
    table = pd.DataFrame({"path": paths, "label": -1, "method": "adp", "part": "sum", "score": np.linspace(1, 0, 5)})
    out = write_report(tmp_path / "report", table, np.random.default_rng(0).random((5, 2, 2)), paths, shots=2, size=16)
    written = sorted(p.name for p in out["heatmaps"].iterdir())
    assert len(written) == 5 and written[0] == "1_a_b.png" and all(len(name.encode()) <= 160 and name.isprintable() for name in written)
    assert list(pd.read_csv(out["predictions"])["heatmap"]) == [f"heatmaps/{name}" for name in written]
    rows = [line for line in out["report"].read_text().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5 and rows[2].startswith(r"| 1 | a\nb.png | 1.0000 |") and rows[3].startswith(r"| 2 | &lt;b>bold\|x.png | 0.7500 |")


def two_products(tmp_path, size=(8, 8)):
    """Two products, each ranked without a mistake, the second's scores all above the first's."""
    rows = []
    for product, offset in (("cookie", 0.0), ("cup", 5.0)):
        for i, label in enumerate((0, 0, 1)):
            path = tmp_path / product / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", size, 40 * i).save(path)
            rows.append({"path": str(path), "category": product, "defect": "", "label": label, "method": "anomalysd", "part": "given", "score": offset + i})
    return pd.DataFrame(rows)


def test_products_are_ranked_apart(tmp_path):
    table = two_products(tmp_path)
    out = write_report(tmp_path / "report", table, np.random.default_rng(0).random((6, 2, 2)), table.path.tolist(), shots=2, method="anomalysd", part="given", size=16)
    ranked = pd.read_csv(out["predictions"])
    assert ranked.category.tolist() == ["cookie"] * 3 + ["cup"] * 3 and ranked["rank"].tolist() == [1, 2, 3] * 2
    assert all((tmp_path / "report" / name).is_file() for name in ranked.heatmap) and ranked.heatmap[0] == "cookie/heatmaps/1_2.png"
    assert all((tmp_path / "report" / product / name).is_file() for product in ("cookie", "cup") for name in ("contact_sheet.png", "predictions.csv"))
    text = out["report"].read_text()
    assert "mean of 2 products: AnomalySD's score 100.0." in text, "pooled, three of four good images would rank above a defect: 75"
    assert text.index("## cookie") < text.index("| 1 | 2.png | 2.0000 | defective |") < text.index("## cup") < text.index("| 1 | 2.png | 7.0000 | defective |")


def test_people_see_parts_in_their_own_proportions(tmp_path):
    table = two_products(tmp_path, size=(40, 20)).query("category == 'cup'")
    out = write_report(tmp_path / "report", table, np.zeros((3, 2, 2)), table.path.tolist(), shots=2, method="anomalysd", part="given", size=16)
    assert {Image.open(path).size for path in out["heatmaps"].iterdir()} == {(32, 8)}
    sheet = plots.contact_sheet(table.path.tolist()[:1], [0.5], np.zeros((1, 2, 2)), size=16, title="one line\nand another")
    sheet.canvas.draw()
    head = sheet._suptitle.get_window_extent()
    assert head.x1 < sheet.bbox.x1, "the header is not cut off"
    assert head.y0 > sheet.axes[0].title.get_window_extent().y1 and head.y0 > sheet.axes[0]._left_title.get_window_extent().y1, "nor does it lie on a title"


def test_masks_that_are_not_used_are_told():
    table = pd.DataFrame({"split": "test", "label": [0, 1, 1, -1], "mask_path": [None, "a", "b", None]})
    assert masks_note(table) == "" and masks_note(table.assign(mask_path=None)) == ""
