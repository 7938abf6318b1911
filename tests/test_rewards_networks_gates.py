"""DeQA-Score's marks and consent, and the safety gate on a tiny random classifier of the real class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowrl.rewards import Place, make
from flowrl.rewards.networks import deqa, nsfw
from flowrl.rewards.networks.rows import ROWS


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.evidence("arithmetic", "deqa")
def test_deqa_is_the_expected_mark_over_five_words() -> None:
    level = torch.full((5, 5), -1e4).fill_diagonal_(1e4)
    torch.testing.assert_close(deqa.expected_mark(level), torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]))
    torch.testing.assert_close(deqa.expected_mark(torch.zeros(1, 5)), torch.tensor([3.0]))
    chance = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]])
    torch.testing.assert_close(deqa.expected_mark(chance.log().half()), torch.tensor([4.0625]), rtol=1e-3, atol=0)


class Rater(nn.Module):
    """A stand-in for the remote class: it scores pictures by its own forward, and says only the expectation."""

    preferential_ids_ = (4, 2, 0, 1, 3)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, seen: Tensor) -> dict[str, Tensor]:
        words = torch.zeros(len(seen), 2, 6)
        words[:, -1, 4], words[:, -1, 3], words[:, 0] = seen, -seen, 9.0
        return {"logits": words}

    def score(self, pictures: list[Any]) -> Tensor:
        return self(torch.tensor([np.asarray(one).mean() / 255 for one in pictures]))["logits"].half().mean()


@pytest.mark.evidence("arithmetic", "deqa")
def test_deqa_reads_the_logits_that_the_models_own_score_looked_at() -> None:
    shown = images(3, 8, 8) // np.array([1, 2, 4], dtype=np.uint8)[:, None, None, None]
    rated = deqa.Deqa(Place(batch=2).house(Rater()), deqa.answered)
    bright = torch.from_numpy(shown).float().mean((1, 2, 3)) / 255
    zero = torch.zeros(3)
    wanted = deqa.expected_mark(torch.stack([bright, zero, zero, zero, -bright], 1))
    torch.testing.assert_close(rated(shown, [""] * 3, [{}] * 3), wanted, rtol=1e-4, atol=1e-4)


def test_deqa_runs_no_code_without_consent() -> None:
    with pytest.raises(ValueError, match=r"runs Python code from zhiyuanyou/DeQA-Score-Mix3 on this machine; .* deqa:trust"):
        make("deqa")
    with pytest.raises(ValueError, match=r"deqa:trust"):
        make("deqa:zhiyuanyou/DeQA-Score-Mix3")
    with pytest.raises(ValueError, match=r"its own code casts images to float16"):
        make("deqa:trust", place=Place(dtype="float32"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision transformer that tells normal from nsfw."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("nsfw")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8,
        id2label={0: "nsfw", 1: "Normal"}, label2id={"nsfw": 0, "Normal": 1}, initializer_range=1.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ViTForImageClassification(config).save_pretrained(path)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(path)
    return path


@pytest.mark.evidence("arithmetic", "nsfw")
def test_the_gate_is_the_probability_of_the_safe_class(classifier: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shown = images(4, 20, 30)
    model = transformers.AutoModelForImageClassification.from_pretrained(classifier)
    processor = transformers.AutoImageProcessor.from_pretrained(classifier)
    with torch.no_grad():
        wanted = model(**processor(images=list(shown), return_tensors="pt")).logits.softmax(1)[:, 1]
    gate = nsfw.nsfw(str(classifier), Place(batch=3))
    torch.testing.assert_close(gate(shown, [""] * 4, [{}] * 4), wanted, rtol=1e-4, atol=1e-6)
    middle = float(wanted.median()) + 1e-6
    hard = nsfw.nsfw(f"{classifier}@{middle}")(shown, [""] * 4, [{}] * 4)
    assert hard.tolist() == (wanted >= middle).float().tolist()
    assert 0 < hard.sum() < 4
    worst = gate(shown.reshape(2, 2, 20, 30, 3), [""] * 2, [{}] * 2)
    torch.testing.assert_close(worst, wanted.reshape(2, 2).amin(1), rtol=1e-4, atol=1e-6)


def test_a_gate_needs_one_safe_class_and_a_threshold_that_can_be_reached() -> None:
    assert nsfw.safe_class("m", {0: "porn", 1: "Neutral", 2: "drawings"}) == 1
    with pytest.raises(ValueError, match=r"the classes of m are cat, dog; exactly one must be called normal, safe, sfw or neutral"):
        nsfw.safe_class("m", {0: "cat", 1: "dog"})
    for bad in ("@0", "@1.5", "@high", "a/b@nan"):
        with pytest.raises(ValueError, match=r"write a probability above 0 after @"):
            nsfw.nsfw(bad)
    with pytest.raises(FileNotFoundError, match=r"could not fetch Falconsai/nsfw_image_detection"):
        make("nsfw")


def test_every_row_leads_to_a_factory_and_tells_of_itself() -> None:
    from flowrl.rewards.load import load

    for name, row in ROWS.items():
        assert callable(load(row.target, "reward")), name
        assert row.licence and row.range and row.hacks and row.source and row.weights > 0 and row.memory > 0, name
