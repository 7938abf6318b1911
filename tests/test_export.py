"""A trained adapter is a file that plain diffusers loads and that draws the same pictures there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors import safe_open
from tiny import PROMPTS, excite, run_plain, save_sd3

from flowrl import export
from flowrl.models import DiffusersPolicy, load_policy
from flowrl.recipe import LoraSpec, PolicySpec
from flowrl.samplers import chains, laws, rollout

STEPS, TOKENS = 4, 8
RANK, ALPHA = 4, 12.0  # different on purpose: without metadata a loader takes alpha = rank
LAST = ("attn.to_q", "attn.to_v", "attn.to_out.0")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    np.save(folder / "start.npy", torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).numpy())
    return save_sd3(folder / "model").parent


def policy(base: Path, **lora: object) -> DiffusersPolicy:
    spec = LoraSpec(**{"rank": RANK, "alpha": ALPHA, **lora})
    return load_policy(PolicySpec(model=str(base / "model"), dtype="float32", guidance=4.5, max_sequence_length=TOKENS, lora=spec))


@torch.no_grad()
def images(p: DiffusersPolicy, base: Path) -> np.ndarray:
    start, cond = torch.from_numpy(np.load(base / "start.npy")), p.encode(PROMPTS)
    plan = chains(p.sigmas(STEPS), laws.ode(), (), 1)
    made = rollout(
        plan, lambda x, sigma, slot: p.predict(x, sigma, cond.take(slot)), 2, p.latent_shape(), lambda slot, node: start[slot]
    )
    return p.images(made.states(plan.leaves)[:, 0]).numpy()


def test_a_fresh_diffusers_process_draws_the_adapters_images(base: Path, tmp_path: Path) -> None:
    """All targets, some targets, and the base; one process of plain diffusers for the three."""
    call = {"prompt": list(PROMPTS), "guidance_scale": 4.5, "num_inference_steps": STEPS, "max_sequence_length": TOKENS}
    common = {"model": str(base / "model"), "latents": str(base / "start.npy"), "call": call}
    ours, cases = {}, [{**common, "out": str(tmp_path / "base")}]
    for name, targets in (("all", None), ("some", LAST)):
        p = policy(base, targets=targets)
        excite(p.trainable())
        ours[name] = images(p, base)
        cases.append({**common, "out": str(tmp_path / name), "lora": str(export.save(p, tmp_path / f"lora-{name}"))})
    run_plain(cases, tmp_path)
    plain = {name: np.load(tmp_path / f"{name}.np.npy") for name in ("base", *ours)}
    for name in ours:
        assert np.abs(ours[name] - plain[name]).max() <= 1e-5
        assert np.abs(ours[name] - plain["base"]).mean() >= 0.02


def test_rank_alpha_and_targets_are_in_the_file(base: Path, tmp_path: Path) -> None:
    folder = export.save_lora(policy(base, targets=LAST), tmp_path / "lora")
    with safe_open(folder / export.LORA_FILE, "pt") as file:
        kept = json.loads(file.metadata()["lora_adapter_metadata"])
        assert all(file.get_tensor(name).dtype == torch.float32 for name in file.keys())  # noqa: SIM118
        assert len(list(file.keys())) == 2 * 2 * len(LAST)
    assert (kept["transformer.r"], kept["transformer.lora_alpha"]) == (RANK, ALPHA)
    assert sorted(kept["transformer.target_modules"]) == sorted(LAST)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_adapter_is_the_saved_one_bit_for_bit(base: Path, tmp_path: Path, dtype: str) -> None:
    spec = PolicySpec(model=str(base / "model"), dtype=dtype, max_sequence_length=TOKENS, lora=LoraSpec(rank=RANK, alpha=ALPHA))
    p, q = load_policy(spec), load_policy(spec, seed=1)
    excite(p.trainable())
    export.load_lora(q, export.save(p, tmp_path / "lora"))
    assert [n for n, _ in q.trainable()] == [n for n, _ in p.trainable()]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for (_, a), (_, b) in zip(p.trainable(), q.trainable(), strict=True))
    assert np.array_equal(images(p, base), images(q, base))


def test_rank_and_alpha_come_from_the_file(base: Path, tmp_path: Path) -> None:
    p, q = policy(base), policy(base, rank=2, alpha=1.0)
    excite(p.trainable())
    export.load_lora(q, export.save(p, tmp_path / "lora"))
    assert np.array_equal(images(p, base), images(q, base))


def test_saving_again_replaces_and_leaves_nothing_behind(base: Path, tmp_path: Path) -> None:
    p = policy(base)
    export.save(p, tmp_path / "run" / "lora")
    before = (tmp_path / "run" / "lora" / export.LORA_FILE).read_bytes()
    excite(p.trainable())
    export.save(p, tmp_path / "run" / "lora")
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["lora"]
    assert (tmp_path / "run" / "lora" / export.LORA_FILE).stat().st_mode & 0o044  # others may read it
    assert (tmp_path / "run" / "lora" / export.LORA_FILE).read_bytes() != before


def test_a_failed_save_keeps_the_old_file(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = policy(base)
    before = (export.save(p, tmp_path / "lora") / export.LORA_FILE).read_bytes()

    def fails(place: Path, transformer_lora_layers: object, transformer_lora_adapter_metadata: object) -> None:
        (Path(place) / export.LORA_FILE).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(type(p.pipe), "save_lora_weights", fails)
    with pytest.raises(OSError, match="disk full"):
        export.save(p, tmp_path / "lora")
    assert [f.name for f in tmp_path.iterdir()] == ["lora"]
    assert (tmp_path / "lora" / export.LORA_FILE).read_bytes() == before


def test_a_fully_trained_transformer_is_saved_whole(base: Path, tmp_path: Path) -> None:
    p = policy(base, rank=0)
    with torch.no_grad():
        for _, q in p.trainable():
            q.mul_(1.1)
    again = SD3Transformer2DModel.from_pretrained(export.save(p, tmp_path / "transformer")).state_dict()
    mine = p.pipe.transformer.state_dict()
    assert mine.keys() == again.keys()
    assert all(torch.equal(mine[k], again[k]) for k in mine)


@pytest.mark.parametrize("case", ["no file", "rank 0 load", "rank 0 lora", "whole with adapter", "onto a file"])
def test_wrong_use_is_a_sentence(base: Path, tmp_path: Path, case: str) -> None:
    p = policy(base, rank=0 if case.startswith("rank 0") else RANK)
    (tmp_path / export.LORA_FILE).touch()
    call, said = {
        "no file": (lambda: export.load_lora(p, base), "has no pytorch_lora_weights.safetensors; give the folder"),
        "rank 0 load": (lambda: export.load_lora(p, tmp_path), "lora.rank is 0"),
        "rank 0 lora": (lambda: export.save_lora(p, tmp_path / "x"), "use save_transformer"),
        "whole with adapter": (lambda: export.save_transformer(p, tmp_path / "x"), "use save_lora"),
        "onto a file": (lambda: export.save(p, tmp_path / export.LORA_FILE), "is a file"),
    }[case]
    with pytest.raises(ValueError, match=said):
        call()
