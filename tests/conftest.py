"""What no test may leave behind for the next one in the same process, and what several need."""

import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def open_clip_registry():
    """open_clip's table of architectures is shared by the whole process; a rescan binds a new table to the same name, so it is put back by name."""
    factory = sys.modules.get("open_clip.factory")
    if factory is None:
        yield
        return
    configs, paths = dict(factory._MODEL_CONFIGS), list(factory._MODEL_CONFIG_PATHS)
    yield
    factory._MODEL_CONFIGS, factory._MODEL_CONFIG_PATHS[:] = configs, paths


@pytest.fixture
def lock(monkeypatch):
    """Makes a folder another user's: who runs the tests may be root, whom no permission stops."""
    locked, stat, iterdir = set(), Path.stat, Path.iterdir

    def refuse(path, folders):
        if locked & set(folders):
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", lambda self, **options: refuse(self, self.parents) or stat(self, **options))
    monkeypatch.setattr(Path, "iterdir", lambda self: refuse(self, (self, *self.parents)) or iterdir(self))
    return locked.add
