"""What every caller relies on in a policy: exact replay, encodings once, frozen base, and sentences for wrong settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families.flux import pipeline as flux
from tiny import PROMPTS, excite, save_sd3, sd3_pipeline
from torch import Tensor

from flowrl.models import DiffusersPolicy, load_policy
from flowrl.models.prompts import Asked, PromptStore, asked
from flowrl.recipe import LoraSpec, PolicySpec

TOKENS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd3(tmp_path_factory.mktemp("models") / "model")


def policy(folder: Path, seed: int = 0, **spec: object) -> DiffusersPolicy:
    return load_policy(
        PolicySpec(
            **{
                "model": str(folder),
                "dtype": "float32",
                "guidance": 4.5,
                "max_sequence_length": TOKENS,
                "lora": LoraSpec(rank=4),
                **spec,
            }
        ),
        seed=seed,
    )


def batch(p: DiffusersPolicy, rows: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(rows, *p.latent_shape(), generator=draw), torch.rand(rows, generator=draw)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prediction_has_the_same_bits_with_and_without_grad(folder: Path, dtype: str, checkpointing: bool) -> None:
    p = policy(folder, dtype=dtype, checkpointing=checkpointing)
    excite(p.trainable())
    (x, sigma), cond = batch(p), p.encode(PROMPTS).take(torch.tensor([1, 0, 1]))
    u = p.predict(x, sigma, cond)
    with torch.no_grad():
        again = p.predict(x, sigma, cond)
    assert p.network.gradient_checkpointing is checkpointing
    assert u.requires_grad
    assert u.dtype == torch.float32
    assert torch.equal(u.detach(), again)


def test_checkpointing_gives_the_same_gradients(folder: Path) -> None:
    p = policy(folder)
    excite(p.trainable())
    (x, sigma), cond = batch(p), p.encode(PROMPTS).take(torch.tensor([1, 0, 1]))
    grads = []
    calls: list[None] = []
    p.network.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(None))
    for on in (False, True):
        p.checkpointing(on)
        grads.append(torch.autograd.grad(p.predict(x, sigma, cond).square().sum(), [q for _, q in p.trainable()]))
    assert len(calls) == 3  # once without, twice with: forward and recomputation
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reference_is_the_base_bit_for_bit(folder: Path, dtype: str) -> None:
    base, p = policy(folder, dtype=dtype, lora=LoraSpec(rank=0)), policy(folder, dtype=dtype)
    (x, sigma), cond = batch(p), p.encode(PROMPTS).take(torch.tensor([1, 0, 1]))
    with torch.no_grad():
        right = base.predict(x, sigma, cond)
        assert torch.equal(p.predict(x, sigma, cond), right)  # B = 0
        excite(p.trainable())
        assert not torch.equal(p.predict(x, sigma, cond), right)
        with p.reference():
            assert torch.equal(p.predict(x, sigma, cond), right)
        assert not torch.equal(p.predict(x, sigma, cond), right)


def test_reference_leaves_a_graph_and_its_gradients_alone(folder: Path) -> None:
    p = policy(folder)
    (x, sigma), cond = batch(p), p.encode(PROMPTS).take(torch.tensor([1, 0, 1]))
    u = p.predict(x, sigma, cond)
    with p.reference(), torch.no_grad():
        assert all(q.requires_grad for _, q in p.trainable())
        assert len(p.trainable()) == 2 * 15
        p.predict(x, sigma, cond)
    u.square().sum().backward()
    still = {n for n, q in p.trainable() if "lora_B" in n and (q.grad is None or not q.grad.abs().sum())}
    assert still == {"transformer_blocks.1.attn.add_q_proj.lora_B.default.weight"}  # the last block drops the text stream's answer


def test_reference_is_left_when_an_error_passes_through(folder: Path) -> None:
    p = policy(folder)
    excite(p.trainable())
    (x, sigma), cond = batch(p), p.encode(PROMPTS).take(torch.tensor([1, 0, 1]))
    with torch.no_grad():
        tuned = p.predict(x, sigma, cond)
        with pytest.raises(KeyError), p.reference():
            raise KeyError
        assert torch.equal(p.predict(x, sigma, cond), tuned)


def test_guidance_is_linear_in_the_two_predictions(folder: Path) -> None:
    p = policy(folder, negative="a blue square")
    x, sigma = batch(p, 2)
    with torch.no_grad():
        plain, guided = p.predict(x, sigma, p.encode(PROMPTS, guidance=1.0)), p.predict(x, sigma, p.encode(PROMPTS))
        negative = p.predict(x, sigma, p.encode(["a blue square"] * 2, guidance=1.0))
    assert (negative + 4.5 * (plain - negative) - guided).abs().max() < 1e-4
    assert (plain - guided).abs().max() > 0.1


def test_an_adapter_is_float32_on_a_half_precision_base(folder: Path) -> None:
    p = policy(folder, dtype="bfloat16")
    assert {q.dtype for _, q in p.trainable()} == {torch.float32}
    assert {q.dtype for n, q in p.network.named_parameters() if "lora" not in n} == {torch.bfloat16}
    assert p.pipe.vae.dtype == torch.float32


def test_an_adapter_depends_on_its_seed_alone(folder: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = policy(folder).trainable()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again, other = policy(folder).trainable(), policy(folder, seed=1).trainable()
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, again, strict=True))
    assert all(not torch.equal(a, b) for (n, a), (_, b) in zip(one, other, strict=True) if "lora_A" in n)


def test_default_targets_are_joint_attention_only() -> None:
    p = load_policy(sd3_pipeline(dual=True), spec=PolicySpec(lora=LoraSpec(rank=2)))
    layers = {n.rsplit(".lora_", 1)[0] for n, _ in p.trainable()}
    stem = "transformer_blocks.{}.attn.{}"
    both = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
    assert layers == {stem.format(i, n) for i in (0, 1) for n in both} | {stem.format(0, "to_add_out")}


def test_own_targets_and_full_fine_tuning(folder: Path) -> None:
    own = policy(folder, lora=LoraSpec(rank=2, targets=("proj_out",)))
    assert {n.split(".lora_")[0] for n, _ in own.trainable()} == {"proj_out"}
    whole = policy(folder, lora=LoraSpec(rank=0))
    assert [n for n, _ in whole.trainable()] == [n for n, _ in whole.network.named_parameters()]
    assert not any(q.requires_grad for m in (whole.pipe.vae, whole.pipe.text_encoder) for q in m.parameters())


@pytest.fixture
def encodings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[DiffusersPolicy, list[str]]]:
    p = policy(folder)
    seen: list[str] = []
    right = p.pipe.encode_prompt
    monkeypatch.setattr(p.pipe, "encode_prompt", lambda **k: (seen.extend(k["prompt"]), right(**k))[1])
    yield p, seen


def test_each_distinct_prompt_is_encoded_once(encodings: tuple[DiffusersPolicy, list[str]]) -> None:
    p, seen = encodings
    cond = p.encode([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    p.encode(PROMPTS)
    assert sorted(seen) == sorted(["", *PROMPTS])
    assert cond.rows[0] is cond.rows[2]
    assert cond.negatives is not None
    assert cond.negatives[0] is cond.negatives[1]
    taken, pooled = cond.take(torch.tensor([1, 1])).batch(), cond.batch()["pooled_projections"]
    assert torch.equal(taken["pooled_projections"], pooled[[1, 1]])


def test_an_encoding_does_not_depend_on_its_company(folder: Path) -> None:
    alone, together = policy(folder).encode([PROMPTS[1]]), policy(folder).encode(PROMPTS)
    assert all(torch.equal(part, together.rows[1][name]) for name, part in alone.rows[0].items())


def test_free_encoders_keeps_what_was_encoded_and_refuses_the_rest(encodings: tuple[DiffusersPolicy, list[str]]) -> None:
    p, seen = encodings
    before = p.encode([PROMPTS[0]])
    p.free_encoders([PROMPTS[1]])
    assert p.pipe.text_encoder is p.pipe.text_encoder_2 is None
    again = p.encode(PROMPTS).rows[0]
    assert all(torch.equal(part, again[name]) for name, part in before.rows[0].items())
    assert sorted(seen) == sorted(["", *PROMPTS])
    with pytest.raises(ValueError, match="'a green circle' was not encoded before free_encoders"):
        p.encode(["a green circle"])


def test_free_encoders_encodes_the_negative_prompt_too(folder: Path) -> None:
    p = policy(folder, negative="a blue square")
    p.free_encoders(PROMPTS)
    assert len(p.encode(PROMPTS)) == 2


def test_the_store_forgets_the_oldest_above_its_limit_but_not_once_closed() -> None:
    made: list[str] = []

    def encode(wanted: Asked) -> dict[str, Tensor]:
        made.append(wanted[0])
        return {"one": torch.zeros(4), "two": torch.zeros(4)}

    store = PromptStore(encode, limit=3 * 32)
    store(asked("abc"))
    store(asked("a"))
    store(asked("d"))  # b, the oldest, goes
    store(asked("acd"))
    assert made == list("abcd")
    store(asked("b"))
    assert made == list("abcdb")
    store.close(asked("efgh"))
    assert len(store(asked("bdefgh"))) == 6


def test_decoding_in_pieces_gives_the_same_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = policy(folder)
    x0 = batch(p, 5)[0]
    whole = p.decode(x0)
    sizes: list[int] = []
    right = p.images
    monkeypatch.setattr(p, "images", lambda x, cond: (sizes.append(len(x)), right(x, cond))[1])
    monkeypatch.setattr("flowrl.models.policy.DECODE_PIXELS", 2 * 32 * 32)
    assert (p.decode(x0).int() - whole.int()).abs().max() <= 1
    assert sizes == [2, 2, 1]
    assert (whole.shape, whole.dtype) == ((5, 32, 32, 3), torch.uint8)
    assert len(whole.unique()) > 100


def test_another_image_size(folder: Path) -> None:
    p = policy(folder, height=16, width=48)
    assert p.latent_shape() == (4, 4, 12)
    assert p.decode(batch(p, 1)[0]).shape == (1, 16, 48, 3)


def test_a_loaded_pipeline_is_used_as_it_is() -> None:
    pipe = sd3_pipeline()
    p = load_policy(pipe, spec=PolicySpec(lora=LoraSpec(rank=0)))
    assert p.network is pipe.transformer
    assert p.dtype == torch.float32


def test_a_guidance_that_flux_schnell_would_not_be_told_is_refused() -> None:
    untold: dict[str, Any] = {"lora": LoraSpec(rank=0), "height": 32, "width": 48, "max_sequence_length": 12}
    said = r"^policy\.guidance 4: this network is not told a guidance \(schnell\); take policy\.guidance out$"
    with pytest.raises(ValueError, match=said):
        load_policy(flux(False), spec=PolicySpec(guidance=4.0, **untold))
    assert load_policy(flux(False), spec=PolicySpec(**untold)).guidance == 0
    assert load_policy(flux(False), spec=PolicySpec(guidance=1.0, **untold)).guidance == 1
    assert load_policy(flux(True), spec=PolicySpec(guidance=4.0, **untold)).guidance == 4


WRONG = {
    "missing folder": ({"model": "./nowhere"}, "'./nowhere' is neither a folder, a file nor a hub name"),
    "unknown short name": ({"model": "shape"}, "'shape' is neither a folder, a file nor a hub name .* or \"shapes\""),
    "hub name offline": ({"model": "nobody/nothing"}, "'nobody/nothing' is no folder here, not in the cache, and could not be"),
    "no pipeline": ({"model": "{tmp}"}, "is no pipeline in diffusers format: it has no model_index.json"),
    "a file": ({"model": "{tmp}/file"}, "is no checkpoint; give a .safetensors file"),
    "unknown class": ({"model": "{tmp}/flux"}, "is a FluxPipeline9, which this diffusers .* does not know"),
    "broken index": ({"model": "{tmp}/broken"}, "is not readable as JSON"),
    "odd index": ({"model": "{tmp}/odd"}, "holds a list where an object is expected"),
    "incomplete": (
        {"model": "{tmp}/incomplete"},
        "incomplete lacks scheduler/, which its model_index.json names; complete the folder",
    ),
    "unknown target": (
        {"lora": LoraSpec(targets=("attn.to_w",))},
        "'attn.to_w' names no linear layer of SD3Transformer2DModel; nearest: .*attn.to_q",
    ),
    "target of another kind": ({"lora": LoraSpec(targets=("attn",))}, "'attn' names no linear layer"),
    "height": ({"height": 36}, "height 36: give a multiple of 8, at most 96, such as 32 or 40"),
    "width": ({"width": 104}, "width 104: give a multiple of 8, at most 96"),
    "tokens": ({"max_sequence_length": 513}, "max_sequence_length 513: this family takes at most 512"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_a_sentence(folder: Path, tmp_path: Path, case: str) -> None:
    (tmp_path / "file").touch()
    for name, text in {
        "flux": json.dumps({"_class_name": "FluxPipeline9"}),
        "broken": "{",
        "odd": "[]",
        "incomplete": (folder / "model_index.json").read_text(),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(text)
    spec, said = WRONG[case]
    if "model" in spec:
        spec = {"model": str(spec["model"]).format(tmp=tmp_path)}
    with pytest.raises(ValueError, match=said):
        policy(folder, **spec)


def test_wrong_uses_are_sentences(folder: Path) -> None:
    p = policy(folder, lora=LoraSpec(rank=0), dtype="bfloat16")
    with pytest.raises(ValueError, match=r"bfloat16 weights loses updates to rounding; set policy\.dtype to float32"):
        p.trainable()
    with pytest.raises(ValueError, match=r"at lora\.rank 0 there is none"), p.reference():
        pass
    with pytest.raises(ValueError, match="a schedule of 0 steps"):
        p.sigmas(0)
    p.pipe.scheduler.register_to_config(invert_sigmas=True)
    with pytest.raises(ValueError, match="does not invert its sigmas"):
        p.sigmas(4)
