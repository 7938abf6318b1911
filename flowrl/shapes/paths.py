"""Where the embedded models lie."""

from importlib.resources import files
from pathlib import Path


def asset(name: str) -> Path:
    """The folder or file `name` of the package data, e.g. "shapes-sd3"; in a checkout that is not installed, of its folder assets/.

    Raises: FileNotFoundError if it is not there.
    """
    try:
        folder = Path(str(files("flowrl.assets")))
    except ModuleNotFoundError:
        folder = Path(__file__).resolve().parents[2] / "assets"
    if not (folder / name).exists():
        raise FileNotFoundError(
            f"the embedded asset {name!r} is not in this installation ({folder / name} is missing); reinstall flowrl."
        )
    return folder / name
