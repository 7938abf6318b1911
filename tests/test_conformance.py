"""Every family against its own pipeline: one table, tiny random models of the real classes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path

import families
import numpy as np
import pytest
from families.case import Case
from PIL import Image

from flowrl.conformance import CHECKS, Subject, subject_of
from flowrl.conformance.subject import run
from flowrl.models import load_policy
from flowrl.recipe import PolicySpec

# the first test of a module builds and draws all cases that are asked for
pytestmark = pytest.mark.timeout(1500)
MODULES = [importlib.import_module(f"families.{m.name}") for m in pkgutil.iter_modules(families.__path__) if m.name != "case"]
CASES: dict[str, Case] = {case.name: case for module in MODULES for case in getattr(module, "CASES", [])}


def subject(case: Case, folder: Path, dtype: str = "float32") -> Subject:
    """The case's pipeline saved into a folder, with pictures for its prompts."""
    case.make().save_pretrained(folder / "model")
    images = pictures(case, folder)
    spec = PolicySpec(model=str(folder / "model"), dtype=dtype, steps=3, **case.spec)  # pyright: ignore[reportArgumentType]
    (folder / "work").mkdir()
    return Subject(folder / "model", load_policy, spec, case.prompts, images, folder / "work", saving=case.saving)


def pictures(case: Case, folder: Path) -> list[tuple[Path, ...]]:
    """Files of soft random colours, those each prompt comes with."""
    draw, files = np.random.default_rng(0), []
    for prompt, count in enumerate((case.images, case.images + case.more)):
        height, width = case.size[::-1] if prompt and case.turned else case.size
        for n in range(count):
            coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"image{prompt}-{n}.png")
        files.append(tuple(folder / f"image{prompt}-{n}.png" for n in range(count)))
    return files


@pytest.fixture(scope="module")
def subjects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Subject]:
    """The subjects of the cases that are asked for; their pipelines are run by one process."""
    params = [getattr(getattr(item, "callspec", None), "params", {}) for item in request.session.items]
    asked = {given["case"] for given in params if "case" in given and "check" in given}
    made = {name: subject(CASES[name], tmp_path_factory.mktemp(name)) for name in CASES if name in asked}
    run([job for one in made.values() for job in one.jobs], tmp_path_factory.mktemp("plain"))
    return made


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES)
def test_a_family_is_what_its_pipeline_is(subjects: Mapping[str, Subject], case: str, check: str) -> None:
    found = list(CHECKS[check](subjects[case]))
    wrong = [f"{f.check}: {f.measured} above {f.limit}; {f.said}" for f in found if not f.passed]
    assert not wrong, "\n".join(wrong)
    assert found or check == "schedule"


@pytest.mark.parametrize("check", ["schedule", "pipeline", "ratio", "adapter"])
def test_half_precision_is_near_and_replayed_exactly(halved: Subject, check: str) -> None:
    wrong = [f"{f.check}: {f.measured} above {f.limit}; {f.said}" for f in CHECKS[check](halved) if not f.passed]
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(CASES["sd3"], tmp_path_factory.mktemp("half"), "bfloat16")


def test_a_model_in_a_relative_folder_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that draws its pipeline stands elsewhere."""
    CASES["sd3"].make().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    one = subject_of(PolicySpec(model="model", dtype="float32", **CASES["sd3"].spec), tmp_path / "work")
    found = [finding for check in ("weights", "pipeline") for finding in CHECKS[check](one)]
    assert found[0].passed and all(f.passed for f in found), found
