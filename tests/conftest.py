"""Hygiene for every test: no network, one thread, and memory that nobody wrote to is NaN."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from evidence import Recorder, gathered

# Before anything imports torch or the hub's client; children inherit them.
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("COLUMNS", "100")  # width of tables that tests read


def pytest_report_header() -> str:
    import flowrl

    return f"flowrl {flowrl.__version__} from {Path(flowrl.__file__).parent}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--evidence", type=Path, metavar="FOLDER", help="write which tests showed what of methods and rewards")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.evidence is not None:
        config.pluginmanager.register(Recorder(config.option.evidence.absolute()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A claim for a name that does not exist stops the run here."""
    gathered(items)


@pytest.fixture(autouse=True)
def _hygiene() -> Iterator[None]:
    """Each test finds torch with one thread, poisoned memory, no leftover default dtype or device; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    torch.set_num_threads(1)
    before = torch.get_default_dtype()
    deterministic, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # With deterministic algorithms on, torch.empty is filled with NaN (the largest value for integers).
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.set_default_dtype(before)
