"""The user's report, where files have odd names."""

import numpy as np
import pandas as pd
from PIL import Image

from fsad_lib.report import write_report


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
