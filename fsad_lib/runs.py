"""Runs: identity, folder, fingerprint, products and completion of one stage of one method."""

import os
from pathlib import Path


def project_root() -> Path:
    """The project folder: FSAD_HOME, else the nearest parent of the working directory holding
    both ``pyproject.toml`` and ``fsad_lib/``, else the working directory."""
    home = os.environ.get("FSAD_HOME")
    if home:
        return Path(home).expanduser().resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "fsad_lib").is_dir():
            return folder
    return here
