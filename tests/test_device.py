"""One training step without a GPU: fake tensors find mixed devices and host synchronisation, in half precision, before a GPU does.

On "cuda" everything up to the loss runs. Its backward cannot: autograd's engine wants a live CUDA context even for fake tensors
(pytorch#92627), so backward runs on "meta", which mixes with the CPU no more than CUDA does, and on "cuda" where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import PROMPTS, save_sd3
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from flowrl.kernels import log_ratio, step
from flowrl.models import Cond, DiffusersPolicy, load_policy
from flowrl.recipe import LoraSpec, PolicySpec
from flowrl.samplers import laws, log_prob

HALF = ["bfloat16", "float16"]
BACKWARD = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd3(tmp_path_factory.mktemp("device") / "model")


class Copies(TorchDispatchMode):
    """Names the operators that carry a tensor from the device to the host: the synchronisations fake tensors let pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = [a for a in args if isinstance(a, Tensor)]
        if isinstance(out, Tensor) and out.device.type == "cpu" and any(a.device.type != "cpu" for a in inputs):
            self.seen.append(str(func))
        return out


def fake(module: nn.Module, device: str) -> None:
    """Replace every tensor of a module by a fake one on `device`. (`Module.to` cannot: it swaps tensors that others refer to.)"""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=device), p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device=device)


def on(device: str, folder: Path, dtype: str) -> DiffusersPolicy:
    """A policy with fake weights on a device; call it inside a FakeTensorMode."""
    with unset_fake_temporarily():
        p = load_policy(PolicySpec(model=str(folder), dtype=dtype, guidance=4.5, max_sequence_length=8, lora=LoraSpec(rank=4)))
    for module in (p.network, p.pipe.vae, p.pipe.text_encoder, p.pipe.text_encoder_2):
        fake(module, device)
    p.device = torch.device(device)
    return p


Predict = Callable[[Tensor, Tensor, Cond], Tensor]
ROWS, SWAPPED = torch.tensor([0, 1, 1]), torch.tensor([1, 0])
"""Slots as the loop has them: real numbers on the CPU."""


def loss(p: DiffusersPolicy, device: str, predict: Predict | None = None) -> Tensor:
    """Rollout step, density, replay, clipped ratio: what a training slice does."""
    predict = predict or p.predict
    cond = p.encode(PROMPTS).take(ROWS)
    x, z = torch.randn(3, *p.latent_shape(), device=device), torch.randn(3, *p.latent_shape(), device=device)
    sigma = torch.full((3,), 0.8, device=device)
    a, b, s = p.path.coefficients(sigma, sigma - 0.1, *laws.flow_sde(0.7)(sigma, sigma - 0.1, 0.9, alpha=p.path.alpha))
    with torch.no_grad():
        u_old = predict(x, sigma, cond)
        x_next = step(x, u_old, a, b, s, z)
        density = log_prob(x_next, step(x, u_old, a, b, s), s)
    u = predict(x, sigma, cond)
    assert u.dtype == density.dtype == torch.float32
    assert u.device.type == density.device.type == torch.device(device).type
    ratio = log_ratio(u, u_old, x, x_next, a, b, s).exp()
    return torch.minimum(ratio, ratio.clamp(0.9, 1.1)).mean()


@pytest.mark.parametrize("dtype", HALF)
def test_a_step_stays_on_the_device(folder: Path, dtype: str) -> None:
    with FakeTensorMode(), Copies() as copies:
        p = on("cuda", folder, dtype)
        cond = p.encode(PROMPTS)
        copies.seen.clear()  # encodings are kept on the CPU: once a prompt, not once a call
        assert loss(p, "cuda").device.type == "cuda"
        x = torch.randn(3, *p.latent_shape(), device="cuda")
        with p.reference(), torch.no_grad():
            p.predict(x[:2], x[:2, 0, 0, 0].abs(), cond)
        assert p.decode(x).device.type == "cuda"
    assert copies.seen == []


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("device", BACKWARD)
@pytest.mark.parametrize("dtype", HALF)
def test_backward_stays_on_the_device(folder: Path, dtype: str, device: str, checkpointing: bool) -> None:
    with FakeTensorMode():
        p = on(device, folder, dtype)
        p.checkpointing(checkpointing)
        loss(p, device).backward()
        grads = [q.grad for _, q in p.trainable()]
    assert grads
    assert all(g is not None and g.device.type == device and g.dtype == torch.float32 for g in grads)


def test_levels_and_slots_may_come_from_the_host(folder: Path) -> None:
    with FakeTensorMode():
        p = on("cuda", folder, "bfloat16")
        x = torch.randn(2, *p.latent_shape(), device="cuda")
        assert p.predict(x, torch.tensor([0.5, 0.4]), p.encode(PROMPTS).take(SWAPPED)).device.type == "cuda"


def host_tensor(p: DiffusersPolicy) -> Predict:
    return lambda x, sigma, cond: p.predict(x, sigma, cond) + torch.ones(3, 1, 1, 1)


def host_time(p: DiffusersPolicy) -> Predict:
    p.network.time_text_embed.register_forward_pre_hook(lambda module, args: (args[0].new_zeros(3, device="cpu"), args[1]))
    return p.predict


@pytest.mark.parametrize("device", ["cuda", *BACKWARD])
@pytest.mark.parametrize("plant", [host_tensor, host_time])
def test_a_planted_host_tensor_raises(folder: Path, plant: Callable[[DiffusersPolicy], Predict], device: str) -> None:
    with FakeTensorMode():
        p = on(device, folder, "bfloat16")
        predict = plant(p)
        with pytest.raises(RuntimeError, match="device"):
            loss(p, device, predict)


class HostBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, u: Tensor) -> Tensor:
        return u.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad * torch.ones(grad.shape, device="cpu")


@pytest.mark.parametrize("device", BACKWARD)
def test_a_planted_host_tensor_in_backward_raises(folder: Path, device: str) -> None:
    with FakeTensorMode():
        p = on(device, folder, "bfloat16")
        value = loss(p, device, lambda x, sigma, cond: HostBackward.apply(p.predict(x, sigma, cond)))
        with pytest.raises(RuntimeError, match="device"):
            value.backward()


@pytest.mark.parametrize("wait", [Tensor.item, Tensor.tolist, bool])
def test_a_planted_synchronisation_raises(folder: Path, wait: Callable[[Tensor], object]) -> None:
    def waits(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        wait(sigma[0] > 0)
        return p.predict(x, sigma, cond)

    with FakeTensorMode():
        p = on("cuda", folder, "bfloat16")
        with pytest.raises((DataDependentOutputException, RuntimeError), match=r"local_scalar_dense|tolist"):
            loss(p, "cuda", waits)


def test_a_planted_copy_to_the_host_is_listed(folder: Path) -> None:
    with FakeTensorMode(), Copies() as copies:
        p = on("cuda", folder, "bfloat16")
        p.encode(PROMPTS)
        copies.seen.clear()
        loss(p, "cuda", lambda x, sigma, cond: p.predict(x, sigma.cpu().cuda(), cond))
    assert len(copies.seen) == 2
