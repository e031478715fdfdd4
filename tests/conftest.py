"""What no test may leave behind for the next one in the same process."""

import sys

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
