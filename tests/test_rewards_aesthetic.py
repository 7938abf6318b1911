"""Aesthetic predictors: LAION's head on LAION's embeddings, the whole on tiny models of the real classes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tiny_encoders as tiny
import torch
import transformers
from outside import SHARED, needs

from flowrl import rewards
from flowrl.rewards import Place
from flowrl.rewards.contrastive import aesthetic as module
from flowrl.rewards.contrastive.aesthetic import HEADS, Aesthetic, Head, aesthetic, head

WEIGHTS = SHARED / "weights" / "aesthetic"
real = needs("weights/aesthetic")
LAION = WEIGHTS / "laion_v2_sac+logos+ava1-l14-linearMSE.pth"
# rewards.md 1.1: ratings 0 to 9
SCORES = [1.655, 2.359, 3.070, 3.672, 4.238, 4.701, 5.073, 5.365, 5.577, 5.747]
FOLDERS = {"v2": "clip-vit-large-patch14", "v1": "clip-vit-large-patch14", "v2.5": "siglip-so400m-patch14-384"}
FILES = {"v2": "sac+logos+ava1-l14-linearMSE.pth", "v1": "sa_0_4_vit_l_14_linear.pth", "v2.5": "aesthetic_predictor_v2_5.pth"}


def embeddings() -> torch.Tensor:
    files = [WEIGHTS / "laion_v1_embeddings" / f"vit_l_14_rating{rating}.npy" for rating in range(10)]
    return torch.from_numpy(np.concatenate([np.load(file) for file in files]))


@real
@pytest.mark.evidence("arithmetic", "aesthetic")
def test_laions_head_rates_laions_embeddings_as_recorded() -> None:
    found = head(HEADS["v2"], LAION)(embeddings())[:, 0]
    assert found.tolist() == pytest.approx(SCORES, abs=6e-4)
    assert hashlib.sha256(LAION.read_bytes()).hexdigest() == HEADS["v2"].sha256


@real
def test_laions_head_is_affine() -> None:
    collapsed = np.load(WEIGHTS / "laion_v2_collapsed_affine.npz")
    weight, bias = (torch.from_numpy(collapsed[name]) for name in ("weight", "bias"))
    x = torch.randn(50, 768, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(head(HEADS["v2"], LAION).double()(x)[:, 0], x @ weight + bias, rtol=1e-9, atol=1e-9)
    assert float(weight.norm()) == pytest.approx(17.9956, abs=1e-3) and float(bias) == pytest.approx(5.2366, abs=1e-4)


def states(variant: str, width: int) -> tuple[Head, dict[str, torch.Tensor]]:
    """A head of the published layers' names on narrow features, and random weights for it."""
    kind = HEADS[variant]._replace(widths=(width, 1) if variant == "v1" else (width, 12, 6, 5, 4, 1), sha256=None)
    random = torch.Generator().manual_seed(4)
    held = {}
    for name, (wide, narrow) in zip(kind.layers, zip(kind.widths[:-1], kind.widths[1:], strict=True), strict=True):
        held |= {f"{name}weight": torch.randn(narrow, wide, generator=random), f"{name}bias": torch.randn(narrow, generator=random)}
    return kind, held


def layered(variant: str, held: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for name in HEADS[variant].layers:
        x = x @ held[f"{name}weight"].double().T + held[f"{name}bias"].double()
    return x[:, 0]


@pytest.fixture
def made(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str, dict[str, torch.Tensor]]:
    variant: str = request.param
    (tiny.siglip if variant == "v2.5" else tiny.clip)(tmp_path / FOLDERS[variant])
    kind, held = states(variant, 16 if variant == "v2.5" else tiny.DIM)
    # stored as published: v2.5 in half precision
    torch.save({key: value.bfloat16() if variant == "v2.5" else value for key, value in held.items()}, tmp_path / FILES[variant])
    monkeypatch.setitem(module.HEADS, variant, kind)
    return variant, f"{variant}@{tmp_path}", held


@pytest.mark.evidence("arithmetic", "aesthetic")
@pytest.mark.parametrize("made", HEADS, indirect=True)
def test_a_score_is_the_head_of_the_unit_feature(made: tuple[str, str, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    variant, spec, held = made
    images = tiny.pictures(3)
    with torch.no_grad():
        if variant == "v2.5":
            model = transformers.SiglipModel.from_pretrained(tmp_path / FOLDERS[variant]).eval()
            features = model.vision_model(pixel_values=tiny.pixel_values(images, "Siglip")).pooler_output
            held = {key: value.bfloat16() for key, value in held.items()}
        else:
            model = transformers.CLIPModel.from_pretrained(tmp_path / FOLDERS[variant]).eval()
            features = model.get_image_features(pixel_values=tiny.pixel_values(images)).pooler_output
    expected = layered(variant, held, torch.nn.functional.normalize(features.double(), dim=-1))
    found = aesthetic(spec, Place(batch=2))(images, [""] * 3, [{}] * 3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 1e-2 and found.dtype == torch.float32
    video = images[:, None].repeat(2, 1)
    video[:, 1] = images[::-1]
    torch.testing.assert_close(aesthetic(spec)(video, [""] * 3, [{}] * 3), (found + found.flip(0)) / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("made", ["v2"], indirect=True)
def test_the_gradient_of_taste_is_its_slope(made: tuple[str, str, dict[str, torch.Tensor]]) -> None:
    scorer = aesthetic(made[1])
    images = (torch.from_numpy(tiny.pictures(2)).float() / 255).clamp(0.1, 0.9).requires_grad_()
    score = scorer.with_graph(images, ["", ""], [{}] * 2)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    norm = gradient.flatten(1).norm(dim=1)
    step = 1e-2 * gradient / norm.view(-1, 1, 1, 1)
    with torch.no_grad():
        risen = scorer.with_graph(images + step, ["", ""], [{}] * 2) - scorer.with_graph(images - step, ["", ""], [{}] * 2)
    torch.testing.assert_close(risen, 2e-2 * norm, rtol=0.05, atol=1e-5)
    assert isinstance(rewards.make(f"aesthetic:{made[1]}"), rewards.DifferentiableReward)


@pytest.mark.parametrize("made", ["v2"], indirect=True)
def test_the_head_stays_in_float32(made: tuple[str, str, dict[str, torch.Tensor]]) -> None:
    scorer = aesthetic(made[1], Place(dtype="bfloat16"))
    assert isinstance(scorer, Aesthetic)
    assert next(scorer.head.model.parameters()).dtype == torch.float32
    assert next(scorer.encoder.network.model.parameters()).dtype == torch.bfloat16
    assert scorer(tiny.pictures(2), ["", ""], [{}] * 2).dtype == torch.float32


def test_a_head_of_other_names_or_sizes_is_refused(tmp_path: Path) -> None:
    kind, held = states("v2", 8)
    for change, words in (
        ({"layers.8.weight": torch.ones(1)}, r"1 unexpected \(layers.8.weight\)"),
        ({"layers.7.bias": torch.ones(2)}, r"1 of another shape \(4.bias \[2\] for \[1\]\)"),
    ):
        torch.save({**held, **change}, tmp_path / "head.pth")
        with pytest.raises(ValueError, match=f"the weights of head.pth do not fit key for key: {words}"):
            head(kind, tmp_path / "head.pth")
    with pytest.raises(ValueError, match="no variant 'v3'; give one of v2, v1, v2.5"):
        aesthetic("v3")
    with pytest.raises(FileNotFoundError, match="fetch it with network access: curl -L https://github.com/.*linearMSE.pth -o"):
        aesthetic(f"v2@{tmp_path}")
