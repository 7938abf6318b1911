"""Adversarial rewards: losses, triggers, memory, penalties, and discriminators that learn."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional

from flowrl import rewards
from flowrl.rewards import Place, Samples, TrainableReward
from flowrl.rewards.adversarial import bce, heads, hinge, learning, pairwise, references, triggers, two_way
from flowrl.rewards.adversarial.alignment import caption_clip
from flowrl.rewards.adversarial.discriminator import Adversarial, adversarial
from flowrl.rewards.adversarial.extractors import extractor, timm_extractor
from flowrl.rewards.adversarial.heads import Tokens
from flowrl.rewards.adversarial.learning import Adam
from flowrl.rewards.adversarial.pair import Pair, pair
from flowrl.rewards.adversarial.settings import PairSettings, Settings, parse
from flowrl.rewards.adversarial.triggers import Seen

WIDTH, PATCHES = 6, 9


class Means:
    """An extractor by hand: a patch is the mean and the spread of the colours of a third by a third, the class token their mean."""

    width, batch = WIDTH, 5

    def __call__(self, images: Sequence[np.ndarray]) -> Tokens:
        x = torch.stack([torch.from_numpy(np.asarray(image)) for image in images]).float() / 127.5 - 1
        cells = x.unflatten(1, (3, -1)).unflatten(3, (3, -1))
        patches = torch.cat([cells.mean((2, 4)), cells.std((2, 4))], -1).flatten(1, 2)
        return Tokens(patches.mean(1), patches)


def pictures(count: int, level: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, level)).normal(level, 25, (count, 12, 12, 3)).clip(0, 255).astype(np.uint8)


PROMPTS = ["a cat", "a dog"]


def samples(pixels: np.ndarray, own: Sequence[Sequence[np.ndarray]] | None = None, scored: Tensor | None = None) -> Samples:
    """Pixels [P, L, ...] of PROMPTS."""
    shape = pixels.shape[:2]
    keep = torch.ones(shape, dtype=torch.bool) if scored is None else scored
    return Samples(torch.from_numpy(pixels), PROMPTS, [{}, {}], keep, torch.zeros(shape[1], dtype=torch.long), own)


def dark(seed: int = 0) -> Samples:
    return samples(pictures(8, 90, seed).reshape(2, 4, 12, 12, 3))


def made(held: int = 6, **told: Any) -> Adversarial:
    return Adversarial("adversarial", Means(), tuple(pictures(held, 150)), Settings(**{"hidden": 16, "rate": 3e-3, **told}))


def same(a: object, b: object) -> bool:
    """Bit for bit, through dicts."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_losses_are_what_torch_says_of_logits() -> None:
    real, fake = randn(5, 3), randn(4, 3, seed=1)
    told = functional.binary_cross_entropy_with_logits
    both = (told(real, torch.ones_like(real)) + told(fake, torch.zeros_like(fake))) / 2
    torch.testing.assert_close(bce(real, fake), both)
    every = torch.stack([-torch.sigmoid(a - b).log() for a in real.flatten() for b in fake.flatten()]).mean()
    torch.testing.assert_close(pairwise(real, fake), every)
    assert float(hinge(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0]))) == 0
    assert float(hinge(torch.tensor([0.0]), torch.tensor([0.5]))) == 1.25


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_a_larger_margin_never_costs_more(margin: float, more: float) -> None:
    low, high = sorted((margin, more))
    for loss in (hinge, bce, pairwise):
        a, b = (loss(torch.tensor([m / 2]), torch.tensor([-m / 2])) for m in (low, high))
        assert b <= a + 1e-6


def test_accuracy_is_the_share_of_pairs_in_order() -> None:
    told = triggers.seen(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0, 2.0, 5.0]))
    assert told.accuracy == (1 + 0.5 + 0 + 0 + 1 + 1 + 1 + 0) / 8
    assert told.margin == 2.0 - 2.0


def test_triggers_say_who_learns() -> None:
    behind, even, before = Seen(0.95, 1.0), Seen(0.7, 0.1), Seen(0.3, -0.2)
    assert all(triggers.always()(i, even) == (True, False) for i in range(5))
    assert [triggers.every(3)(i, even) for i in range(6)] == [(i in (2, 5), False) for i in range(6)]
    assert [triggers.alternate(3)(i, even) for i in range(6)] == [(i not in (2, 5),) * 2 for i in range(6)]
    assert [triggers.ahead()(0, s) for s in (behind, even, before)] == [(False, False), (False, False), (True, True)]
    band = triggers.named("band/0.6/0.9")
    assert [band(0, s) for s in (behind, even, before)] == [(False, False), (True, False), (True, True)]
    for wrong, words in {
        "often": "there are",
        "every/0": "at least 1",
        "band/0.9/0.6": "holds nothing",
        "always/3": "numbers",
    }.items():
        with pytest.raises(ValueError, match=words):
            triggers.named(wrong)


def test_adam_is_torchs() -> None:
    weights = {"a": randn(3, 2), "b": randn(2, seed=1)}
    theirs = [w.clone().requires_grad_() for w in weights.values()]
    optimizer = torch.optim.Adam(theirs, lr=1e-2, betas=(0.5, 0.999))
    it = learning.begin(weights)
    for _ in range(7):
        it, value = learning.learn(it, lambda w: (w["a"].cos().sum() + w["b"].exp()).sum(), Adam(1e-2))
        optimizer.zero_grad()
        loss = (theirs[0].cos().sum() + theirs[1].exp()).sum()
        loss.backward()
        optimizer.step()
        assert value == pytest.approx(float(loss.detach()), rel=1e-12)
    for ours, other in zip(it.weights.values(), theirs, strict=True):
        torch.testing.assert_close(ours, other.detach(), rtol=1e-12, atol=1e-12)
    with pytest.raises(FloatingPointError, match="lower its rate"):
        learning.learn(it, lambda w: (w["a"].sum() + w["b"].sum()) * math.inf, Adam())


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 10))
def test_memory_is_bounded_and_holds_what_was_generated(counts: list[int], size: int) -> None:
    buffer, seen, number = torch.zeros(0, dtype=torch.uint8), 0, 0
    for i, count in enumerate(counts):
        images = (torch.arange(count, dtype=torch.uint8) + number)[:, None, None, None].expand(count, 2, 2, 3)
        held = len(buffer)
        buffer = learning.remembered(buffer, images, size, learning.generator("b", i))
        number, seen = number + count, min(size, held + count)
        assert len(buffer) == seen
        if count and held < size:
            continue
        assert count == 0 or bool((buffer[:, 0, 0, 0] >= number - count).any())
    assert buffer.dtype == torch.uint8
    assert len(set(buffer.flatten(1)[:, 0].tolist() if len(buffer) else [])) == len(buffer)
    assert not len(learning.remembered(buffer[:0], buffer, 0, learning.generator("b")))


def test_old_images_fade_slowly() -> None:
    old, new = torch.zeros(64, 1, 1, 3, dtype=torch.uint8), torch.ones(64, 1, 1, 3, dtype=torch.uint8)
    buffer = learning.remembered(old, new, 64, learning.generator("b"))
    assert int(buffer[:, 0, 0, 0].sum()) == 64 // learning.SHARE
    assert old.sum() == 0, "the memory that went in is not changed"


def head(seed: int = 0) -> dict[str, Tensor]:
    return {n: w.double() for n, w in heads.fresh(WIDTH, 7, learning.generator("h", seed)).items()}


def test_r1_is_the_squared_gradient_and_can_be_trained_on() -> None:
    weights, tokens = head(), Tokens(randn(3, WIDTH), randn(3, 4, WIDTH, seed=1))
    apart = 1e-6
    total = 0.0
    for part, scale in ((0, 1.0), (1, 1.0)):
        flat = tokens[part]
        for index in np.ndindex(*flat.shape):
            moved = [t.clone() for t in tokens]
            moved[part][index] += apart
            back = [t.clone() for t in tokens]
            back[part][index] -= apart
            ends = [heads.tell(weights, Tokens(*t)).score(0.3)[index[0]] for t in (moved, back)]
            total += scale * float((ends[0] - ends[1]) / (2 * apart)) ** 2
    assert heads.r1(weights, tokens, 0.3).item() == pytest.approx(total / 3 / 2, rel=1e-6)
    names = list(weights)

    def penalty(*told: Tensor) -> Tensor:
        return heads.r1(dict(zip(names, told, strict=True)), tokens, 0.3, spectral=True)

    assert torch.autograd.gradcheck(penalty, [weights[n].requires_grad_() for n in names])


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_spectral_norm_bounds_the_slope_whatever_the_weights(seed: int, size: float) -> None:
    weights = {n: size * w for n, w in head(seed).items()}
    a, b = randn(20, WIDTH, seed=seed), randn(20, WIDTH, seed=seed + 1)
    apart = heads.logits(weights, a, spectral=True) - heads.logits(weights, b, spectral=True)
    assert bool((apart.abs() <= 1.13 * (a - b).norm(dim=1)).all())


@pytest.mark.evidence("arithmetic", "adversarial")
def test_the_score_is_the_formula() -> None:
    """0.7 h(class) + 0.3 mean of the chosen patches, h on tokens of length 1."""
    reward, it = made(patches=4), dark()
    state = reward.init()
    scores, after = reward(it, state)
    assert after is state
    w = state["learner"]["weights"]
    for p, prompt in enumerate(PROMPTS):
        chosen = references.choice(0, 0, prompt, PATCHES, 4)
        assert len(set(chosen.tolist())) == 4
        for leaf in range(4):
            tokens = Means()([it.pixels[p, leaf].numpy()])
            picked = [tokens.whole[0], *(tokens.patches[0, k] for k in chosen)]
            told = [
                w["outer"][0] @ functional.gelu(w["inner"] @ (t / t.norm()) + w["inner_bias"]) + w["outer_bias"][0] for t in picked
            ]
            by_hand = 0.7 * told[0] + 0.3 * torch.stack(told[1:]).mean()
            torch.testing.assert_close(scores.values[p, leaf], by_hand)
            torch.testing.assert_close(scores.parts["class"][p, leaf], told[0])


def test_patches_are_those_of_the_prompt_and_the_iteration() -> None:
    many = {tuple(references.choice(0, i, "a cat", 64, 8).tolist()) for i in range(20)}
    assert len(many) == 20
    assert torch.equal(references.choice(0, 3, "a cat", 64, 8), references.choice(0, 3, "a cat", 64, 8))
    assert not torch.equal(references.choice(0, 3, "a cat", 64, 8), references.choice(0, 3, "a dog", 64, 8))
    assert references.choice(0, 0, "a cat", 5, 64).tolist() == [0, 1, 2, 3, 4]


def test_scores_do_not_depend_on_company_or_on_who_else_is_scored() -> None:
    reward, it = made(patches=3), dark()
    state = reward.init()
    whole, _ = reward(it, state)
    for keep in (torch.eye(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)):
        part, _ = reward(replace(it, scored=keep), state)
        torch.testing.assert_close(part.values[keep], whole.values[keep])
        assert torch.equal(part.valid, keep) and part.values[~keep].isnan().all()


def test_a_video_scores_the_mean_of_its_frames() -> None:
    reward = made()
    frames = pictures(12, 90).reshape(2, 2, 3, 12, 12, 3)
    scores, _ = reward(samples(frames), reward.init())
    apart = [reward(samples(frames[:, :, t]), reward.init())[0].values for t in range(3)]
    torch.testing.assert_close(scores.values, torch.stack(apart).mean(0))
    state, _, _ = reward.update(samples(frames), reward.init())
    assert state["iteration"] == 1


@pytest.mark.parametrize("loss", ["hinge", "bce", "pairwise"])
def test_a_discriminator_learns_to_tell_two_families(loss: str) -> None:
    reward = made(loss=loss, steps=10, spectral=loss == "bce", r1=0.01 if loss == "hinge" else 0.0)
    state, rows = reward.init(), []
    for i in range(8):
        state, metrics, skip = reward.update(dark(i), state)
        rows.append(metrics)
        assert skip == (i == 0)
    assert rows[-1]["adversarial/accuracy"] > 0.98
    assert rows[-1]["adversarial/margin"] > 0.2
    assert rows[-1]["adversarial/loss"] < rows[0]["adversarial/loss"]
    bright = samples(pictures(8, 150, 77).reshape(2, 4, 12, 12, 3))
    assert reward(bright, state)[0].values.min() > reward(dark(77), state)[0].values.max()


def test_references_of_prompts_serve_as_well_as_a_folder() -> None:
    reward = replace(made(steps=20), held=())
    own = [list(pictures(3, 150)), []]
    state = reward.init()
    for i in range(4):
        state, metrics, _ = reward.update(replace(dark(i), references=own), state)
    assert metrics["adversarial/accuracy"] > 0.95
    with pytest.raises(ValueError, match="adversarial:FOLDER"):
        reward.update(dark(), reward.init())
    with pytest.raises(ValueError, match="adversarial:FOLDER"):
        reward.update(replace(dark(), references=[[], []]), reward.init())


def test_where_the_trigger_says_no_only_the_counter_moves() -> None:
    reward = made(trigger="every/2", warmup=0, buffer=4)
    before = reward.init()
    after, metrics, skip = reward.update(dark(), before)
    assert same(after["learner"], before["learner"]) and after["iteration"] == 1 and not skip
    assert metrics["adversarial/updated"] == 0 and "adversarial/loss" not in metrics
    again, metrics, _ = reward.update(dark(), after)
    assert metrics["adversarial/updated"] == 1 and again["learner"]["taken"] == 1
    assert len(again["buffer"]) == 4


def test_the_memory_is_learnt_from() -> None:
    """Families of the past: black images are told from the references long after they stopped coming."""
    told = []
    for size in (0, 32):
        reward = made(steps=10, buffer=size, rate=1e-2)
        state = reward.init()
        for i in range(30):
            level = 20 if i < 3 else 140
            state, _, _ = reward.update(samples(pictures(8, level, i).reshape(2, 4, 12, 12, 3)), state)
        black = samples(pictures(8, 20, 99).reshape(2, 4, 12, 12, 3))
        told.append(float(reward(black, state)[0].values.mean()))
    assert told[1] < told[0] - 0.1


def test_compat_trains_on_tokens_as_they_come() -> None:
    tokens = Tokens(randn(4, WIDTH).float(), randn(4, 3, WIDTH, seed=1).float())
    weights = heads.fresh(WIDTH, 16, learning.generator("h"))
    ours, theirs = (made(compat=c)._loss(tokens, tokens, 0)(weights) for c in ("", "Adv-GRPO@8287f90"))
    raw = heads.tell(weights, tokens)
    unit = heads.tell(weights, tokens.unit())
    torch.testing.assert_close(theirs, hinge(raw.whole, raw.whole) + 0.3 * hinge(raw.patches, raw.patches))
    torch.testing.assert_close(ours, hinge(unit.whole, unit.whole) + 0.3 * hinge(unit.patches, unit.patches))


def test_a_resumed_discriminator_is_the_uninterrupted_one() -> None:
    reward = made(buffer=6, steps=2, batch=3, patches=4)
    state, saved = reward.init(), io.BytesIO()
    for i in range(5):
        if i == 2:
            torch.save(state, saved)
        state, metrics, _ = reward.update(dark(i), state)
    saved.seek(0)
    again = torch.load(saved, weights_only=True)
    for i in range(2, 5):
        again, told, _ = made(buffer=6, steps=2, batch=3, patches=4).update(dark(i), again)
    assert same(again, state) and told == metrics
    assert torch.equal(reward(dark(9), state)[0].values, reward(dark(9), again)[0].values)


def test_an_update_leaves_the_state_it_was_given() -> None:
    reward = made(buffer=6)
    state = reward.init()
    state, _, _ = reward.update(dark(), state)
    kept = torch.load(_bytes(state), weights_only=True)
    reward.update(dark(1), state)
    assert same(kept, state)


def _bytes(state: object) -> io.BytesIO:
    out = io.BytesIO()
    torch.save(state, out)
    out.seek(0)
    return out


def test_what_is_not_finite_is_not_scored() -> None:
    class Broken(Means):
        def __call__(self, images: Sequence[np.ndarray]) -> Tokens:
            told = super().__call__(images)
            told.whole[0] = math.nan
            return told

    reward = replace(made(), extractor=Broken())
    scores, _ = reward(dark(), reward.init())
    assert scores.valid.sum() == 6 and scores.values[~scores.valid].isnan().all()


def folder(path: Path, count: int, level: int = 150) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pictures(count, level)):
        Image.fromarray(image).save(path / f"{i}.png")
    return path


@pytest.mark.evidence("real", "adversarial")
def test_the_embedded_clip_tells_two_families_of_pictures(tmp_path: Path) -> None:
    where = folder(tmp_path / "style", 5)
    reward = rewards.make(f"adversarial:{where}?steps:5,rate:1e-3", place=Place())
    assert isinstance(reward, Adversarial) and isinstance(reward, TrainableReward)
    assert (reward.extractor.width, len(reward.held), reward.name) == (96, 5, f"adversarial:{where}?steps:5,rate:1e-3")
    state = reward.init()
    for i in range(5):
        state, metrics, _ = reward.update(dark(i), state)
    assert metrics["adversarial/accuracy"] > 0.95


def test_the_embedded_clips_tokens_are_its_own() -> None:
    network = extractor()
    images = list(pictures(3, 100))
    told = network(images)
    vision: Any = network.network.model.visual
    pixels = network.prepare(images)
    with torch.no_grad():
        pooled, patches = vision._pool(vision.transformer(vision._embeds(pixels)))
    torch.testing.assert_close(told.whole, pooled)
    torch.testing.assert_close(told.patches, patches)
    early = extractor(layer=0)(images)
    assert early.patches.shape == told.patches.shape and not torch.allclose(early.patches, told.patches)
    with pytest.raises(ValueError, match="layer 4"):
        extractor(layer=4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t", "vit_small_patch14_dinov2"])
def test_timm_models_give_tokens(name: str) -> None:
    timm = pytest.importorskip("timm")
    overlay = {"pretrained_cfg_overlay": {"input_size": (3, 56, 56)}}
    size = overlay if name == "resnet10t" else {"img_size": 56, "depth": 1, **overlay}
    network = timm_extractor(timm.create_model(name, pretrained=False, num_classes=0, **size).eval())
    told = network([pictures(1, 100)[0], np.zeros((9, 30, 3), np.uint8)])
    count = {"vit_tiny_patch16_224": 9, "vit_small_patch14_dinov2": 16}.get(name)
    assert told.whole.shape == (2, network.width) and told.patches.shape[::2] == (2, network.width)
    assert count is None or told.patches.shape[1] == count
    if count is None:
        torch.testing.assert_close(told.whole, told.patches.mean(1))


def test_dinov2_is_known_by_name_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    import timm

    asked: list[str] = []

    def offline(name: str, **told: Any) -> Any:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RuntimeError, match="timm/local-dir:FOLDER"):
        adversarial("@dinov2")
    assert asked == ["vit_base_patch14_dinov2.lvd142m"]
    with pytest.raises(ValueError, match="timm has no model"):
        adversarial("@timm/vit_huge_nonsense")
    with pytest.raises(ValueError, match="only open_clip"):
        adversarial("@dinov2?layer:2")


def test_names_are_read() -> None:
    assert parse(None, Settings) == (("", ""), Settings())
    read, its = parse("my_style@dinov2?loss:bce,trigger:every/4,spectral:true,steps:3,rate:1e-3", Settings)
    assert read == ("my_style", "dinov2")
    assert its == Settings(loss="bce", trigger="every/4", spectral=True, steps=3, rate=1e-3)
    assert parse("@hf-hub:owner/name", PairSettings)[0].network == "hf-hub:owner/name"
    assert rewards.parse("adversarial:a@dinov2?loss:bce=0.5") == ("adversarial:a@dinov2?loss:bce", 0.5)
    for wrong, words in {
        "?lose:bce": "did you mean loss",
        "?loss": "name:value|did you mean",
        "?loss:wgan": "hinge, bce, pairwise",
        "?steps:many": "whole number",
        "?steps:0": "at least 1",
        "?spectral:perhaps": "true or false",
        "?share:2": "share from 0 to 1",
        "?compat:peer": "Adv-GRPO@8287f90",
    }.items():
        with pytest.raises(ValueError, match=words):
            parse(wrong, Settings)
    with pytest.raises(ValueError, match="at least 1 layer"):
        parse("?layers:0", PairSettings)


def test_bad_folders_are_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        references.folder(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no images"):
        references.folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="a.png cannot be read"):
        references.folder(tmp_path)
    Image.new("RGBA", (4, 3), (0, 0, 0, 0)).save(tmp_path / "a.png")
    (image,) = references.folder(tmp_path)
    assert image.shape == (3, 4, 3) and (image == 255).all(), "what is transparent is white"


def paired(**told: Any) -> Pair:
    return replace(pair(), held=tuple(pictures(4, 150)), settings=PairSettings(**{"rate": 1e-3, "trigger": "always", **told}))


@pytest.mark.evidence("real", "adversarial_pair")
def test_the_pair_discriminator_learns_in_its_last_layers_only() -> None:
    reward = paired()
    assert isinstance(reward, TrainableReward)
    assert {n.split(".")[2] for n in reward.trained} == {"2", "3"}
    network: Any = reward.model.network.model
    before = {n: p.clone() for n, p in network.visual.named_parameters()}
    state, told = reward.init(), []
    for i in range(6):
        state, metrics, skip = reward.update(dark(i), state)
        told.append(metrics)
        assert not skip
    assert told[-1]["adversarial/margin"] > told[0]["adversarial/margin"]
    assert told[-1]["adversarial/accuracy"] > 0.95
    assert all(torch.equal(p, before[n]) for n, p in network.visual.named_parameters())
    assert not any(p.requires_grad for p in network.parameters())


def test_an_untrained_pair_scores_as_clip_and_a_resumed_one_goes_on_bitwise() -> None:
    it = dark()
    plain = rewards.make("clip")
    reward = paired()
    torch.testing.assert_close(reward(it, reward.init())[0].values, plain(it, plain.init())[0].values)
    state, _, _ = reward.update(it, reward.init())
    saved = torch.load(_bytes(state), weights_only=True)
    assert same(reward.update(dark(1), state)[0], paired().update(dark(1), saved)[0])


def test_the_pair_loss_is_two_way_of_the_models_own_features() -> None:
    reward, it = paired(batch=100), dark()
    clip: Any = reward.model.network.model
    _, metrics, _ = reward.update(it, reward.init())
    drawn = references.generated(it)
    given_ = references.real(it, reward.held, 8, 0, 0)
    fake, prompt, other = reward._paired(drawn, given_, 0)
    with torch.no_grad():
        a, b = (functional.normalize(clip.encode_image(reward.model.preparation(some)), dim=-1) for some in (other, fake))
        text = functional.normalize(clip.encode_text(reward.model.tokenize([PROMPTS[p] for p in prompt])), dim=-1)
        by_hand = two_way(text, a, b, clip.logit_scale.exp())
    assert metrics["adversarial/loss"] == pytest.approx(float(by_hand), rel=1e-4)


def test_by_default_the_pair_waits_until_generated_images_are_ahead() -> None:
    reward = replace(paired(), settings=PairSettings())
    same_text = samples(np.stack([pictures(4, 150)] * 2))
    swapped = replace(reward, held=tuple(pictures(4, 90)))
    margins = [r.update(s, r.init()) for r, s in ((reward, dark()), (swapped, same_text))]
    for state, metrics, skip in margins:
        ahead = metrics["adversarial/margin"] < 0
        assert skip == ahead == bool(metrics["adversarial/updated"]) == bool(state["learner"]["taken"])
    assert len({skip for _, _, skip in margins}) == 2


@pytest.mark.evidence("real", "caption_clip")
def test_caption_clip_reads_the_caption_where_there_is_one() -> None:
    reward, plain = caption_clip(), rewards.make("clip")
    images = pictures(2, 100)
    told = reward(images, ["zorb a red circle", "a blue square"], [{"caption": "a red circle"}, {}])
    it = samples(images[:, None])
    want, _ = plain(replace(it, prompts=["a red circle", "a blue square"]), plain.init())
    torch.testing.assert_close(torch.as_tensor(told), want.values[:, 0])
    floats = torch.from_numpy(images).float() / 255
    graph = reward.with_graph(floats.requires_grad_(), ["zorb a red circle", "a blue square"], [{"caption": "a red circle"}, {}])
    torch.testing.assert_close(graph, want.values[:, 0], atol=2e-3, rtol=0)
    assert isinstance(rewards.make("caption_clip"), rewards.DifferentiableReward)


def test_a_state_is_plain_data() -> None:
    for reward in (made(buffer=3), paired()):
        state, _, _ = reward.update(dark(), reward.init())
        assert json.dumps(state, default=lambda t: list(t.shape))
