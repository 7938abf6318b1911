"""What is packaged is what is there; links point home; layers import downwards only; importing is cheap."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()}
DATA = (".json", ".yaml", ".txt")
LINKS = {"samplers": "../samplers", "rewards": "../rewards", "kernels": "../kernels/ops"}
# Below recipes, a reward is known by these only.
REWARD_TYPES = {"Reward", "RewardError", "Rule", "Samples", "Scores", "State", "pictures", "ruled", "total"}

# Modules of rewards that know nothing of any reward.
BASE = (["base"], ["pictures"], ["videos"], ["pairs", "rates"])

# Group -> groups it may import besides itself. A module that is not named here is part of the loop.
LAYERS: dict[str, set[str]] = {
    "kernels": set(),
    "samplers": {"kernels"},
    "base": set(),
    "rewards": {"base"},
    "recipe": set(),
    "evaluate": set(),
    "shapes": {"evaluate"},
    "shapes_video": {"evaluate", "shapes"},
    "types": {"samplers", "base"},
    "footprint": set(),
    "said": set(),
    "models": {"said", "types", "samplers", "recipe", "base", "footprint"},
    "objectives": {"types", "samplers", "kernels"},
    "advantage": {"types", "samplers", "base"},
    "methods": {"objectives", "advantage", "types", "samplers"},
    "loop": {"methods", "objectives", "advantage", "types", "samplers", "kernels", "base", "recipe", "evaluate"},
    "drawing": {"samplers"},
    "report": {"loop"},
    "vote": {"loop", "evaluate", "base", "rewards"},
    "export": {"said", "loop", "models", "recipe", "types"},
    "inference": {"samplers", "base", "models"},
    "conformance": {"said", "loop", "objectives", "types", "samplers", "kernels", "models", "recipe", "export"},
    "loading": {"models", "recipe", "conformance"},
    "choice": {"inference", "samplers", "base", "models", "recipe", "export", "loading"},
    "sample": {"said", "loop", "models", "recipe", "inference", "choice"},
    "memory": {"footprint", "models", "recipe", "base", "rewards"},
}
_ALL = set(LAYERS)
LAYERS["recipes"] = {*_ALL, "rewards"}
LAYERS["cli"] = {*_ALL, "recipes", "root"}
LAYERS["root"] = {*_ALL, "recipes", "cli"}


def sources() -> Iterator[tuple[str, Path]]:
    """Module name and file of everything that is packaged."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "flowrl" and parts[0] in LINKS:
                continue
            yield ".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)]), path


@cache
def modules() -> frozenset[str]:
    return frozenset(name for name, _ in sources())


def imports(name: str, path: Path) -> Iterator[tuple[str, str]]:
    """(module, name taken from it) of every import statement, wherever it stands; relative ones resolved."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield (whole, "") if whole in modules() else (module, alias.name)


def group(module: str, name: str = "") -> str:
    parts = module.split(".")
    if len(parts) == 1 or parts[1] == "__main__":
        return "root"
    if parts[1] == "rewards":
        return "base" if parts[2:] in BASE or (len(parts) == 2 and name in REWARD_TYPES) else "rewards"
    return parts[1] if parts[1] in LAYERS else "loop"


def python(code: str, *args: str, cwd: Path = ROOT) -> str:
    """Output of a fresh interpreter that finds the same flowrl as this one."""
    import flowrl

    environment = {**os.environ, "PYTHONPATH": str(Path(flowrl.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_folder_of_python_files_is_a_listed_package():
    found = {name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in sources()}
    assert sorted(SETUPTOOLS["packages"]) == sorted(found)


def test_every_listed_package_has_an_init_file():
    missing = [name for name in SETUPTOOLS["packages"] if not (_folder(name) / "__init__.py").is_file()]
    assert missing == []


def _folder(package: str) -> Path:
    if package in FOLDERS:
        return FOLDERS[package]
    above, _, last = package.rpartition(".")
    return _folder(above) / last


@pytest.mark.parametrize("link", LINKS)
def test_links_point_home(link: str):
    path = ROOT / "flowrl" / link
    # git without core.symlinks writes the target into a plain file
    target = os.readlink(path) if path.is_symlink() else path.read_text(encoding="utf-8").strip()
    assert target == LINKS[link]
    assert (path.parent / target).resolve() == FOLDERS[f"flowrl.{link}"]


def test_the_folder_kernels_does_not_shadow_the_package_of_that_name(tmp_path: Path):
    assert not (ROOT / "kernels" / "__init__.py").exists()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("whose = 'hub'\n")
    found = python("import sys; sys.path[:0] = sys.argv[1:]; import kernels; print(kernels.whose)", str(ROOT), str(tmp_path))
    assert found.strip() == "hub"


def test_layers_import_downwards_only():
    upwards = [
        f"{name} imports {module}{':' if taken else ''}{taken}"
        for name, path in sources()
        for module, taken in imports(name, path)
        if module.split(".")[0] == "flowrl"
        and group(name) != group(module, taken)
        and group(module, taken) not in LAYERS[group(name)]
        and not (group(name) == "rewards" and module.startswith("flowrl.rewards"))
        and module != "flowrl.assets"
    ]
    assert upwards == []


def test_samplers_need_torch_only():
    allowed = {*sys.stdlib_module_names, "torch", "flowrl"}
    found = {
        f"{name} imports {module}"
        for name, path in sources()
        if group(name) == "samplers"
        for module, _ in imports(name, path)
        if module.split(".")[0] not in allowed
    }
    assert found == set()


@pytest.mark.ci
def test_importing_samplers_loads_no_other_library():
    libraries = (
        "diffusers",
        "transformers",
        "peft",
        "pydantic",
        "typer",
        "yaml",
        "PIL",
        "flowrl.methods",
        "flowrl.models",
        "flowrl.rewards",
    )
    code = "import sys, flowrl.samplers; print([name for name in sys.argv[1:] if name in sys.modules])"
    before = python("import sys, torch; print([name for name in sys.argv[1:] if name in sys.modules])", *libraries)
    assert python(code, *libraries) == before


def test_importing_flowrl_is_cheap():
    # seconds of the processor, which a busy machine does not stretch much
    code = (
        "import sys, time; start = time.process_time(); import flowrl; print(time.process_time() - start);"
        "heavy = ('torch', 'numpy', 'diffusers', 'transformers', 'pydantic', 'typer', 'rich', 'yaml');"
        "print([name for name in heavy if name in sys.modules])"
    )
    runs = [python(code).splitlines() for _ in range(3)]
    assert {run[1] for run in runs} == {"[]"}
    assert min(float(run[0]) for run in runs) < 0.1


def test_train_is_the_function_and_no_module_can_hide_it():
    assert python("import flowrl.recipes.run\nfrom flowrl import train\nprint(callable(train))").split() == ["True"]
    assert not (ROOT / "flowrl" / "train.py").exists()


def test_unknown_names_of_the_package_are_attribute_errors():
    import flowrl

    assert {"train", "load_policy", "__version__"} <= set(dir(flowrl))
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        _ = flowrl.tarin


def checkout(place: Path, links: str) -> Path:
    """A copy of what a clone holds, with the links as links, as text files or left out."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", *(LINKS if links != "kept" else ()))
    shutil.copytree(ROOT / "flowrl", place / "flowrl", symlinks=True, ignore=ignore)
    for folder in ("samplers", "rewards", "kernels", "assets"):
        shutil.copytree(ROOT / folder, place / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, place / file)
    if links == "text":
        for link, target in LINKS.items():
            (place / "flowrl" / link).write_text(target, encoding="utf-8")
    # what running from the checkout leaves behind
    (place / "assets" / "__pycache__").mkdir()
    (place / "assets" / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"old")
    return place


@cache
def wheel(place: Path, links: str) -> dict[str, bytes]:
    """Files of the wheel that setuptools builds, and their contents."""
    source = checkout(place / links, links)
    (place / f"{links}-out").mkdir()
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    name = python(code, str(place / f"{links}-out"), cwd=source).splitlines()[-1]
    with zipfile.ZipFile(place / f"{links}-out" / name) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        return {name: archive.read(name) for name in names}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


def test_the_wheel_holds_every_module_and_asset_once(place: Path):
    found = wheel(place, "kept")
    expected = {_inside(name, path) for name, path in sources()}
    expected |= {f"flowrl/assets/{path.relative_to(ROOT / 'assets').as_posix()}" for path in _files(ROOT / "assets")}
    expected |= {
        path.relative_to(ROOT).as_posix() for path in _files(ROOT / "flowrl") if path.suffix != ".py" and path.name not in LINKS
    }
    # data of the folders that lie beside the package
    data = [path for link, target in LINKS.items() for path in _files(ROOT / target.removeprefix("../")) if path.suffix in DATA]
    expected |= {"flowrl/" + path.relative_to(ROOT).as_posix() for path in data}
    metadata = {name for name in found if ".dist-info/" in name}
    assert sorted(set(found) - metadata) == sorted(expected)


@pytest.mark.parametrize("links", ["text", "missing"])
def test_the_wheel_is_the_same_whatever_git_made_of_the_links(place: Path, links: str):
    assert wheel(place, links) == wheel(place, "kept")


def _inside(name: str, path: Path) -> str:
    return name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts and not _linked(path))


def _linked(path: Path) -> bool:
    return any(ROOT / "flowrl" / link in path.parents for link in LINKS)
