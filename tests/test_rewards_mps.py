"""MPS: the attention against a plain account of it, the score's independence of its company, weights by upstream's names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders as tiny
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from flowrl import rewards
from flowrl.rewards import Place
from flowrl.rewards.contrastive.mps import CONDITION, Fused, Mps, fused, mps

DIM, HEADS, WIDTH = 8, 16, 64
PROMPTS = ["a red dog", "two cats by light", "a red dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    clip = tiny.clip(path / "CLIP-ViT-H-14-laion2B-s32B-b79K", dim=DIM)
    (path / "mpsv1").mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = tiny.shaken(Fused(clip, 4, HEADS, WIDTH))
    old = {"mps.model.text_model.embeddings.position_ids": torch.arange(3), "mps.cross_model.layers.0.1.fn.pos_emb": torch.ones(1)}
    held = {f"mps.{key}": value.contiguous() for key, value in model.state_dict().items()}
    save_file({**held, **old}, path / "mpsv1" / "model.safetensors")
    return path


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * weight


def gate(x: Tensor) -> Tensor:
    value, by = x.chunk(2, -1)
    return by * torch.sigmoid(by) * value


def turned(x: Tensor) -> Tensor:
    """Each pair (i, i + half) of position p turned by p / 10000^(2i / width), as a complex number."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x), dtype=x.dtype)[:, None] / 10000 ** (torch.arange(half, dtype=x.dtype) * 2 / x.shape[-1])
    z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def looked(query: Tensor, key: Tensor, value: Tensor, kept: Tensor) -> Tensor:
    weight = (query @ key.T / math.sqrt(WIDTH)).masked_fill(~kept, -math.inf).softmax(-1)
    return weight @ value


def crossed(held: dict[str, Tensor], x: Tensor, context: Tensor, kept: Tensor) -> Tensor:
    """One picture's tokens [I, D] and one text's [L, D], head by head, in float64."""
    for layer in range(4):
        w = {k.removeprefix(f"cross_model.layers.{layer}.0.fn."): v for k, v in held.items()}
        y = norm(x, w["norm.weight"])
        key, value = (context @ w["to_kv.weight"].T).chunk(2, -1)
        queries = (y @ w["to_q.weight"].T).split(WIDTH, -1)
        out = torch.cat([looked(query, key, value, kept) for query in queries], -1) @ w["to_out.weight"].T
        x = x + out + gate(y @ w["ff.0.weight"].T) @ w["ff.2.weight"].T
        w = {k.removeprefix(f"cross_model.layers.{layer}.1.fn."): v for k, v in held.items()}
        parts = (norm(x, w["norm.weight"]) @ w["fused_attn_ff_proj.weight"].T).split([HEADS * WIDTH, WIDTH, WIDTH, 8 * DIM], -1)
        every = torch.ones(len(x), dtype=torch.bool)
        queries = [turned(query) for query in parts[0].split(WIDTH, -1)]
        out = torch.cat([looked(query, turned(parts[1]), parts[2], every) for query in queries], -1)
        x = x + out @ w["attn_out.weight"].T + gate(parts[3]) @ w["ff_out.1.weight"].T
    return x


def told(model: Fused, made: Mps, image: np.ndarray, prompt: str) -> float:
    """One score by the words of rewards.md 1.8."""
    clip: Any = model.model.double()
    held = {key: value.double() for key, value in model.state_dict().items()}
    words = clip.text_model(input_ids=made.tokenize([prompt, CONDITION]))
    text, condition = (words.last_hidden_state @ clip.text_projection.weight.T).double()
    end = clip.text_projection(words.pooler_output)[0].double()
    relevance = torch.stack([max(token @ other for other in condition) for token in text])
    kept = relevance / relevance.max() > made.threshold
    assert kept.any()
    patches = clip.vision_model(pixel_values=tiny.pixel_values(image[None]).double()).last_hidden_state
    fused_token = crossed(held, clip.visual_projection(patches)[0].double(), text, kept)[0]
    cosine = end @ fused_token / end.norm() / fused_token.norm()
    return float(clip.logit_scale.exp() * cosine)


@pytest.mark.evidence("arithmetic", "mps")
@pytest.mark.parametrize("threshold", ["", "0.9"])
def test_a_score_is_what_the_words_say(folder: Path, threshold: str) -> None:
    made, again = mps(f"{threshold}@{folder}", Place(batch=2)), mps(f"{threshold}@{folder}")
    images = tiny.pictures(3)
    found = made(images, PROMPTS, [{}] * 3)
    with torch.no_grad():
        expected = [told(again.network.model, again, image, prompt) for image, prompt in zip(images, PROMPTS, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=2e-3) and found.std() > 1e-2


def test_the_threshold_decides_which_words_count(folder: Path) -> None:
    made = mps(f"@{folder}")
    assert made.threshold == 0.3 and mps(f"0.01@{folder}").threshold == 0.01
    with made.network.ready() as model:
        some = made._asked(model, PROMPTS).kept
    strict = mps(f"0.99@{folder}")
    with strict.network.ready() as model:
        few = strict._asked(model, PROMPTS).kept
    assert some.shape == (2, tiny.LENGTH) and few.any(1).all() and (few <= some).all() and few.sum() < some.sum()


def test_a_score_does_not_depend_on_its_company(folder: Path) -> None:
    made, images = mps(f"@{folder}"), tiny.pictures(3)
    together = made(images, PROMPTS, [{}] * 3)
    alone = torch.cat([made(images[i : i + 1], [PROMPTS[i]], [{}]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    video = images[:, None].repeat(2, 1)
    torch.testing.assert_close(made(video, PROMPTS, [{}] * 3), together, rtol=0, atol=1e-4)


def test_upstreams_names_fit_key_for_key(folder: Path) -> None:
    state = {k: v for k, v in fused_state(folder).items() if not k.endswith((".position_ids", ".pos_emb"))}
    clip = transformers.CLIPModel.from_pretrained(folder / "CLIP-ViT-H-14-laion2B-s32B-b79K")
    blocks = {key.removeprefix("cross_model.layers.0.") for key in state if key.startswith("cross_model.layers.0.")}
    assert blocks == {
        *(f"0.fn.{name}" for name in ("norm.weight", "norm.bias", "to_q.weight", "to_kv.weight", "to_out.weight", "ff.0.weight")),
        *(f"1.fn.{name}" for name in ("norm.weight", "norm.bias", "fused_attn_ff_proj.weight", "attn_out.weight")),
        "0.fn.ff.2.weight", "1.fn.ff_out.1.weight", "1.fn.rotary_emb.inv_freq",
    }  # fmt: skip
    fused(clip, state)
    state.pop("cross_model.layers.3.0.fn.to_q.weight")
    with pytest.raises(ValueError, match=r"MPS do not fit key for key: 1 missing \(cross_model.layers.3.0.fn.to_q.weight\)"):
        fused(clip, state)


def fused_state(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {key.removeprefix("mps."): value for key, value in load_file(folder / "mpsv1" / "model.safetensors").items()}


def test_at_full_size_the_shapes_are_upstreams() -> None:
    with torch.device("meta"):
        held = {key: list(value.shape) for key, value in Fused(_Sized(1024), 4).cross_model.state_dict().items()}
    assert held["layers.3.1.fn.fused_attn_ff_proj.weight"] == [1024 + 64 + 64 + 8192, 1024]
    assert held["layers.0.0.fn.to_kv.weight"] == [128, 1024] and held["layers.0.0.fn.ff.0.weight"] == [8192, 1024]
    assert held["layers.0.1.fn.rotary_emb.inv_freq"] == [32] and len(held) == 4 * 13


class _Sized(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.config = transformers.CLIPConfig(projection_dim=dim)


def test_the_condition_is_two_and_twenty_words() -> None:
    assert len(CONDITION.split()) == 22 and CONDITION.startswith("light, color,") and CONDITION.endswith("word, things.")


@pytest.mark.parametrize(("variant", "words"), [("much", "'much' is not a threshold"), ("1", "the threshold is 1.0; give one in")])
def test_a_threshold_that_cannot_be_is_refused(variant: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mps(variant)


def test_without_the_file_a_sentence_says_what_to_fetch(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "CLIP-ViT-H-14-laion2B-s32B-b79K").symlink_to(folder / "CLIP-ViT-H-14-laion2B-s32B-b79K")
    with pytest.raises(FileNotFoundError, match="hf download RE-N-Y/mpsv1 model.safetensors --local-dir"):
        rewards.make(f"mps:@{tmp_path}")
    assert json.loads((folder / "CLIP-ViT-H-14-laion2B-s32B-b79K" / "config.json").read_text())["projection_dim"] == DIM
