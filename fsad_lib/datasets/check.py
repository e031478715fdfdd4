"""Look at a folder of images and say what was found, what was expected and what to do.

`check(path)` recognises MVTec AD, MVTec LOCO, VisA and BTAD (numbers of images compared with the official ones), MiniFab, and
any folder in MVTec AD's layout. Every image is decoded in full, so truncated files are found before a run, not during one.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from fsad_lib.datasets import btad, folder, mvtec_ad, mvtec_loco, visa
from fsad_lib.datasets._common import absolute, is_image, list_folders, list_images, looking_into, printable
from fsad_lib.datasets.images import (
    _SIXTEEN_BIT,
    _opened,
    lossy_format,
    mask_array,
    mask_files,
    open_image,
    to_array,
)
from fsad_lib.errors import FsadError

_EXAMPLES = 3
SMALL = 32  # pixels a side; below it hardly a patch is left for a detector
_MOST = 0.8
"""The share of an image from which on a mask looks inverted."""
_HARMLESS = {
    "minifab.json",
    "license.txt",
    "readme.txt",
    "license",
    "readme.md",
    "readme",
    "thumbs.db",
    "desktop.ini",
    "license-dataset",
    "license.md",
}


@dataclass(frozen=True)
class Finding:
    """One observation. level "error": a run would fail or mislead; "warning": look at it; "note": good to know."""

    level: str
    found: str
    expected: str = ""
    do: str = ""

    def __str__(self) -> str:
        text = f"[{self.level}] {self.found}"
        if self.expected:
            text += f"\n    expected: {self.expected}"
        if self.do:
            text += f"\n    to do:    {self.do}"
        return text


@dataclass
class Report:
    """What `check` found; `print(report)` shows it. `ok` is False when any finding is an error."""

    path: Path
    kind: str = "unknown"
    rows: list[tuple[str, int, int, int, int, int]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing stands against a run: no finding is an error."""
        return not any(f.level == "error" for f in self.findings)

    def add(self, level: str, found: str, expected: str = "", do: str = "") -> None:
        """Add one :class:`Finding`."""
        self.findings.append(Finding(level, found, expected, do))

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.kind}"]
        if self.rows:
            head = ("category", "train good", "test good", "test defective", "test unlabelled", "masks")
            width = [max(len(str(r[i])) for r in [head, *self.rows]) for i in range(6)]
            lines += [
                "  "
                + "  ".join(
                    f"{v!s:>{w}}" if i else f"{v!s:<{w}}"
                    for i, (v, w) in enumerate(zip(r, width, strict=True))
                )
                for r in [head, *self.rows]
            ]
        lines += [str(f) for level in ("error", "warning", "note") for f in self.findings if f.level == level]
        errors, warnings = (sum(f.level == x for f in self.findings) for x in ("error", "warning"))
        lines.append(
            f"{'usable' if self.ok else 'NOT usable as it is'}: {errors} errors, {warnings} warnings"
        )
        return printable("\n".join(lines))


def _some(paths: list, root: Path) -> str:
    names = [
        str(p.relative_to(root)) if isinstance(p, Path) and p.is_relative_to(root) else str(p) for p in paths
    ]
    return ", ".join(names[:_EXAMPLES]) + (
        f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    )


def check(path: str | Path) -> Report:
    """Check the data set in `path`; never raises for bad data, only reports.

    >>> import tempfile
    >>> print(check(tempfile.mkdtemp() + "/nothing"))  # doctest: +ELLIPSIS
    /.../nothing: unknown
    [error] no such folder
        expected: a folder of images
        to do:    check the spelling and the working directory
    NOT usable as it is: 1 errors, 0 warnings
    """
    try:
        root = absolute(path)
    except FsadError as error:
        report = Report(Path(path))
        report.add("error", str(error))
        return report
    report = Report(root)
    if not root.is_dir():
        report.add(
            "error",
            "a file, not a folder" if root.exists() else "no such folder",
            "a folder of images",
            "check the spelling and the working directory",
        )
        return report
    try:
        _check(root, report)
    except FsadError as error:
        report.add("error", str(error))
    except OSError as error:
        name = error.filename or root
        report.add("error", f"cannot look into {name}: {error.strerror or error}", "a folder that can be read", "check its permissions and names")
    return report


def _check(root: Path, report: Report) -> None:
    folders = [p.name for p in list_folders(root)]
    layout = folder.category_folders(root)
    if (
        visa.split_file(root).exists()
        or sum((root / c / "Data" / "Images").is_dir() for c in visa.CATEGORIES) >= 2
    ):
        report.kind = "VisA, official 1-class split"
        _check_visa(root, report)
        return
    if mvtec_loco.is_layout(root):
        report.kind = "MVTec LOCO AD"
        _check_loco(root, report)
        return
    if btad.is_layout(root):
        report.kind = "BTAD"
        _check_btad(root, report)
        return
    if folder.train_folder(root):
        layout = {root.name or "root": root}
    if not layout:
        inner = [
            p
            for p in list_folders(root)
            if (p / "split_csv").is_dir() or any(map(folder.train_folder, list_folders(p)))
        ]
        hint = (
            f"check one of these instead: {_some(inner, root)}"
            if inner
            else "arrange the images like this.\n" + folder.TREE
        )
        loose = len(list_images(root))
        report.add(
            "error",
            f"no category: {len(folders)} folders ({', '.join(folders[:6])}), {loose} loose images",
            "folders with train/good inside, or a folder good",
            hint,
        )
        return
    names = set(layout)
    marked = [n for n, p in layout.items() if os.path.isfile(p / "minifab.json")]  # False in a folder that cannot be looked into
    known = names & set(mvtec_ad.CATEGORIES)
    is_mvtec = not marked and (len(known) >= 3 or (root.name in mvtec_ad.NAMES and bool(known)))
    report.kind = "MVTec AD" if is_mvtec else "MiniFab" if marked else "a folder in MVTec AD's layout"
    for name in sorted(layout):
        _check_category(layout[name], name, report, root)
    if is_mvtec:
        _compare(
            {r[0]: r[1:4] for r in report.rows},
            mvtec_ad.COUNTS,
            report,
            "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        )
        for row in report.rows:
            if row[0] in known and row[5] != row[3]:
                report.add(
                    "error",
                    f"{row[0]}: {row[5]} masks for {row[3]} defective images",
                    "one each",
                    "copy it again",
                )
    elif known:
        report.add(
            "note",
            f"{', '.join(sorted(known))}: named like a category of MVTec AD, checked as your own folder",
        )
    _check_strangers(root, layout, report)


def _compare(found: dict[str, tuple], official: dict[str, tuple], report: Report, source: str) -> None:
    for name in sorted(found):
        if name not in official:
            report.add(
                "warning",
                f"category {name!r} is not part of the data set",
                ", ".join(sorted(official)),
                "move it out",
            )
        elif tuple(found[name]) != tuple(official[name]):
            report.add(
                "error",
                f"{name}: {'/'.join(map(str, found[name]))} images (train good/test good/test defective)",
                "/".join(map(str, official[name])),
                f"this copy is broken or changed; get it again from {source}",
            )
    missing = sorted(official.keys() - found.keys())
    if missing:
        report.add(
            "warning",
            f"{len(missing)} of {len(official)} categories are missing: {', '.join(missing)}",
            "all, for the benchmark's mean",
            f"get them from {source}",
        )


def _check_visa(root: Path, report: Report) -> None:
    split = visa.read_split(root)  # a missing or broken file is reported by check()
    found = {}
    for name in sorted(split):
        rows = split[name]
        present = [r for r in rows if r[0].is_file()]
        counts = [
            sum(r[2] == s and r[3] == y for r in present) for s, y in (("train", 0), ("test", 0), ("test", 1))
        ]
        found[name] = tuple(counts)
        if not present:
            del found[name]
            continue
        report.rows.append((name, *counts, 0, sum(r[5] is not None and r[5].is_file() for r in present)))
        for what, paths in (
            ("images", [r[0] for r in rows]),
            ("masks", [r[5] for r in rows if r[5] is not None]),
        ):
            gone = [p for p in paths if not p.is_file()]
            if gone:
                report.add(
                    "error",
                    f"{name}: {len(gone)} {what} named in the split are missing: {_some(gone, root)}",
                    "every file of split_csv/1cls.csv",
                    "unpack VisA's archive again",
                )
        _check_files(root, name, report, [(p, s, y, m) for p, _, s, y, _, m in present], masks_required=True)
    _compare(found, visa.COUNTS, report, "https://github.com/amazon-science/spot-diff")


def _check_official(root: Path, name: str, rows: list[tuple], report: Report, source: str) -> None:
    """The row of a benchmark's category, its images decoded, and a mask asked for every defective image."""
    count = Counter((r[2], r[3]) for r in rows)
    masks = sum(r[5] is not None for r in rows)
    report.rows.append((name, count["train", 0], count["test", 0], count["test", 1], 0, masks))
    without = [r[0] for r in rows if r[3] == 1 and r[5] is None]
    if without:
        report.add(
            "error",
            f"{name}: {masks} masks for {count['test', 1]} defective images; none for {_some(without, root)}",
            "one each",
            f"get it again from {source}",
        )
    _check_files(root, name, report, [(r[0], r[2], r[3], r[5]) for r in rows])


def _check_loco(root: Path, report: Report) -> None:
    for category in list_folders(root):
        name = category.name
        if name not in mvtec_loco.COUNTS:
            report.add("warning", f"folder {name!r} is not a category of the data set", ", ".join(mvtec_loco.CATEGORIES), "move it out")
            continue
        rows = mvtec_loco.rows_of(category, name)
        _check_official(root, name, rows, report, mvtec_loco.SOURCE)
        for kind, n in zip(mvtec_loco.KINDS, mvtec_loco.COUNTS[name][2:]):
            if (found := sum(r[4] == kind for r in rows)) != n:
                report.add("error", f"{name}: {found} images of {kind}", str(n), f"get it again from {mvtec_loco.SOURCE}")
        held = len(list_images(category / "validation" / "good"))
        if held != mvtec_loco.VALIDATION[name]:
            report.add("warning", f"{name}: {held} validation images", str(mvtec_loco.VALIDATION[name]), "only needed for a validation split")
        try:
            for row in rows:
                if row[5] is not None:
                    mvtec_loco.regions(row[5])
        except FsadError as error:
            report.add("error", f"{name}: {error}", do="sPRO cannot be computed until then")
    _compare(
        {r[0]: r[1:4] for r in report.rows}, mvtec_loco.BENCHMARK.counts, report, mvtec_loco.SOURCE
    )


def _check_btad(root: Path, report: Report) -> None:
    for category in list_folders(root):
        name = category.name
        if name not in btad.COUNTS:
            report.add("warning", f"folder {name!r} is not a product of the data set", ", ".join(btad.CATEGORIES), "move it out")
            continue
        rows = btad.rows_of(category, name)
        _check_official(root, name, rows, report, btad.SOURCE)
        used = {r[5] for r in rows}
        orphans = [p for p in list_images(category / "ground_truth" / "ko") if p not in used]
        if orphans:
            report.add(
                "error", f"{name}: {len(orphans)} masks without an image: {_some(orphans, root)}", "an image test/ko/<name> for each",
                "rename or remove them",
            )  # fmt: skip
    _compare({r[0]: r[1:4] for r in report.rows}, btad.COUNTS, report, btad.SOURCE)


def _check_category(category: Path, name: str, report: Report, root: Path) -> None:
    from fsad_lib.datasets import class_name
    from fsad_lib.runs import check_name

    try:
        class_name("folder", check_name("category", name))
    except FsadError as error:
        report.add("error", str(error), do="rename the folder; no run takes that name")
    try:
        with looking_into(category):
            rows = folder.rows_of(category, name)
    except FsadError as error:
        found, _, rest = str(error).partition("\n")
        report.add("error", f"{name}: {found}", do=rest.replace("\n", " ").strip())
        return
    count = Counter((r[2], r[3]) for r in rows)
    masks = sum(r[5] is not None for r in rows)
    report.rows.append(
        (name, count["train", 0], count["test", 0], count["test", 1], count["test", -1], masks)
    )
    if count["train", 0] < 16:
        report.add(
            "note",
            f"{name}: {count['train', 0]} normal image{'s allow 1 to' if count['train', 0] > 1 else ' allows'} {count['train', 0]} shot{'s' if count['train', 0] > 1 else ''}; "
            "2 to 4 good images give no reliable threshold, only a ranking",
        )
    if count["test", 1] and not count["test", 0]:
        kinds = ", ".join(sorted({f"test/{r[4]}" for r in rows if r[3] == 1}))
        report.add(
            "note", f"{name}: every sorted test image counts as defective ({kinds}) and none as good, so that nothing can be measured",
            "test/good for images without a defect; unsorted ones directly in test, or in test/unknown",
        )  # fmt: skip
    for kind in sorted({r[4] for r in rows if r[4] != "good" and r[4].lower() in ("good", "ok", "normal", "okay")}):
        report.add(
            "warning",
            f"{name}: test/{kind} is counted as defective",
            "test/good for images without a defect",
            "rename it to good, if its images are",
        )
    if not count["test", 0] or not count["test", 1]:
        report.add(
            "note",
            f"{name}: {count['test', 0]} good and {count['test', 1]} defective test images",
            do="AUROC and the like need both; scores, heatmaps and the contact sheet do not",
        )
    bad = [r for r in rows if r[3] == 1]
    without = [r[0] for r in bad if r[5] is None]
    if masks and without:
        report.add(
            "warning",
            f"{name}: {len(without)} of {len(bad)} defective images have no mask: {_some(without, root)}",
            "ground_truth/<kind>/<name>_mask.png for each, or none at all",
            "pixel metrics are left out until then",
        )
    elif bad and not masks:
        report.add("note", f"{name}: no masks, so image-level metrics only")
    used = {r[5] for r in rows}
    kinds = {r[4] for r in bad}
    for kind in list_folders(category / "ground_truth"):
        orphans = [p for p in list_images(kind) if p not in used]
        if kind.name == "good":
            orphans = [p for p in orphans if _nonzero(p)]
            if orphans:
                report.add(
                    "warning",
                    f"{name}: masks that mark defects in good images: {_some(orphans, root)}",
                    "none",
                    "move those images out of good, or remove the masks",
                )
        elif orphans:
            reason = "" if kind.name in kinds else f" (there is no folder test/{kind.name})"
            report.add(
                "error",
                f"{name}: {len(orphans)} masks without an image{reason}: {_some(orphans, root)}",
                f"an image test/{kind.name}/<name> for each <name>_mask",
                "rename or remove them",
            )
    _check_files(root, name, report, [(r[0], r[2], r[3], r[5]) for r in rows], empty="error")


def _nonzero(mask: Path) -> bool:
    try:
        return bool(mask_array(mask).any())
    except FsadError:
        return True


def _check_files(
    root: Path,
    name: str,
    report: Report,
    rows: list[tuple[Path, str, int, Path | None]],
    masks_required: bool = False,
    empty: str = "warning",
) -> None:
    """Decode every image and mask of a category. empty: how bad an empty mask is; a run refuses one among a user's own."""
    sizes, modes = Counter(), Counter()
    digests: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    turned, dark, tiny, lossy, several, brightest = [], [], [], [], [], 0.0
    for path, split, label, mask in rows:
        try:
            image = open_image(path)
            brightest = max(brightest, float(to_array(image, path).max()))
        except FsadError as error:
            report.add("error", f"{name}: {error}")
            continue
        sizes[image.size] += 1
        modes[image.mode] += 1
        digests[sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()].append(
            (split, path)
        )
        if _orientation(path) != 1:
            turned.append(path)
        if _has_further_pictures(path):
            several.append(path)
        if image.mode in _SIXTEEN_BIT and np.asarray(image).max() < 4096:  # 12 bits, as many cameras give
            dark.append(path)
        if min(image.size) < SMALL:
            tiny.append(path)
        if mask is not None:
            for file in mask_files(mask):
                if _check_mask(root, name, report, image.size, path, file, empty if label == 1 else "warning"):
                    lossy.append(file)
        elif masks_required and label == 1:
            report.add(
                "error",
                f"{name}: the split names no mask for {path}",
                "a mask for every anomaly",
                "copy it again",
            )
    _report_twins(root, name, report, digests)
    _report_forms(name, report, sizes, modes)
    if turned:
        report.add(
            "note",
            f"{name}: {len(turned)} images carry an EXIF rotation, which is applied: {_some(turned, root)}",
        )
    if several:
        report.add(
            "warning",
            f"{name}: {len(several)} files hold more than one picture, of which only the first is read: {_some(several, root)}",
            "one picture a file",
            "save each page or frame that was meant as a file of its own",
        )
    if dark:
        report.add(
            "warning",
            f"{name}: {len(dark)} 16-bit images use less than 12 bits, so they read nearly black: "
            f"{_some(dark, root)}",
            "values that fill 0..65535",
            "stretch them, all by the same factor",
        )
    if sizes and not dark and brightest < 0.1:  # Pillow reads 16-bit colour as 8 bits, so that 12 bits of it end at 16 of 255
        report.add(
            "warning", f"{name}: no pixel of any image is brighter than {round(255 * brightest)} of 255", "images that are not black",
            "if they hold 12 bits in 16-bit colour files, stretch them, all by the same factor",
        )  # fmt: skip
    if lossy:
        kinds = ", ".join(sorted({lossy_format(p) for p in lossy}))
        report.add(
            "warning",
            f"{name}: {len(lossy)} masks are saved with losses ({kinds}): {_some(lossy, root)}",
            "PNG, where every value above zero is defect",
            "only their values above half count; save them again as PNG from the original",
        )
    if tiny:
        report.add("warning", f"{name}: {len(tiny)} images are smaller than {SMALL} pixels: {_some(tiny, root)}")


def _report_twins(root: Path, name: str, report: Report, digests: dict[str, list[tuple[str, Path]]]) -> None:
    """Pictures that are there more than once: SHA-256 of the pixels -> (split, path) of each file."""
    twins = [v for v in digests.values() if len(v) > 1]
    leaks = [v for v in twins if len({s for s, _ in v}) > 1]
    if leaks:
        pairs = [" = ".join(str(p.relative_to(root)) for _, p in v[:2]) for v in leaks]
        report.add(
            "warning",
            f"{name}: {len(leaks)} pictures are both in train and in test: {_some(pairs, root)}",
            "no test image among the shots",
            "remove them from one side",
        )
    rest = [v for v in twins if v not in leaks]
    if rest:
        report.add(
            "warning",
            f"{name}: {len(rest)} pictures are there more than once: "
            f"{_some([' = '.join(str(p.relative_to(root)) for _, p in v[:2]) for v in rest], root)}",
            "each picture once",
            "remove the copies",
        )


def _report_forms(name: str, report: Report, sizes: Counter, modes: Counter) -> None:
    """Sizes (width, height) and Pillow's modes, with their numbers, that differ or will be changed on reading."""
    if len(sizes) > 1:
        top = ", ".join(f"{w}x{h} ({n})" for (w, h), n in sizes.most_common(4))
        report.add(
            "note", f"{name}: {len(sizes)} sizes: {top}", do="each is resized to the square on its own"
        )
    elif any(w != h for w, h in sizes):
        w, h = next(iter(sizes))
        report.add(
            "note", f"{name}: {w}x{h} is not square; images are squeezed to the square, nothing is cut off"
        )
    single = sorted(m for m in modes if m in ("L", "1", *_SIXTEEN_BIT, "F"))
    grey = sum(modes[m] for m in single)
    if grey:
        report.add(
            "note",
            f"{name}: {grey} single-channel images ({', '.join(single)}); grey becomes three channels",
        )
    if grey and grey < sum(modes.values()):
        report.add(
            "warning",
            f"{name}: grey and colour images are mixed ({dict(modes)})",
            "one kind",
            "a detector may tell them apart by colour alone; convert them alike",
        )


def _orientation(path: Path) -> int:
    with _opened(path) as image:
        return image.getexif().get(0x0112, 1)


def _has_further_pictures(path: Path) -> bool:
    """Pages of a TIFF, frames of an animation; not a camera's preview in a JPEG."""
    with _opened(path) as image:
        try:
            return image.format != "MPO" and getattr(image, "n_frames", 1) > 1
        except Exception:  # Pillow's readers raise anything for a damaged further picture; the first one is what is read
            return True


def _check_mask(root: Path, name: str, report: Report, size: tuple[int, int], path: Path, mask: Path, empty: str) -> bool:
    """Report what is wrong with a mask; True when its format loses detail."""
    try:
        m = mask_array(mask)
    except FsadError as error:
        report.add("error", f"{name}: {error}")
        return False
    if m.shape != size[::-1]:
        report.add(
            "error",
            f"{name}: mask {mask.relative_to(root)} is {m.shape[1]}x{m.shape[0]}",
            f"{size[0]}x{size[1]}, the size of {path.relative_to(root)}",
            "draw it on the image's own pixels",
        )
    elif not m.any():
        report.add(
            empty,
            f"{name}: mask {mask.relative_to(root)} is empty",
            "the defect's pixels above zero",
            "redraw or remove it, or move the image to test/good",
        )
    elif m.all():
        report.add(
            "warning",
            f"{name}: mask {mask.relative_to(root)} covers the whole image",
            "zero outside the defect",
            "is it inverted, or saved on white?",
        )
    elif (share := m.mean()) > _MOST:
        report.add(
            "warning",
            f"{name}: mask {mask.relative_to(root)} covers {100 * share:.0f} % of the image",
            "zero outside the defect",
            "is it inverted? If the defect is that large, all is well",
        )
    return bool(lossy_format(mask))


def _check_strangers(root: Path, layout: dict[str, Path], report: Report) -> None:
    """Files that will be ignored although they may have been meant: other formats, images in the wrong place."""
    strangers, misplaced = [], []
    for category in layout.values():
        for path in sorted(category.rglob("*")):
            parts = path.relative_to(category).parts
            if not path.is_file() or any(p.startswith(".") for p in parts) or path.name.lower() in _HARMLESS:
                continue
            simple = not (category / "train" / "good").is_dir()
            if not is_image(path):
                strangers.append(path)
            elif not _has_place(parts, simple, (category / "test").is_dir()):
                misplaced.append(path)
    if strangers:
        report.add(
            "warning",
            f"{len(strangers)} files are not images and are ignored: {_some(strangers, root)}",
            "PNG, JPEG, TIFF, BMP, WebP, PGM, GIF",
            "convert them if they were meant",
        )
    if misplaced:
        report.add(
            "warning",
            f"{len(misplaced)} images lie where nothing is read: {_some(misplaced, root)}",
            "train/good/*, test/*, test/<kind>/*, ground_truth/<kind>/*",
            "move them",
        )


def _has_place(parts: tuple[str, ...], simple: bool, has_test: bool) -> bool:
    depth = len(parts)
    if parts[0] == "test":
        return depth in (2, 3)
    if parts[0] == "ground_truth":
        return depth == 3
    if simple:
        return depth in (1, 2) if not has_test else depth == 2 and parts[0] == "good"
    return depth == 3 and parts[:2] == ("train", "good")
