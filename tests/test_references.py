"""Pictures to edit: rows whose pictures differ in shape are answered as if each were alone; a missing one is a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families.flux import SPEC as FLUX
from families.flux import pipeline
from families.flux2 import SPEC, klein
from PIL import Image
from torch import Tensor

from flowrl.models import DiffusersPolicy, load_policy
from flowrl.models.references import by_place
from flowrl.recipe import LoraSpec, PolicySpec

SIZES = [(70, 90), (90, 70), (64, 64), (70, 90)]  # 8 x 11 tokens, 11 x 8, 8 x 8
WHOLE = LoraSpec(rank=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    found = [folder / f"{i}.png" for i in range(len(SIZES))]
    for path, (height, width) in zip(found, SIZES, strict=True):
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return found


@pytest.fixture(scope="module")
def policy() -> DiffusersPolicy:
    return load_policy(klein(), spec=PolicySpec(**SPEC, dtype="float32", guidance=3.0, edit=True, lora=WHOLE))


def test_rows_at_the_same_places_share_a_call() -> None:
    def places(*rows: tuple[int, int, int]) -> Tensor:
        return torch.tensor([*rows, *[(0, 0, 0)] * (3 - len(rows))])

    one, other, third = places((1, 0, 0), (1, 0, 1)), places((1, 0, 0), (1, 1, 0)), places((1, 0, 0), (1, 0, 1), (1, 0, 2))
    calls: list[tuple[list[int], int]] = []

    def ask(rows: Tensor, own: Tensor) -> Tensor:
        calls.append((rows.tolist(), len(own)))
        return rows + 10 * own.sum()

    answers = by_place(torch.stack([third, one, other, one]), ask)
    assert sorted(calls) == [([0], 3), ([1, 3], 2), ([2], 2)]
    assert answers.tolist() == [60, 31, 32, 33]


def test_pictures_of_several_shapes_do_not_meet(policy: DiffusersPolicy, files: list[Path]) -> None:
    prompts = ["a red circle"] * len(files)
    together = policy.encode(prompts, images=files)
    draw = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(len(files), *policy.latent_shape(), generator=draw), torch.tensor([0.9, 0.5, 0.7, 0.4])
    with torch.no_grad():
        u = policy.velocity(x, sigma, together)
        for i, file in enumerate(files):
            alone = policy.velocity(x[i : i + 1], sigma[i : i + 1], policy.encode(prompts[:1], images=[file]))
            assert (u[i] - alone[0]).abs().max() <= 1e-5 * u.abs().max()
        moved = together.rows[1] | {"places": together.rows[0]["places"]}  # as many tokens, elsewhere
        other = policy.velocity(x[1:2], sigma[1:2], type(together)((moved,), together.negatives and together.negatives[1:2], 3.0))
    assert (u[1] - other[0]).abs().max() > 1e-3


def test_several_pictures_lie_apart(policy: DiffusersPolicy, files: list[Path]) -> None:
    both = policy.encode(["a red circle"], images=[files[:2]]).rows[0]
    assert both["places"][:, 0].unique(return_counts=True)[0].tolist() == [10, 20]
    assert len(both["latents"]) == len(both["places"]) == 2 * 8 * 11
    turned = policy.encode(["a red circle"], images=[files[1::-1]]).rows[0]
    assert not torch.equal(both["latents"], turned["latents"])


def test_a_missing_or_tiny_picture_is_a_sentence(policy: DiffusersPolicy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comes with 0 images, and Flux2KleinPipeline needs 1"):
        policy.encode(["a red circle"])
    Image.new("RGB", (64, 40)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"the prompt .a red circle. with .*small.png: .*at least 64px.*; take another image"):
        policy.encode(["a red circle"], images=[tmp_path / "small.png"])
    kontext = load_policy(pipeline(True, edits=True), spec=PolicySpec(**{**FLUX, "height": 128, "width": 128}, lora=WHOLE))
    with pytest.raises(ValueError, match="comes with 0 images, and FluxKontextPipeline needs 1"):
        kontext.encode(["a red circle"])


def test_without_edit_pictures_are_left_to_rewards(files: list[Path]) -> None:
    policy = load_policy(klein(), spec=PolicySpec(**SPEC, dtype="float32", lora=WHOLE))
    assert set(policy.encode(["a red circle"], images=files[:1]).rows[0]) == {"encoder_hidden_states"}


def test_a_distilled_network_is_asked_once() -> None:
    assert load_policy(klein(True), spec=PolicySpec(**SPEC, guidance=9.0)).encode(["a red circle"]).negatives is None
    assert load_policy(klein(), spec=PolicySpec(**SPEC)).encode(["a red circle"]).negatives is not None


@pytest.mark.parametrize("make", [lambda: pipeline(True), klein], ids=["flux", "flux2"])
def test_a_size_that_tokens_do_not_fill_is_a_sentence(make: object) -> None:
    with pytest.raises(ValueError, match="height 36: give a multiple of 8, such as 32 or 40"):
        load_policy(make(), spec=PolicySpec(**{**SPEC, "height": 36}))  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="max_sequence_length 1024: this family takes at most 512"):
        load_policy(make(), spec=PolicySpec(**{**SPEC, "max_sequence_length": 1024}))  # pyright: ignore[reportCallIssue]
