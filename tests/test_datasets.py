"""Readers, on small trees made here; ELPV on its package when that is installed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsad_lib import datasets
from fsad_lib.datasets import btad, elpv, folder, mvtec_ad, mvtec_loco, shots, visa
from fsad_lib.datasets._common import counts_of
from fsad_lib.errors import FsadError

COLUMNS = ["path", "category", "split", "label", "defect", "mask_path"]


def picture(path: Path, value=None, size=(40, 36)):
    """A small image whose pixels depend on its path, so that no two are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([ord(c) for c in str(path)])
    pixels = (
        np.full(size[::-1], value, np.uint8)
        if value is not None
        else rng.integers(0, 256, size[::-1], dtype=np.uint8)
    )
    Image.fromarray(pixels).save(path)
    return path


def mvtec_tree(root: Path, category="nut", train=5, good=2, bad=3, masks=True) -> Path:
    base = root / category
    for i in range(train):
        picture(base / "train/good" / f"{i:03d}.png")
    for i in range(good):
        picture(base / "test/good" / f"{i:03d}.png")
    for i in range(bad):
        picture(base / "test/scratch" / f"{i:03d}.png")
        if masks:
            mask = picture(base / "ground_truth/scratch" / f"{i:03d}_mask.png", 0)
            m = np.zeros((36, 40), np.uint8)
            m[4 * i : 4 * i + 8, 5:15] = 255
            Image.fromarray(m).save(mask)
    return root


def visa_tree(root: Path, category="candle", n=(4, 2, 3)) -> Path:
    lines = ["object,split,label,image,mask"]
    for i in range(n[0] + n[1]):
        name = f"{category}/Data/Images/Normal/{i:04d}.JPG"
        picture(root / name)
        lines.append(f"{category},{'train' if i < n[0] else 'test'},normal,{name},")
    for i in range(n[2]):
        image, mask = (
            f"{category}/Data/{d}/Anomaly/{i:03d}.{s}" for d, s in (("Images", "JPG"), ("Masks", "png"))
        )
        picture(root / image)
        picture(root / mask, 2)
        lines.append(f"{category},test,anomaly,{image},{mask}")
    (root / "split_csv").mkdir(parents=True, exist_ok=True)
    (root / "split_csv/1cls.csv").write_bytes("\r\n".join(lines).encode() + b"\r\n")  # as the official file
    return root


def loco_tree(root: Path, category="pushpins", n=(4, 2, 2, 3), validation=1) -> Path:
    """train good, test good, logical, structural; logical images have two masks that overlap, structural ones one."""
    base = root / category
    for i in range(n[0]):
        picture(base / "train/good" / f"{i:03d}.png")
    for i in range(validation):
        picture(base / "validation/good" / f"{i:03d}.png")
    for i in range(n[1]):
        picture(base / "test/good" / f"{i:03d}.png")
    for kind, count in zip(("logical_anomalies", "structural_anomalies"), n[2:]):
        for i in range(count):
            picture(base / "test" / kind / f"{i:03d}.png")
            for j in range(2 if kind == "logical_anomalies" else 1):
                m = np.zeros((36, 40), np.uint8)
                m[10 * j : 10 * j + 12, 5:15] = 249 - j
                target = base / "ground_truth" / kind / f"{i:03d}" / f"{j:03d}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(m).save(target)
    (base / "defects_config.json").write_text(
        json.dumps(
            [
                {"defect_name": "two_pins", "pixel_value": 249, "saturation_threshold": 0.5, "relative_saturation": True},
                {"defect_name": "no_pin", "pixel_value": 248, "saturation_threshold": 30, "relative_saturation": False},
            ]
        )
    )
    return root


def btad_tree(root: Path, product="01", n=(4, 2, 3), image=".bmp", mask=".png") -> Path:
    base = root / product
    for where, count in zip(("train/ok", "test/ok", "test/ko"), n):
        for i in range(count):
            picture(base / where / f"{i:04d}{image}")
    for i in range(n[2]):
        picture(base / "ground_truth/ko" / f"{i:04d}{mask}", 255)
    return root


# ---------------------------------------------------------------- names


def test_unknown_names_list_the_valid_ones(tmp_path):
    with pytest.raises(FsadError, match="did you mean 'mvtec_ad'.*minifab_dev"):
        datasets.load("mvtec_add")
    with pytest.raises(FsadError, match="did you mean 'bottle'.*zipper"):
        datasets.load("mvtec_ad", "botle", tmp_path)
    with pytest.raises(FsadError, match="did you mean 'candle'.*pipe_fryum"):
        datasets.load("visa", "candles", tmp_path)
    with pytest.raises(FsadError, match="did you mean 'pushpins'.*screw_bag"):
        datasets.load("mvtec_loco", "pushpin", tmp_path)
    with pytest.raises(FsadError, match="BTAD product '1'.*01, 02, 03"):
        datasets.load("btad", "1", tmp_path)
    with pytest.raises(FsadError, match="mono_half"):
        datasets.load("elpv", "momo")
    with pytest.raises(FsadError, match="did you mean 'nut'"):
        datasets.load("folder", "nuts", mvtec_tree(tmp_path))
    with pytest.raises(FsadError, match="unknown data set"):
        datasets.categories("../minifab")


@pytest.mark.parametrize("name", ["../nut", "..", "a/b", "a\\b", "/etc", "", ".hidden", "nut\0"])
def test_categories_cannot_leave_their_folder(tmp_path, name):
    mvtec_tree(tmp_path / "inner")
    mvtec_tree(tmp_path)
    for dataset in datasets.DATASETS:
        with pytest.raises(FsadError):
            datasets.load(dataset, name, tmp_path / "inner")
    with pytest.raises(FsadError):
        datasets.class_name("folder", name)


def test_class_names():
    assert datasets.class_name("mvtec_ad", "metal_nut") == "metal nut"
    assert datasets.class_name("visa", "pcb4") == "pcb"
    assert datasets.class_name("visa", "pipe_fryum") == "pipe fryum"
    assert datasets.class_name("folder", "my-part_7") == "my part 7"
    assert datasets.class_name("elpv", "mono_half") == "solar cell"
    assert datasets.class_name("mvtec_loco", "splicing_connectors") == "splicing connectors"
    assert [datasets.class_name("btad", c) for c in datasets.categories("btad")] == list(btad.WORDS.values())


@pytest.mark.parametrize("category", ["___", "- -", "a<b", "<c_n>"])
def test_a_class_name_needs_words(category):
    with pytest.raises(FsadError, match="gives no words for a prompt.*Rename it"):
        datasets.class_name("folder", category)


# ---------------------------------------------------------------- folder


def test_folder_table(tmp_path):
    table = datasets.load("folder", data_root=mvtec_tree(mvtec_tree(tmp_path), "cap", masks=False))
    assert list(table.columns) == COLUMNS
    assert table["label"].dtype == np.int64
    assert list(table["category"].unique()) == ["cap", "nut"]
    nut = table[table["category"] == "nut"]
    assert list(nut["split"]) == ["train"] * 5 + ["test"] * 5
    assert list(nut["label"]) == [0] * 7 + [1] * 3
    assert list(nut["defect"]) == ["good"] * 7 + ["scratch"] * 3
    assert all(Path(p).is_absolute() and Path(p).is_file() for p in table["path"])
    assert datasets.has_masks(nut) and not datasets.has_masks(table)
    assert nut["mask_path"][:7].isna().all() and None in list(nut["mask_path"])
    assert datasets.categories("folder", tmp_path) == ["cap", "nut"]
    assert table.equals(datasets.load("folder", data_root=tmp_path))
    x = datasets.read_masks(nut[nut["split"] == "test"], 12)
    assert x.any(dim=(1, 2)).tolist() == [False] * 2 + [True] * 3


def test_root_may_be_one_category(tmp_path):
    mvtec_tree(tmp_path)
    table = datasets.load("folder", data_root=tmp_path / "nut")
    assert set(table["category"]) == {"nut"} and len(table) == 10
    assert datasets.load("folder", "nut", tmp_path / "nut").equals(table)


def test_masks_are_paired_by_name_not_by_order(tmp_path):
    base = mvtec_tree(tmp_path) / "nut"
    truth = base / "ground_truth/scratch"
    (truth / "000_mask.png").unlink()
    (truth / "001_mask.png").rename(truth / "001.bmp")  # same stem, no _mask
    table = datasets.load("folder", "nut", tmp_path)
    masks = {
        Path(p).stem: m and Path(m).name
        for p, m in zip(table["path"], table["mask_path"], strict=True)
        if "scratch" in p
    }
    assert masks == {"000": None, "001": "001.bmp", "002": "002_mask.png"}
    assert not datasets.has_masks(table)


@pytest.mark.parametrize("twin", ["001.jpg", "001_mask.png"])
def test_a_mask_serves_one_image(tmp_path, twin):
    base = mvtec_tree(tmp_path) / "nut"
    picture(base / "test/scratch" / twin)
    with pytest.raises(FsadError, match=rf"001_mask.png would serve two images, \S*(001.png|{twin}) and \S*(001.png|{twin}); .*Rename"):
        datasets.load("folder", "nut", tmp_path)
    if twin == "001_mask.png":
        picture(base / "ground_truth/scratch/001_mask_mask.png", 255)
        assert datasets.has_masks(datasets.load("folder", "nut", tmp_path))
    shutil.rmtree(base / "ground_truth")
    assert len(datasets.load("folder", "nut", tmp_path)) == 11, "without masks nothing is mixed up"


def test_unlabelled_images_lie_directly_in_test(tmp_path):
    for i in range(3):
        picture(tmp_path / "part/train/good" / f"{i}.png")
    picture(tmp_path / "part/test/b.png")
    picture(tmp_path / "part/test/unknown/a.JPG")
    test = datasets.load("folder", "part", tmp_path).query("split == 'test'")
    assert list(test["label"]) == [-1, -1] and set(test["defect"]) == {"unknown"}
    assert not datasets.has_masks(test)


@pytest.mark.parametrize("where", ["", "test"])
def test_simplest_layout(tmp_path, where):
    root = tmp_path / "my parts (new)"
    for i in range(2):
        picture(root / "good" / f"{i}.png")
    picture(root / where / "judge me.png")
    table = datasets.load("folder", data_root=root)
    assert list(table["split"]) == ["train", "train", "test"] and table["label"].iloc[-1] == -1
    assert set(table["category"]) == {"my parts (new)"}


def test_hidden_and_foreign_files_are_ignored(tmp_path):
    base = mvtec_tree(tmp_path) / "nut"
    before = datasets.load("folder", data_root=tmp_path)
    (base / "train/good/._000.png").write_bytes(b"mac")
    (base / "train/good/notes.txt").write_text("x")
    (base / "test/.DS_Store").write_text("x")
    assert datasets.load("folder", data_root=tmp_path).equals(before)


def test_a_link_to_nothing_is_named_not_skipped(tmp_path):
    base = mvtec_tree(tmp_path) / "nut"
    (base / "test/good/gone.png").symlink_to(tmp_path / "nowhere.png")
    table = datasets.load("folder", data_root=tmp_path)
    with pytest.raises(FsadError, match="image not found: .*gone.png"):
        datasets.read_images(table["path"], 16)


def test_a_locked_folder_beside_the_category_is_in_nobodys_way(tmp_path, lock):
    lock(mvtec_tree(mvtec_tree(tmp_path), "secret") / "secret")
    assert len(datasets.load("folder", "nut", tmp_path)) == 10
    assert datasets.categories("folder", tmp_path) == ["nut", "secret"]
    for category in ("secret", None):
        with pytest.raises(FsadError, match="cannot look into .*secret.*: Permission denied. Make the folder readable"):
            datasets.load("folder", category, tmp_path)


@pytest.mark.parametrize("dataset, category", [("folder", "bottle"), ("folder", None), ("mvtec_ad", "bottle"), ("btad", "01")])
def test_a_locked_root_is_named(tmp_path, lock, dataset, category):
    lock(mvtec_tree(btad_tree(tmp_path / "data"), "bottle"))
    with pytest.raises(FsadError, match="cannot look into .*data.*: Permission denied. Make the folder readable"):
        datasets.load(dataset, category, tmp_path / "data")


def test_wrong_layouts_say_what_was_found(tmp_path):
    with pytest.raises(FsadError, match="no folder.*\n.*expected|no folder"):
        datasets.load("folder", data_root=tmp_path / "none")
    with pytest.raises(FsadError, match="needs data_root"):
        datasets.load("folder")
    picture(tmp_path / "images/0.png")
    with pytest.raises(
        FsadError, match=r"found images, but no train/good(.|\n)*<root>/<category>/train/good"
    ):
        datasets.load("folder", data_root=tmp_path)
    (tmp_path / "empty/train/good").mkdir(parents=True)
    with pytest.raises(FsadError, match="holds no image"):
        datasets.load("folder", "empty", tmp_path)
    picture(tmp_path / "empty/train/good/0.png")
    with pytest.raises(FsadError, match="no image to judge"):
        datasets.load("folder", "empty", tmp_path)


# ---------------------------------------------------------------- MVTec AD


def test_mvtec_official_totals():
    assert [sum(c[i] for c in mvtec_ad.COUNTS.values()) for i in range(3)] == [3629, 467, 1258]
    assert len(mvtec_ad.COUNTS) == 15 and sum(map(sum, mvtec_ad.COUNTS.values())) == 5354


@pytest.mark.parametrize("place", ["mvtec_ad", "mvtec_anomaly_detection", "."])
def test_mvtec_reader_and_count_check(tmp_path, monkeypatch, place):
    monkeypatch.setitem(mvtec_ad.COUNTS, "bottle", (5, 2, 3))
    mvtec_tree(tmp_path / place, "bottle")
    table = datasets.load("mvtec_ad", "bottle", tmp_path)
    assert (
        list(table.columns) == COLUMNS
        and counts_of(table) == (5, 2, 3)
        and datasets.has_masks(table)
    )
    mask = next((tmp_path / place / "bottle/ground_truth/scratch").iterdir())
    content = mask.read_bytes()
    mask.unlink()
    with pytest.raises(FsadError, match="1 defective images have no mask"):
        datasets.load("mvtec_ad", "bottle", tmp_path)
    mask.write_bytes(content)
    next((tmp_path / place / "bottle/test/good").iterdir()).unlink()
    with pytest.raises(FsadError, match=r"found 5/1/3 .*expected 5/2/3"):
        datasets.load("mvtec_ad", "bottle", tmp_path)


def test_mvtec_missing_says_where_to_get_it(tmp_path):
    for dataset, source in (("mvtec_ad", "mvtec.com"), ("visa", "spot-diff"), ("mvtec_loco", "mvtec-loco"), ("btad", "VT-ADL")):
        with pytest.raises(FsadError, match=rf"not here(.|\n)*{source}(.|\n)*{tmp_path}"):
            datasets.load(dataset, None, tmp_path)
    mvtec_tree(tmp_path / "mvtec_ad", "bottle")
    with pytest.raises(FsadError, match="no folder .*cable"):
        datasets.load("mvtec_ad", "cable", tmp_path)


# ---------------------------------------------------------------- VisA


def test_visa_official_totals():
    assert [sum(c[i] for c in visa.COUNTS.values()) for i in range(3)] == [8659, 962, 1200]
    assert len(visa.COUNTS) == 12


def test_visa_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(visa.COUNTS, "candle", (4, 2, 3))
    root = visa_tree(tmp_path / "visa")
    table = datasets.load("visa", "candle", tmp_path)
    assert list(table["split"]) == ["train"] * 4 + ["test"] * 5
    bad = table[table["label"] == 1]
    assert set(bad["defect"]) == {"anomaly"} and datasets.has_masks(table)
    assert all(Path(p).stem == Path(m).stem for p, m in zip(bad["path"], bad["mask_path"], strict=True))
    assert datasets.read_masks(bad, 8).all()  # class number 2, not 255
    assert datasets.load("visa", "candle", root)["path"].tolist() == table["path"].tolist()
    split = root / "split_csv/1cls.csv"
    whole = split.read_text()
    split.write_text(whole.replace("candle/Data/Masks/Anomaly/001.png", ""))
    with pytest.raises(FsadError, match="1 defective images have no mask .*001.JPG"):
        datasets.load("visa", "candle", tmp_path)
    split.write_text(whole)
    (root / "candle/Data/Images/Normal/0001.JPG").unlink()
    with pytest.raises(FsadError, match="1 files of the split are missing.*0001.JPG"):
        datasets.load("visa", "candle", tmp_path)


@pytest.mark.parametrize(
    "line,match",
    [
        ("candle,train,normal,../../etc/passwd,", "leaves"),
        ("candle,train,normal,candle/../../x.JPG,", "leaves"),
        ("candle,train,normal,/etc/passwd,", "leaves"),
        ("candle,train,normal,..\\x.JPG,", "leaves"),
        ("candle,train,normal,C:/x.JPG,", "leaves"),
        ("candle,test,anomaly,candle/a.JPG,../m.png", "leaves"),
        ("candle,train,anomaly,candle/a.JPG,candle/m.png", "anomaly in the training split"),
        ("candle,val,normal,candle/a.JPG,", "line 11"),
        ("candel,train,normal,candle/a.JPG,", "did you mean 'candle'"),
        ("candle,train,normal", "line 11"),
    ],
)
def test_visa_bad_csv(tmp_path, line, match):
    split = visa_tree(tmp_path) / "split_csv/1cls.csv"
    split.write_text(split.read_text() + line + "\n")
    with pytest.raises(FsadError, match=match):
        visa.read_split(tmp_path)


def test_visa_bad_header_or_no_csv(tmp_path):
    split = visa_tree(tmp_path) / "split_csv/1cls.csv"
    split.write_text("a,b\n")
    with pytest.raises(FsadError, match="expected object,split,label,image,mask"):
        visa.read_split(tmp_path)
    split.unlink()
    with pytest.raises(FsadError, match="1-class split"):
        datasets.load("visa", "candle", tmp_path)


# ---------------------------------------------------------------- MVTec LOCO AD, BTAD


def test_loco_and_btad_official_totals():
    # Of LOCO's archive: 1,778 training, 305 validation, 575 good, 561 logical and 432 structural images.
    assert [sum(c[i] for c in mvtec_loco.COUNTS.values()) for i in range(4)] == [1778, 575, 561, 432]
    assert sum(mvtec_loco.VALIDATION.values()) == 305 and mvtec_loco.VALIDATION.keys() == mvtec_loco.COUNTS.keys()
    # Of BTAD's: 1,799 training and 741 test images; with the 290 masks the 2,830 that papers count.
    train, good, bad = (sum(c[i] for c in btad.COUNTS.values()) for i in range(3))
    assert (train, good + bad, train + good + 2 * bad) == (1799, 741, 2830)


@pytest.mark.parametrize("place", ["mvtec_loco", "mvtec_loco_anomaly_detection", "."])
def test_loco_reader(tmp_path, monkeypatch, place):
    monkeypatch.setitem(mvtec_loco.BENCHMARK.counts, "pushpins", (4, 2, 5))
    root = loco_tree(tmp_path / place)
    table = datasets.load("mvtec_loco", "pushpins", tmp_path)
    assert list(table.columns) == COLUMNS and counts_of(table) == (4, 2, 5) and datasets.has_masks(table)
    assert list(table["defect"]) == ["good"] * 6 + ["logical_anomalies"] * 2 + ["structural_anomalies"] * 3
    assert [p.name for p in mvtec_loco.validation_images(tmp_path, "pushpins")] == ["000.png"]
    assert not table["path"].str.contains("validation").any()
    logical = table[table["defect"] == "logical_anomalies"]
    union = datasets.read_masks(logical, 40)[0]  # rows 0..21 of 36, drawn on 40
    first = mvtec_loco.regions(logical["mask_path"].iloc[0])
    assert union.sum() > 1.5 * first[0].mask.sum() and int(union.any(1).sum()) == pytest.approx(22 * 40 / 36, abs=1)
    assert [(int(r.mask.sum()), r.saturation, r.defect) for r in first] == [(120, 60, "two_pins"), (120, 30, "no_pin")]
    shutil.rmtree(root / "pushpins/ground_truth/logical_anomalies/001")
    with pytest.raises(FsadError, match="1 defective images have no mask.*001.png"):
        datasets.load("mvtec_loco", "pushpins", tmp_path)
    (root / "pushpins/test/good/000.png").unlink()
    with pytest.raises(FsadError, match="found 4/1/5 .*expected 4/2/5"):
        datasets.load("mvtec_loco", "pushpins", tmp_path)


def test_loco_masks_of_other_sizes_and_values_are_refused(tmp_path):
    base = loco_tree(tmp_path) / "pushpins"
    masks = base / "ground_truth/logical_anomalies/000"
    picture(masks / "002.png", 255, size=(7, 7))
    with pytest.raises(FsadError, match="different sizes"):
        datasets.read_mask(masks, 16)
    picture(masks / "002.png", 255)
    with pytest.raises(FsadError, match=r"002.png.*\[255\].*\[248, 249\]"):
        mvtec_loco.regions(masks)
    for text, match in (("{", "cannot read"), ("[{}]", "official form"), ('[{"pixel_value": 1, "defect_name": "a", '
                        '"saturation_threshold": 0, "relative_saturation": true}]', "not positive")):  # fmt: skip
        (base / "defects_config.json").write_text(text)
        with pytest.raises(FsadError, match=match):
            mvtec_loco.regions(masks)
    (base / "defects_config.json").unlink()
    with pytest.raises(FsadError, match="sPRO needs it"):
        mvtec_loco.regions(masks)
    (tmp_path / "none").mkdir()
    with pytest.raises(FsadError, match="no mask in the folder"):
        datasets.read_mask(tmp_path / "none", 16)


def test_a_change_of_one_of_several_masks_changes_the_fingerprint(tmp_path, monkeypatch):
    from fsad_lib import runs

    monkeypatch.setitem(mvtec_loco.BENCHMARK.counts, "pushpins", (4, 2, 5))
    root = loco_tree(tmp_path)
    before = runs._table(root, "mvtec_loco", "pushpins", str(tmp_path))[1]
    m = np.zeros((36, 40), np.uint8)
    m[20:30, 20:30] = 248
    Image.fromarray(m).save(root / "pushpins/ground_truth/logical_anomalies/000/001.png")
    runs.forget_inputs()
    assert runs._table(root, "mvtec_loco", "pushpins", str(tmp_path))[1] != before
    runs.forget_inputs()


@pytest.mark.parametrize("product,image,mask", [("01", ".bmp", ".png"), ("02", ".png", ".png"), ("03", ".bmp", ".bmp")])
def test_btad_reader(tmp_path, monkeypatch, product, image, mask):
    monkeypatch.setitem(btad.COUNTS, product, (4, 2, 3))
    root = btad_tree(tmp_path / "BTech_Dataset_transformed", product, image=image, mask=mask)
    table = datasets.load("btad", product, tmp_path)
    assert list(table.columns) == COLUMNS and counts_of(table) == (4, 2, 3) and datasets.has_masks(table)
    bad = table[table["label"] == 1]
    assert set(bad["defect"]) == {"ko"} and set(table[table["label"] == 0]["defect"]) == {"good"}
    assert all(Path(p).stem == Path(m).stem for p, m in zip(bad["path"], bad["mask_path"], strict=True))
    next((root / product / "ground_truth/ko").iterdir()).unlink()
    with pytest.raises(FsadError, match="1 defective images have no mask"):
        datasets.load("btad", product, tmp_path)
    next((root / product / "test/ok").iterdir()).unlink()
    with pytest.raises(FsadError, match="found 4/1/3 .*expected 4/2/3"):
        datasets.load("btad", product, tmp_path)


# ---------------------------------------------------------------- ELPV


def test_elpv_missing_package_names_extra_and_licence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FsadError, match=r"pip install elpv-dataset(.|\n)*\[elpv\](.|\n)*CC BY-NC-SA 4.0"):
        datasets.load("elpv", "mono")


def elpv_tree(data: Path) -> Path:
    lines = []
    for kind, counts in elpv.COUNTS.items():
        for thirds, n in enumerate(counts):
            lines += [f"images/{kind}_{thirds}_{i}.png  {thirds / 3}  {kind}" for i in range(n)]
    data.mkdir(parents=True)
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    return data


@pytest.mark.parametrize("kind", elpv.CATEGORIES)
def test_elpv_protocols(tmp_path, monkeypatch, kind):
    data = elpv_tree(tmp_path / "data")
    monkeypatch.setattr(elpv, "package_folder", lambda: data)
    strict, half = datasets.load("elpv", kind), datasets.load("elpv", f"{kind}_half")
    n = elpv.COUNTS[kind]
    test = strict[strict["split"] == "test"]
    assert (test["label"] == 0).sum() == n[0] - 64 and (test["label"] == 1).sum() == n[3]
    assert len(half) == sum(n) and (half["label"] == 1).sum() == n[2] + n[3]
    pools = [set(t.loc[t["split"] == "train", "path"]) for t in (strict, half)]
    assert pools[0] == pools[1] and len(pools[0]) == 64 and not pools[0] & set(test["path"])
    assert all(f"{kind}_0_" in p for p in pools[0])
    assert set(half["category"]) == {f"{kind}_half"} and not datasets.has_masks(half)
    assert set(half["defect"]) == {"good", "defective", "probably_defective"}


def test_elpv_changed_package_is_refused(tmp_path, monkeypatch):
    data = elpv_tree(tmp_path / "data")
    monkeypatch.setattr(elpv, "package_folder", lambda: data)
    lines = (data / "labels.csv").read_text().splitlines()
    (data / "labels.csv").write_text("\n".join(lines[1:]))
    with pytest.raises(FsadError, match=r"found \(587, 117, 56, 313\)"):
        elpv.load("mono")
    (data / "labels.csv").write_text("\n".join([lines[0].replace("images/", "../"), *lines[1:]]))
    with pytest.raises(FsadError, match="leaves"):
        elpv.load("mono")
    (data / "labels.csv").write_text("images/a.png 0.5 mono")
    with pytest.raises(FsadError, match="line 1"):
        elpv.load("mono")


def test_elpv_real_package():
    pytest.importorskip("elpv_dataset")
    for kind, test in (("mono", (524, 313)), ("poly", (856, 402))):
        table = datasets.load("elpv", kind)
        assert counts_of(table) == (64, *test)
        assert datasets.read_image(table["path"].iloc[0], 32).std() > 0


# ---------------------------------------------------------------- MiniFab


def test_minifab_is_written_once_and_read(tmp_path, monkeypatch):
    minifab = pytest.importorskip("fsad_lib.datasets.minifab")
    calls = []

    def write(root, split, category):
        calls.append((Path(root), split, category))
        if not (Path(root) / category).exists():
            mvtec_tree(Path(root), category)

    monkeypatch.setattr(minifab, "write", write)
    for dataset, split in (("minifab", "evaluation"), ("minifab_dev", "development")):
        name = datasets.categories(dataset)[0]
        table = datasets.load(dataset, name, tmp_path)
        assert calls[-1] == (tmp_path / dataset, split, name)
        assert len(table) == 10 and datasets.has_masks(table)
        assert table.equals(datasets.load(dataset, name, tmp_path))
        with pytest.raises(FsadError, match=name):
            datasets.load(dataset, name + "x", tmp_path)
    monkeypatch.setattr(
        minifab, "write", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(FsadError, match="No space left.*data_root"):
        datasets.load("minifab", name if name in datasets.categories("minifab") else None, tmp_path)


def test_default_root_follows_the_project(tmp_path, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path))
    assert datasets.default_root() == tmp_path.resolve() / "data" / "datasets"


# ---------------------------------------------------------------- shots


@pytest.fixture
def nuts(tmp_path):
    return datasets.load("folder", "nut", mvtec_tree(tmp_path / "images", train=20))


def test_shots_nest_and_are_recorded(tmp_path, nuts):
    taken = {k: shots.take(nuts, "demo", "nut", 0, k, tmp_path) for k in (1, 2, 4, 8, 16, 20)}
    for k, paths in taken.items():
        assert len(set(paths)) == k and paths == taken[20][:k]
        assert set(paths) <= set(nuts.loc[nuts["split"] == "train", "path"])
    assert taken[20] != sorted(taken[20])
    assert shots.take(nuts, "demo", "nut", 1, 20, tmp_path) != taken[20]
    stored = json.loads((tmp_path / "demo/nut/seed0.json").read_text())
    assert [e["path"] for e in stored["order"]] == [
        Path(p).relative_to(nuts.attrs["root"]).as_posix() for p in taken[20]
    ]
    assert stored["order"] == shots.manifest(nuts, "demo", "nut", 0, tmp_path)
    assert stored["order"][0]["sha256"] == shots.file_sha256(taken[20][0])
    assert not list((tmp_path / "demo").rglob("*.tmp"))


def test_shots_do_not_depend_on_where_the_data_lie(tmp_path, nuts):
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    moved = datasets.load("folder", "nut", tmp_path / "moved")
    first = shots.manifest(nuts, "demo", "nut", 3, tmp_path)
    assert shots.manifest(moved, "demo", "nut", 3, tmp_path) == first
    alone = nuts.sample(frac=1, random_state=0).reset_index(drop=True)
    assert shots.manifest(alone, "demo", "nut", 3, tmp_path) == first


@pytest.mark.parametrize("k", [0, -1, 21, 2.5, True])
def test_impossible_numbers_of_shots(tmp_path, nuts, k):
    with pytest.raises(FsadError, match="expected 1 to 20"):
        shots.take(nuts, "demo", "nut", 0, k, tmp_path)
    assert not (tmp_path / "demo").exists()


def test_changed_images_are_noticed(tmp_path, nuts):
    order = shots.manifest(nuts, "demo", "nut", 0, tmp_path)
    path = Path(nuts.attrs["root"]) / order[0]["path"]
    content = path.read_bytes()
    picture(path, 7)
    with pytest.raises(FsadError, match=rf"1 changed \(first: {order[0]['path']}\).*seed0.json"):
        shots.take(nuts, "demo", "nut", 0, 2, tmp_path)
    path.write_bytes(content)
    assert shots.manifest(nuts, "demo", "nut", 0, tmp_path) == order
    with pytest.raises(FsadError, match="1 missing"):
        shots.take(nuts.iloc[1:], "demo", "nut", 0, 2, tmp_path)
    file = tmp_path / "demo/nut/seed0.json"
    stored = json.loads(file.read_text())
    stored["order"].reverse()
    file.write_text(json.dumps(stored))
    with pytest.raises(FsadError, match="another order"):
        shots.take(nuts, "demo", "nut", 0, 2, tmp_path)
    for broken in ("{", "[]", '{"order": [1]}'):
        file.write_text(broken)
        with pytest.raises(FsadError, match="cannot be read"):
            shots.take(nuts, "demo", "nut", 0, 2, tmp_path)


def test_each_state_of_an_own_folder_keeps_its_manifest(tmp_path, nuts):
    before = shots.take(nuts, "folder", "nut", 0, 20, tmp_path)
    picture(tmp_path / "images/nut/train/good/new.png")
    grown = datasets.load("folder", "nut", tmp_path / "images")
    after = shots.take(grown, "folder", "nut", 0, 21, tmp_path)
    assert [p for p in after if "new" not in p] == before
    assert len(list((tmp_path / "folder/nut").iterdir())) == 2


def test_an_own_products_shots_do_not_depend_on_which_folder_was_given(tmp_path, nuts):
    root = tmp_path / "images"
    around, itself = datasets.load("folder", "nut", root), datasets.load("folder", "nut", root / "nut")
    shots_of = [shots.take(table, "folder", "nut", 3, 6, tmp_path) for table in (around, itself)]
    assert shots_of[0] == shots_of[1] and len(list((tmp_path / "folder/nut").iterdir())) == 1
    (tmp_path / "moved").mkdir()
    (root / "nut").rename(tmp_path / "moved/nut")
    moved = shots.take(datasets.load("folder", "nut", tmp_path / "moved"), "folder", "nut", 3, 6, tmp_path)
    assert [Path(p).name for p in moved] == [Path(p).name for p in shots_of[0]]


def test_manifests_stay_in_their_folder(tmp_path, nuts):
    for dataset, category, seed in (
        ("..", "nut", 0),
        ("demo", "../nut", 0),
        ("demo", "nut", -1),
        ("demo", "nut", 0.5),
    ):
        with pytest.raises(FsadError):
            shots.manifest(nuts, dataset, category, seed, tmp_path / "shots")
    (tmp_path / "file").write_text("")
    with pytest.raises(FsadError, match="cannot write shot manifest"):
        shots.manifest(nuts, "demo", "nut", 0, tmp_path / "file")
    with pytest.raises(FsadError, match="no normal training image"):
        shots.manifest(nuts, "demo", "cap", 0, tmp_path)


def test_manifest_default_place(tmp_path, nuts, monkeypatch):
    monkeypatch.setenv("FSAD_HOME", str(tmp_path / "home"))
    shots.take(nuts, "demo", "nut", 5, 2)
    assert (tmp_path / "home/data/shots/demo/nut/seed5.json").is_file()


def test_accents_stored_apart_are_the_accents_typed(tmp_path):
    """A Mac writes "ä" as two characters."""
    apart, typed = "Geha\u0308use", "Geh\u00e4use"
    mvtec_tree(tmp_path, apart)
    base = tmp_path / apart
    (base / "test/scratch/000.png").rename(base / "test/scratch/\u00e4.png")
    (base / "ground_truth/scratch/000_mask.png").rename(base / "ground_truth/scratch/a\u0308_mask.png")
    table = datasets.load("folder", typed, tmp_path)
    assert set(table.category) == {typed} and datasets.has_masks(table)


def test_values_out_of_range_are_found_before_a_run(tmp_path):
    mvtec_tree(tmp_path)
    Image.fromarray(np.full((8, 8), 200, np.float32)).save(tmp_path / "nut/test/good/000.tif")
    with pytest.raises(FsadError, match="values 200..200"):
        datasets.check_readable(datasets.load("folder", "nut", tmp_path))


def test_pair_masks_prefers_the_mvtec_name(tmp_path):
    image = picture(tmp_path / "a.png")
    for name in ("a.png", "a_mask.jpg", "a_mask.png"):
        picture(tmp_path / "gt" / name, 0)
    assert folder.mask_of(image, tmp_path / "gt").name == "a_mask.png"
    assert folder.mask_of(image, tmp_path / "nothing") is None


def test_what_lies_in_place_of_good_images_is_named(tmp_path):
    good = tmp_path / "clamp/train/good"
    good.mkdir(parents=True)
    (good / "a.HEIC").write_bytes(b"")
    with pytest.raises(FsadError, match=r"holds no image, but files that are not read \(.heic\); expected"):
        datasets.load("folder", "clamp", tmp_path)
    Image.new("L", (8, 8)).save(good / "b.jfif", format="jpeg")
    Image.new("L", (8, 8)).save(tmp_path / "clamp/part.png")
    (tmp_path / "clamp/test").mkdir()
    (tmp_path / "clamp/part.png").rename(tmp_path / "clamp/test/part.png")
    assert len(datasets.load("folder", "clamp", tmp_path)) == 2, "a JPEG by another name"
    good.parent.rename(tmp_path / "clamp/Train")
    with pytest.raises(FsadError, match="Train/good is spelled differently: rename it"):
        datasets.load("folder", "clamp", tmp_path)


# ---------------------------------------------------------------- masks before a run


def test_broken_masks_are_named_before_a_run(tmp_path):
    mvtec_tree(tmp_path)
    masks = tmp_path / "nut/ground_truth/scratch"
    datasets.check_masks(datasets.load("folder", "nut", tmp_path))
    picture(masks / "000_mask.png", 0)
    picture(masks / "001_mask.png", 255, size=(5, 5))
    (masks / "002_mask.png").unlink()
    (masks / "002_mask.png").symlink_to("gone.png")
    with pytest.raises(FsadError, match=r"000_mask.png has no defective pixel.*\n.*001_mask.png is 5x5.*\n.*not found.*002_mask.png"):
        datasets.check_masks(datasets.load("folder", "nut", tmp_path))
    (masks / "002_mask.png").unlink()
    with pytest.raises(FsadError, match="000_mask.png has no defective pixel"):  # also where not every image has one
        datasets.check_masks(datasets.load("folder", "nut", tmp_path))


def test_a_linked_category_has_the_name_of_the_link(tmp_path):
    mvtec_tree(tmp_path / "store", "part-0815")
    (tmp_path / "nut").symlink_to(tmp_path / "store/part-0815")
    assert set(datasets.load("folder", "nut", tmp_path / "nut")["category"]) == {"nut"}
