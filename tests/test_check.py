"""check-data: each fault is found, named, and told how to mend; a good folder passes."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from test_datasets import btad_tree, loco_tree, mvtec_tree, picture, visa_tree

from fsad_lib import datasets
from fsad_lib.datasets import btad, mvtec_ad, mvtec_loco, visa
from fsad_lib.datasets.check import check
from fsad_lib.errors import FsadError


def found(report, level, text):
    return [f for f in report.findings if f.level == level and text in str(f)]


def test_good_folder(tmp_path):
    report = check(mvtec_tree(tmp_path))
    assert report.ok and not found(report, "warning", "")
    assert report.rows == [("nut", 5, 2, 3, 0, 3)]
    assert "usable: 0 errors, 0 warnings" in str(report) and "no reliable threshold" in str(report)


def test_one_category_and_simplest_layout(tmp_path):
    assert check(mvtec_tree(tmp_path) / "nut").rows == [("nut", 5, 2, 3, 0, 3)]
    for i in range(2):
        picture(tmp_path / "simple/good" / f"{i}.png")
    picture(tmp_path / "simple/judge.png")
    report = check(tmp_path / "simple")
    assert report.ok and report.rows == [("simple", 2, 0, 0, 1, 0)] and not found(report, "warning", "")


def test_missing_and_empty(tmp_path):
    assert "no such folder" in str(check(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    assert "a file, not a folder" in str(check(tmp_path / "file"))
    picture(tmp_path / "photos/a.png")
    report = check(tmp_path)
    assert not report.ok and "photos" in str(report) and "train/good" in str(report)
    mvtec_tree(tmp_path / "deeper/data")
    assert "check one of these instead: data" in str(check(tmp_path / "deeper"))


def test_a_damaged_further_picture_is_told_like_a_whole_one(tmp_path):
    base = mvtec_tree(tmp_path) / "nut"
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)) for i in range(3)]
    frames[0].save(base / "test/good/frames.gif", save_all=True, append_images=frames[1:])
    data = (base / "test/good/frames.gif").read_bytes()
    for cut in range(len(data) // 3 - 40, len(data) // 3 + 40, 5):  # in the second frame's head and first lines
        (base / "test/good/frames.gif").write_bytes(data[:cut])
        assert "frames.gif" in str(check(base))


def test_every_fault_at_once(tmp_path):
    base = mvtec_tree(tmp_path) / "nut"
    (base / "test/good/000.png").write_bytes((base / "test/good/000.png").read_bytes()[:80])  # truncated
    (base / "train/good/text.png").write_text("no image")
    picture(base / "ground_truth/scratch/000_mask.png", 255, size=(5, 5))
    picture(base / "ground_truth/scratch/001_mask.png", 0)
    picture(base / "ground_truth/scratch/077_mask.png", 255)
    picture(base / "ground_truth/dent/000_mask.png", 255)
    picture(base / "ground_truth/good/001_mask.png", 255)
    picture(base / "test/scratch/009.png")
    shutil.copy(base / "train/good/000.png", base / "test/good/twin.png")
    Image.open(base / "train/good/001.png").save(base / "test/good/twin.bmp")  # same pixels, another format
    shutil.copy(base / "train/good/002.png", base / "train/good/copy.png")
    (base / "train/good/video.mp4").write_bytes(b"x")
    picture(base / "train/flawless/000.png")
    report = check(tmp_path)
    assert not report.ok
    assert found(report, "error", "test/good/000.png") and found(report, "error", "text.png")
    assert found(report, "error", "000_mask.png is 5x5")[0].expected.startswith("40x36")
    assert found(report, "error", "001_mask.png is empty")
    assert found(report, "error", "masks without an image: nut/ground_truth/scratch/077_mask.png")
    assert found(report, "error", "no folder test/dent")
    assert found(report, "warning", "defects in good images")
    assert found(report, "warning", "1 of 4 defective images have no mask: nut/test/scratch/009.png")
    assert found(report, "warning", "2 pictures are both in train and in test")
    assert found(report, "warning", "there more than once")
    assert found(report, "warning", "video.mp4") and found(report, "warning", "train/flawless/000.png")
    assert all(f.do or f.expected or "image" in f.found for f in report.findings)


def test_twelve_bits_in_sixteen_bit_colour_are_told(tmp_path):
    nut = mvtec_tree(tmp_path) / "nut"
    for path in sorted(nut.glob("t*/*/*.png")):
        Image.new("RGB", (40, 40), (16, 12, 9)).save(path)  # what Pillow makes of 4095 of 65535
    assert found(check(tmp_path), "warning", "brighter than 16 of 255")
    Image.new("RGB", (40, 40), (200, 12, 9)).save(path)
    assert not found(check(tmp_path), "warning", "of 255"), "one dark image is an image"


def test_kinds_of_images_are_noted(tmp_path):
    good = mvtec_tree(tmp_path) / "nut/train/good"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        good / "turned.png", exif=exif
    )
    picture(good / "tiny.png", size=(20, 20))
    Image.fromarray(np.random.default_rng(1).integers(0, 4000, (40, 40)).astype(np.uint16)).save(
        good / "dark.png"
    )
    report = check(tmp_path)
    assert report.ok
    assert (
        found(report, "note", "EXIF")
        and found(report, "note", "single-channel images (I;16, L)")
        and found(report, "note", "3 sizes")
    )
    assert (
        found(report, "warning", "16-bit")
        and found(report, "warning", "mixed")
        and found(report, "warning", "smaller than 32")
    )


def test_inverted_mask(tmp_path):
    picture(mvtec_tree(tmp_path) / "nut/ground_truth/scratch/000_mask.png", 255)
    assert found(check(tmp_path), "warning", "covers the whole image")


def test_an_inverted_mask_leaves_the_defect_out(tmp_path):
    path = mvtec_tree(tmp_path) / "nut/ground_truth/scratch/000_mask.png"
    mask = np.full(np.asarray(Image.open(path)).shape, 255, np.uint8)
    mask[: len(mask) // 4, : len(mask) // 4] = 0
    Image.fromarray(mask).save(path)
    assert found(check(tmp_path), "warning", "covers 94 % of the image")


def test_what_is_not_read_of_a_file_is_told(tmp_path):
    good = mvtec_tree(tmp_path) / "nut/test/good"
    pages = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    pages[0].save(good / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(good / "moving.gif", save_all=True, append_images=pages[1:])
    pages[0].save(good / "preview.jpg", format="MPO", save_all=True, append_images=pages[1:])
    assert found(check(tmp_path), "warning", "2 files hold more than one picture, of which only the first is read: nut/test/good/moving.gif")


def test_no_masks_is_fine(tmp_path):
    report = check(mvtec_tree(tmp_path, masks=False))
    assert report.ok and found(report, "note", "image-level metrics only")


def test_mvtec_counts(tmp_path, monkeypatch):
    for name in ("bottle", "cable", "pill"):
        monkeypatch.setitem(mvtec_ad.COUNTS, name, (5, 2, 3))
        mvtec_tree(tmp_path, name)
    report = check(tmp_path)
    assert (
        report.kind == "MVTec AD"
        and report.ok
        and found(report, "warning", "12 of 15 categories are missing")
    )
    (tmp_path / "pill/test/good/000.png").unlink()
    (tmp_path / "cable/ground_truth/scratch/000_mask.png").unlink()
    report = check(tmp_path)
    assert found(report, "error", "pill: 5/1/3 images")[0].expected == "5/2/3"
    assert found(report, "error", "cable: 2 masks for 3")


def test_own_folder_named_like_a_benchmark_category(tmp_path):
    report = check(mvtec_tree(tmp_path, "bottle"))
    assert (
        report.ok
        and report.kind == "a folder in MVTec AD's layout"
        and found(report, "note", "checked as your own")
    )


def test_visa(tmp_path, monkeypatch):
    monkeypatch.setitem(visa.COUNTS, "candle", (4, 2, 3))
    root = visa_tree(tmp_path)
    report = check(root)
    assert report.kind.startswith("VisA") and report.ok and report.rows == [("candle", 4, 2, 3, 0, 3)]
    (root / "candle/Data/Images/Normal/0001.JPG").unlink()
    (root / "candle/Data/Masks/Anomaly/001.png").unlink()
    report = check(root)
    assert (
        found(report, "error", "0001.JPG")
        and found(report, "error", "3/2/3 images")
        and found(report, "error", "001.png")
    )
    with (root / "split_csv/1cls.csv").open("a") as file:
        file.write("candle,train,normal,../../x.JPG,\n")
    assert found(check(root), "error", "leaves")


@pytest.mark.parametrize("name", ["candle", "cashew"])
def test_visa_without_its_split(tmp_path, name):
    for c in ("candle", "cashew", name):
        picture(tmp_path / c / "Data/Images/Normal/0.JPG")
    assert found(check(tmp_path), "error", "1-class split")


def test_loco(tmp_path, monkeypatch):
    monkeypatch.setitem(mvtec_loco.COUNTS, "pushpins", (4, 2, 2, 3))
    monkeypatch.setitem(mvtec_loco.BENCHMARK.counts, "pushpins", (4, 2, 5))
    monkeypatch.setitem(mvtec_loco.VALIDATION, "pushpins", 1)
    base = loco_tree(tmp_path) / "pushpins"
    report = check(tmp_path)
    assert report.kind == "MVTec LOCO AD" and report.ok and report.rows == [("pushpins", 4, 2, 5, 0, 5)]
    assert found(report, "warning", "4 of 5 categories are missing") and len(found(report, "warning", "")) == 1
    shutil.rmtree(base / "ground_truth/logical_anomalies/001")
    picture(base / "ground_truth/structural_anomalies/000/000.png", 249, size=(5, 5))
    picture(base / "ground_truth/structural_anomalies/001/000.png", 77)
    (base / "test/structural_anomalies/002.png").rename(base / "test/logical_anomalies/002.png")
    (base / "validation/good/000.png").unlink()
    (tmp_path / "pins").mkdir()
    report = check(tmp_path)
    assert found(report, "error", "3 masks for 5 defective images")
    assert found(report, "error", "structural_anomalies/000/000.png is 5x5")
    assert found(report, "error", "77") and found(report, "error", "3 images of logical_anomalies")
    assert found(report, "warning", "0 validation images") and found(report, "warning", "'pins' is not a category")


def test_btad(tmp_path, monkeypatch):
    for product, image, mask in (("01", ".bmp", ".png"), ("02", ".png", ".png"), ("03", ".bmp", ".bmp")):
        monkeypatch.setitem(btad.COUNTS, product, (4, 2, 3))
        btad_tree(tmp_path, product, image=image, mask=mask)
    report = check(tmp_path)
    assert report.kind == "BTAD" and report.ok and report.rows == [(c, 4, 2, 3, 0, 3) for c in ("01", "02", "03")]
    (tmp_path / "02/ground_truth/ko/0001.png").rename(tmp_path / "02/ground_truth/ko/0007.png")
    (tmp_path / "03/train/ok/0003.bmp").unlink()
    (tmp_path / "01/test/ko/0000.bmp").write_bytes(b"BM" + bytes(20))
    report = check(tmp_path)
    assert found(report, "error", "2 masks for 3") and found(report, "error", "0007.png")
    assert found(report, "error", "03: 3/2/3 images") and found(report, "error", "01/test/ko/0000.bmp")


def test_a_mask_that_is_a_jpeg_is_told_whatever_its_name(tmp_path):
    mask = mvtec_tree(tmp_path) / "nut/ground_truth/scratch/000_mask.png"
    Image.open(mask).save(mask, "JPEG")
    assert found(check(tmp_path), "warning", "1 masks are saved with losses (JPEG): nut/ground_truth/scratch/000_mask.png")


def test_a_mask_that_leads_nowhere(tmp_path):
    mask = mvtec_tree(tmp_path) / "nut/ground_truth/scratch/000_mask.png"
    mask.unlink()
    mask.symlink_to(tmp_path / "gone.png")
    assert found(check(tmp_path), "error", "000_mask.png")


@pytest.mark.parametrize("kind", ["ok", "Good", "normal", "OKAY"])
def test_a_kind_of_defect_that_sounds_good(tmp_path, kind):
    picture(mvtec_tree(tmp_path) / "nut/test" / kind / "0.png")
    assert found(check(tmp_path), "warning", f"test/{kind} is counted as defective")


@pytest.mark.parametrize("name", ["<x>", "-"])
def test_a_category_that_gives_no_words(tmp_path, name):
    mvtec_tree(tmp_path, name)
    assert found(check(tmp_path), "error", f"category '{name}' gives no words")


@pytest.mark.parametrize("name", ["my..cat", "x\ny"])
def test_a_category_that_no_run_takes(tmp_path, name):
    mvtec_tree(mvtec_tree(tmp_path), name)
    report = check(tmp_path)
    assert found(report, "error", repr(name)) and not report.ok
    with pytest.raises(FsadError, match="Rename the folder"):
        datasets.categories("folder", tmp_path)
    with pytest.raises(FsadError, match="Rename the folder"):
        datasets.load("folder", name, tmp_path)
    assert len(datasets.load("folder", "nut", tmp_path)) == 10, "the others can be used"


@pytest.mark.parametrize("place", ["nut/train/good", "nut/test", "."])
def test_names_that_are_not_utf8(tmp_path, place):
    tree = mvtec_tree(tmp_path)
    odd = os.fsencode(tree / place) + b"/b\xe9" + (b"" if place == "." else b".png")
    if place == ".":
        os.mkdir(odd)
    else:
        with open(odd, "wb") as file:
            file.write(picture(tmp_path / "spare.png").read_bytes())
    report = check(tmp_path)
    assert not report.ok and found(report, "error", "Rename it") and "b\\udce9" in str(report).encode().decode()
    with pytest.raises(FsadError, match="Rename it"):
        datasets.load("folder", "nut", tmp_path)
    assert "not UTF-8" in str(check(os.fsdecode(b"/tmp/b\xe9")))


@pytest.mark.parametrize("path", ["~unknownuser/parts", "x" * 300, "/" + "y/" * 3000, "a\0b"])
def test_paths_that_cannot_be(path):
    report = check(path)
    assert found(report, "error", "cannot use the path") and len(str(report)) < 8000


def test_a_locked_folder_is_named_and_the_others_are_checked(tmp_path, lock):
    lock(mvtec_tree(mvtec_tree(tmp_path), "secret") / "secret")
    report = check(tmp_path)
    assert found(report, "error", "secret: cannot look into") and report.rows == [("nut", 5, 2, 3, 0, 3)]


def test_a_mask_for_two_images_is_an_error(tmp_path):
    picture(mvtec_tree(tmp_path) / "nut/test/scratch/001.jpg")
    assert found(check(tmp_path), "error", "001_mask.png would serve two images")
