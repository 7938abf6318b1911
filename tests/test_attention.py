"""policy.attention: every attention follows it, in rollout, training and recomputed blocks, or it is refused with a sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import cogview4, flux, hunyuan, sd, unnamed, wan
from tiny import PROMPTS, sd3_pipeline

from flowrl.models import attention, load_policy
from flowrl.recipe import LoraSpec, PolicySpec

PIPES: dict[str, Callable[[], Any]] = {
    "sd": sd.sd,
    "sd3": sd3_pipeline,
    "cogview4": cogview4.cogview4,
    "hunyuan": hunyuan.pipeline,
    "lumina2": unnamed.lumina2,
    "sana": unnamed.sana,
    "flux": lambda: flux.pipeline(True),
    "wan": wan.pipeline,
}
CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="these can be had on a GPU")


def network(name: str) -> Any:
    pipe = PIPES[name]()
    return getattr(pipe, "transformer", None) or pipe.unet


def attentions(net: Any) -> list[Any]:
    return [m for m in net.modules() if hasattr(m, "processor")]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """Of every call of torch's attention: whether the plain formula and whether the flash kernel were allowed."""
    seen: list[tuple[bool, bool]] = []
    right = torch.nn.functional.scaled_dot_product_attention

    def attend(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()))
        return right(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    return seen


def answer(policy: Any) -> torch.Tensor:
    x = torch.randn(2, *policy.latent_shape(), generator=torch.Generator().manual_seed(3))
    return policy.velocity(x, torch.tensor([0.7, 0.4]), policy.encode(PROMPTS))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "more"), [("sd3", {"max_sequence_length": 8}), ("sd", {})])
def test_attentions_that_call_torch_have_the_kernel_asked_for(
    name: str, more: dict[str, Any], checkpointing: bool, kernels: list[tuple[bool, bool]]
) -> None:
    asked = PolicySpec(dtype="float32", attention="_native_math", checkpointing=checkpointing, lora=LoraSpec(rank=2), **more)
    policy = load_policy(PIPES[name](), spec=asked)
    cond = policy.encode(PROMPTS)
    kernels.clear()
    with torch.no_grad():
        policy.velocity(torch.randn(2, *policy.latent_shape()), torch.tensor([0.7, 0.4]), cond)
    rollout = len(kernels)
    policy.velocity(torch.randn(2, *policy.latent_shape()), torch.tensor([0.7, 0.4]), cond).sum().backward()
    assert rollout > 0 and len(kernels) == rollout * (3 if checkpointing else 2), "once more in the backward of a recomputed block"
    assert set(kernels) == {(True, False)}
    assert torch.backends.cuda.flash_sdp_enabled(), "and only inside"
    assert all(p.grad is not None for n, p in policy.trainable() if "lora_B" in n and "add_q_proj" not in n)


@pytest.mark.parametrize("name", PIPES)
def test_native_and_torchs_own_kernels_hold_for_every_attention(name: str, kernels: list[tuple[bool, bool]]) -> None:
    net = network(name)
    for backend in ("native", "_native_math", "_native_flash", "_native_math"):
        attention.use(net, backend)
        told = [m.processor._attention_backend for m in attentions(net) if hasattr(m.processor, "_attention_backend")]
        assert {one.value for one in told} <= {backend}
        held = [m.forward for m in attentions(net) if isinstance(m.forward, attention.Held)]
        assert all(not isinstance(one.forward, attention.Held) and one.kernel == attention.KERNELS[backend] for one in held)
        linear = [m for m in attentions(net) if "LinearAttn" in type(m.processor).__name__]
        assert len(told) + len(held) + len(linear) == len(attentions(net)) or backend == "native"
    attention.use(net, "native")
    assert not any(isinstance(m.forward, attention.Held) for m in attentions(net))


def test_a_kernel_gives_the_same_numbers_and_a_copy_has_its_own_weights() -> None:
    asked = PolicySpec(dtype="float32", max_sequence_length=8, lora=LoraSpec(rank=2))
    plain = load_policy(sd3_pipeline(), spec=asked)
    chosen = load_policy(sd3_pipeline(), spec=replace(asked, attention="_native_math"))
    assert torch.allclose(answer(plain), answer(chosen), atol=1e-5)
    other = copy.deepcopy(chosen.modules["transformer"])
    mine = [m for m in attentions(other) if isinstance(m.forward, attention.Held)]
    assert mine and all(m.forward.forward.__self__ is m for m in mine)


@pytest.mark.parametrize(
    ("name", "backend", "said"),
    [
        ("sd3", "flex", r"'flex': none of the \d+ attentions of SD3Transformer2DModel can take it; take it out, or use native"),
        ("sd", "xformers", "'xformers': none of the 8 attentions of UNet2DConditionModel can take it"),
        ("sana", "flex", "none of the 2 attentions of SanaTransformer2DModel"),
        ("hunyuan", "flex", "only 2 of the 3 attentions of HunyuanVideoTransformer3DModel can take it"),
        pytest.param("flux", "_native_cudnn", "cannot be used here: No viable backend .*; take it out, or use native", marks=CPU),
        pytest.param("sd3", "_native_cudnn", "cannot be used here: No viable backend", marks=CPU),
        pytest.param("flux", "flex", "cannot be used here: FlexAttention does not support backward on CPU", marks=CPU),
        pytest.param("flux", "xformers", "cannot be used here", marks=CPU),
    ],
)
def test_a_backend_that_would_not_run_is_refused(name: str, backend: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"policy.attention .*{said}"):
        attention.use(network(name), backend)


@CPU
def test_a_kernel_that_does_not_fit_is_a_sentence_and_other_errors_stay_what_they_are() -> None:
    q = torch.ones(1, 2, 16, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    with pytest.raises(ValueError, match="'_native_efficient' cannot compute this network's attention; use native"):
        attention.Held(lambda: attend(q, q, q), attention.KERNELS["_native_efficient"])()
    with pytest.raises(RuntimeError, match="must match"):
        attention.Held(lambda: q + torch.ones(3), attention.KERNELS["_native_math"])()


def test_a_processor_that_computes_attention_itself_is_not_taken_for_one_that_follows() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    net = network("sd")
    net.set_attn_processor(AttnProcessor())
    attention.use(net, "native")
    with pytest.raises(ValueError, match="'_native_math': none of the 8 attentions of UNet2DConditionModel can take it"):
        attention.use(net, "_native_math")
