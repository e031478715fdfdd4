"""A fixed sample of a category's test images, where judging all of them would take too long."""

import hashlib
from pathlib import Path

import pandas as pd

__all__ = ["limit_of", "sample"]


def limit_of(test_images: int | tuple[tuple[str, int], ...] | None, dataset: str) -> int | None:
    """A profile's ``test_images`` for one data set: a number for all, pairs for single ones, None: every image. Of a user's own folder every
    image is judged, unless a pair names it.

    >>> limit_of((("elpv", 128),), "elpv"), limit_of((("elpv", 128),), "minifab"), limit_of(20, "minifab")
    (128, None, 20)
    >>> limit_of(20, "folder"), limit_of((("folder", 20),), "folder")
    (None, 20)
    """
    if isinstance(test_images, tuple):
        return dict(test_images).get(dataset)
    return None if dataset == "folder" else test_images


def sample(test: pd.DataFrame, n: int | None) -> pd.DataFrame:
    """``n`` test images of one category, half of them good (rounded up), in an order that depends on the files' names alone; None: all.

    Example:
        >>> paths = [f"test/{kind}/{i}.png" for kind in ("good", "hole") for i in range(9)]
        >>> test = pd.DataFrame({"path": paths, "label": [0] * 9 + [1] * 9})
        >>> few = sample(test, 5)
        >>> few["label"].tolist(), few["path"].tolist() == sample(test[::-1], 5)["path"].tolist()
        ([0, 0, 0, 1, 1], True)
    """
    if n is None:
        return test

    def order(path: str) -> str:
        return hashlib.sha256("/".join(Path(path).parts[-2:]).encode()).hexdigest()

    test = test.assign(order=test["path"].map(order)).sort_values("order")
    good = test[test["label"] == 0][: (n + 1) // 2]
    return pd.concat([good, test[test["label"] != 0][: n - len(good)]]).drop(columns="order")
