"""Where the embedded models lie."""

from importlib.resources import files
from pathlib import Path


def asset(name: str) -> Path:
    """The folder or file `name` of the package data, e.g. "shapes-sd3".

    Raises: FileNotFoundError if flowrl is installed without it.
    """
    found = files("flowrl.assets").joinpath(name)
    if not isinstance(found, Path):
        raise FileNotFoundError(f"asset {name!r}: flowrl is imported from an archive; install it unpacked.")
    if not found.exists():
        have = sorted(p.name for p in found.parent.iterdir() if not p.name.startswith("_"))
        raise FileNotFoundError(f"asset {name!r} does not exist; there are {', '.join(have) or 'none'}.")
    return found
