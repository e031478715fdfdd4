"""Figures and the user's report: they can be drawn from a run's products, are saved small, whole and reproducibly."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fake_runs import fake_run
from PIL import Image

from fsad_lib import plots, report, tables
from fsad_lib.errors import FsadError

X = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def words(figure):
    return " ".join(t.get_text() for t in figure.findobj(plt.Text))


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(X):
        Image.fromarray((image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(tmp_path / f"part{i}.png")
    return tmp_path


def predictions(folder, scores, labels=(-1,) * 5):
    paths = [str(folder / f"part{i}.png") for i in range(5)]
    base = {"path": paths, "label": labels, "defect": "unknown", "seen": True}
    other = pd.DataFrame({**base, "method": "patch_memory", "part": "memory", "score": scores[::-1]})
    return paths, pd.concat([pd.DataFrame({**base, "method": "adp", "part": "sum", "score": scores}), other], ignore_index=True)


def test_saving_is_reproducible_small_and_atomic(tmp_path, monkeypatch):
    def draw():
        return plots.image_grid(X[:2])

    first = [p.read_bytes() for p in plots.save_figure(draw(), "grid", tmp_path / "a")]
    second = [p.read_bytes() for p in plots.save_figure(draw(), "grid", tmp_path / "b")]
    assert first == second
    noise = plots.image_grid(torch.rand(4, 3, 256, 256, generator=torch.Generator().manual_seed(1)), size=3)
    assert len(plots._png(noise)) <= plots.LIMIT == 300_000
    assert b"CreationDate" not in first[1] and b"Software" not in first[0]
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(FsadError, match="permission"):
        plots.save_figure(draw(), "grid", tmp_path / "a")
    assert (tmp_path / "a/grid.png").read_bytes() == first[0] and len(list((tmp_path / "a").iterdir())) == 2


def test_figures_are_closed_and_leave_the_style_alone():
    before, size = plt.get_fignums(), plt.rcParams["font.size"]
    plots.image_grid(X, list("abcde"))
    assert plt.get_fignums() == before and plt.rcParams["font.size"] == size


def test_bad_input_is_explained():
    for call in (
        lambda: plots.image_grid(X[0, 0]),
        lambda: plots.image_grid(X, ["one"]),
        lambda: plots.image_grid(X * float("nan")),
        lambda: plots.heatmap_overlay(X, np.zeros((2, 4, 4))),
        lambda: plots.adp_overview(X, X, X, {"c_n": 1.0}, X, [0.1], [0]),
    ):
        with pytest.raises(FsadError, match="[Ff]ound"):
            call()


def test_histograms_read_a_runs_table(tmp_path):
    run = pd.read_parquet(fake_run(tmp_path, "elpv", "mono", 4, 0) / "predictions.parquet")
    assert "normal (20)" in words(plots.score_histograms(run))
    pseudo = plots.score_histograms({"normal": [0.1, 0.2], "pseudo-anomalous": [0.5, 0.6], "anomalous": [0.7, 0.3]})
    assert len(pseudo.axes) == 3


def test_names_that_look_like_mathematics_are_drawn_as_they_stand(folder, tmp_path):
    odd = "x$\\foo$"
    path = folder / f"{odd}.png"
    (folder / "part0.png").rename(path)
    drawn = [
        plots.contact_sheet([path], [0.5], title=odd),
        report.contact_sheet(pd.DataFrame({"path": [str(path)], "score": [0.5], "label": [1], "defect": [odd]}), title=odd),
        plots.image_grid(X[:2], [odd, r"$\lambda$ = 1"], title=odd),
        plots.heatmap_overlay(X[:1], np.random.default_rng(0).random((1, 4, 4)), titles=[odd]),
        plots.adp_overview(X, X, X, {"c_n": 1.0}, X, [0.1] * 5, [0] * 5, subtitle=odd),
    ]
    for i, figure in enumerate(drawn):
        plots.save_figure(figure, f"figure{i}", tmp_path)
    titles = {t.get_text(): t.get_parse_math() for t in drawn[2].findobj(plt.Text)}
    assert titles[r"$\lambda$ = 1"] and not titles[odd], "our own mathematics stay mathematics"


def test_result_figures_mark_what_was_not_run(tmp_path):
    for seed in range(2):
        fake_run(tmp_path, "elpv", "mono", 4, seed, groups=False)
    table = tables.table1(tmp_path)
    text = words(plots.auroc_against_shots(table))
    assert "not run here" in text and "ADP, reported" in text and "ELPV mono" in text
    figure = plots.interval_plot(table[table.shots == 4])
    assert "(control)" in words(figure) and "MVTec AD" not in words(figure) and "2 seeds" in words(figure)
    with pytest.raises(FsadError, match="one"):
        plots.interval_plot(table)


def test_overview_and_comparison_show_the_runs_products():
    figure = plots.adp_overview(
        X[:2], X, X, {"<c_n>": 1.31, "<c_a>": 0.9}, X[:4], [0.1, 0.2, 0.9, 0.8], [0, 0, 1, 1], subtitle="MiniFab gear"
    )
    text = words(figure)
    assert all(part in text for part in ("2 normal images", "1.31 of 2", "0.90", "MiniFab gear", "defective"))
    assert len(figure.axes) == 1 + 2 + 1 + 3 + 4 + 4  # page, shots, edited shot, pseudo, tuning, tests
    assert "learned word" in words(plots.pseudo_anomaly_comparison(X[:2], X, X, scores={"simple": [0.5] * 5}))
    text = words(plots.pseudo_anomaly_comparison(X[:2], X, X, scores={"shots": [0.25] * 2, "simple": [0.5] * 5}))
    assert "P(damaged object) 0.25" in text and "P(damaged object) 0.50" in text


def test_rare_colours_survive_the_palette():
    """A legend's few pixels among a photograph's many."""
    rng = np.random.default_rng(0)
    photo = np.clip(rng.normal([0.5, 0.45, 0.4], 0.12, (300, 300, 3)) + rng.normal(0, 0.1, (300, 300, 1)), 0, 1)
    colours = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (plots.BLUE, plots.ORANGE, plots.RED, plots.YELLOW, plots.GREEN)]
    pixels = (255 * photo).astype(np.uint8)
    for i, colour in enumerate(colours):
        pixels[:6, 6 * i : 6 * i + 6] = colour
    shown = np.asarray(plots._palette(Image.fromarray(pixels)).convert("RGB")).astype(int)
    for i, colour in enumerate(colours):
        assert np.abs(shown[3, 6 * i + 3] - colour).max() < 25, colour


def test_the_paper_stays_white_beside_pale_pictures():
    from PIL import Image

    pixels = np.full((90, 90, 3), 255, np.uint8)
    pixels[:45] = np.random.default_rng(0).integers(235, 255, (45, 90, 1))
    shown = np.asarray(plots._palette(Image.fromarray(pixels)).convert("RGB"))
    assert (shown[45:] == 255).all() and np.abs(shown[:45].astype(int) - pixels[:45]).max() < 5


def test_a_note_says_which_runs_a_figure_is_of(tmp_path):
    figure = plots.image_grid(X[:2])
    plots.save_figure(figure, "a", tmp_path, "gear, profile mini")
    assert figure.get_supxlabel() == "gear, profile mini"
    overview = plots.adp_overview(X[:1], X, X, {"c_n": 1.0}, X[:1], [0.1], [0])
    plots.save_figure(overview, "b", tmp_path, "profile mini")
    assert overview.texts[-1].get_text() == "profile mini" and (tmp_path / "b.pdf").is_file()
    plots.save_figure(overview, "b", tmp_path, "gear, 4 shots, seed 0, profile mini")
    assert overview.texts[-1].get_text() == "gear, 4 shots,\nseed 0, profile mini", "no broader than the rows' names"


def test_an_outline_runs_around_a_speckled_mask_not_through_it():
    import matplotlib.pyplot as plt

    speckled = np.zeros((40, 40), bool)
    speckled[10:30:2, 10:30:2] = True
    figure, ax = plt.subplots()
    plots.outline(ax, speckled)
    plt.close(figure)
    assert len(ax.collections) == 2 and len(ax.collections[1].get_paths()[0].to_polygons()) == 1


def test_one_odd_image_leaves_the_heat_of_the_others():
    maps = np.full((20, 4, 4), 0.1) + np.linspace(0, 0.1, 20)[:, None, None] * (np.arange(16).reshape(4, 4) / 15)
    low, high = plots.heat_range(maps)
    maps[0, 0, 0] = 50
    assert plots.heat_range(maps)[1] < 0.3 and low < high <= 0.2
    assert plots.heat_range(np.zeros((2, 4, 4)))[1] > 0


def test_heatmaps_share_one_scale_and_outline_the_defect():
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 4:9, 4:9] = True
    figure = plots.heatmap_overlay(X[:2], np.random.default_rng(0).random((2, 8, 8)), masks)
    assert "no defect" in words(figure) and "true defect" in words(figure)
    bar, low = figure.axes[-1].collections[-1].cmap, plots.blend(np.full((1, 1, 3), 0.5), np.zeros((1, 1)), 0, 1)[0, 0]
    assert bar(0.0)[:3] == pytest.approx(tuple(low)), "the bar's colours are those of the overlay, grey where it is clear"


def test_report_ranks_and_says_what_it_cannot_tell(folder):
    paths, table = predictions(folder, [0.1, 0.9, 0.3, 0.2, 0.4])
    maps = np.stack([np.full((4, 4), v) for v in (0.1, 0.9, 0.3, 0.2, 0.4)])
    out = report.write_report(folder / "out", table, maps, paths, shots=4)
    csv = pd.read_csv(out["predictions"])
    assert [p.rsplit("/", 1)[1] for p in csv.path] == [f"part{i}.png" for i in (1, 4, 2, 3, 0)]
    assert csv.score.is_monotonic_decreasing and csv["patch_memory_memory"].tolist()[0] == 0.2
    assert all((folder / "out" / name).is_file() for name in csv.heatmap) and csv.heatmap[0] == "heatmaps/1_part1.png"
    hot, cold = (np.asarray(Image.open(folder / "out" / csv.heatmap[i]))[:, 256:].astype(float) for i in (0, 4))
    assert np.ptp(hot - hot.mean(-1, keepdims=True)) > np.ptp(cold - cold.mean(-1, keepdims=True))
    text = out["report"].read_text()
    assert "| 1 | 4 | part1.png | 0.9000 |" in text and "go by the patch memory first" in text and "AUROC" not in text
    assert "no reliable threshold" in text and "20 %" in text and "299" in text
    report.write_report(folder / "out", table.assign(score=-table.score), maps, paths, shots=1)
    assert len(list((folder / "out/heatmaps").iterdir())) == 5  # the earlier ranking's maps are gone
    assert csv.label.isna().all()
    labelled = table.assign(label=table.path.map(dict(zip(paths, (0, 1, 1, 0, 0)))))  # scores 0.1, 0.9, 0.3, 0.2, 0.4
    text = report.write_report(folder / "known", labelled, maps, paths, shots=4)["report"].read_text()
    assert "image AUROC in percent: ADP's score, words plus memory 83.3, patch memory " in text


def test_contact_sheet_names_product_kind_and_file(folder):
    paths, table = predictions(folder, [0.1, 0.9, 0.3, 0.2, 0.4], (0, 1, 0, 1, -1))
    images = table[table.method == "adp"].assign(category=list("abcde"), defect=["good", "wrong_count", "good", "discoloration", "unknown"])
    sheet = report.contact_sheet(images, np.zeros((5, 4, 4)), size=16)
    assert [ax.get_title(loc="left") for ax in sheet.axes] == [
        "1.  0.900  b\nwrong_count part1", "2.  0.400  e\npart4", "3.  0.300  c\ngood part2", "4.  0.200  d\ndiscoloration part3", "5.  0.100  a\ngood part0",
    ]  # fmt: skip
    assert sheet.get_suptitle().endswith("\nframe: orange = defective, blue = good, heat: the map, from 0 (clear) to 1e-12")
    assert sheet.axes[0].spines["left"].get_edgecolor()[:3] == pytest.approx((0xD5 / 255, 0x5E / 255, 0))
    few = report.contact_sheet(images.drop(columns=["category", "defect"]).assign(label=-1), limit=24, size=16)
    assert few.axes[0].get_title(loc="left") == "1.  0.900  \npart1" and "frame" not in few.get_suptitle()


def test_report_refuses_what_does_not_fit(folder):
    paths, table = predictions(folder, [0.1, 0.9, 0.3, 0.2, 0.4], (0, 1, 0, 1, 1))
    assert report.rank(table)["label"].tolist() == ["defective", "defective", "good", "defective", "good"]
    with pytest.raises(FsadError, match="adp sum"):
        report.write_report(folder / "o", table, shots=2, method="winclip")
    with pytest.raises(FsadError, match="No map for 1"):
        report.write_report(folder / "o", table, np.zeros((4, 4, 4)), paths[:4], shots=2)
    with pytest.raises(FsadError, match="not finite"):
        report.write_report(folder / "o", table.assign(score=np.inf), shots=2)
    with pytest.raises(FsadError, match="at least 1"):
        report.threshold_note(0)
    assert not (folder / "o").exists()


def test_the_note_on_thresholds_holds():
    """The chance that a further good part exceeds the highest of k is 1 / (k + 1), whatever the distribution."""
    scores = np.random.default_rng(0).lognormal(size=(200_000, 5))
    assert (scores[:, 4] > scores[:, :4].max(1)).mean() == pytest.approx(1 / 5, abs=0.005)
    assert 0.99**299 <= 0.05 < 0.99**298


def test_a_picture_on_disk_is_shown_small(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 600, 3), np.uint8)).save(tmp_path / "a.png")
    shown = Image.open(io.BytesIO(plots.show_file(tmp_path / "a.png", 200).data))
    assert shown.size == (200, 100) and shown.mode == "P"
    assert Image.open(io.BytesIO(plots.show_file(tmp_path / "a.png", 900).data)).size == (600, 300), "never enlarged"


def test_a_pdf_of_photographs_stays_small(tmp_path):
    pictures = np.random.default_rng(0).random((40, 3, 128, 128))
    png, pdf = plots.save_figure(plots.image_grid(pictures, columns=8, size=1.2), "many", tmp_path)
    assert pdf.stat().st_size <= 500_000 and png.stat().st_size <= 300_000


def test_mathematics_on_one_of_two_lines_is_read_without_a_warning(caplog):
    assert plots._reads("anomaly-aware word,\nstarts from $c_n$") and not plots._reads("one line,\na$\\b$")
    assert not caplog.records
