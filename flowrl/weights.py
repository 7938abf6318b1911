"""Named sets of the trainable weights: the policy that samples, a frozen reference, an average.

A set is a list of tensors beside the parameters; `using` swaps their storage in, so the same module runs with other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flowrl.types import Policy, WeightSet


class Weights:
    """All sets of a run. "current" is the module itself and costs nothing; "frozen" of an adapter is the adapter switched off."""

    def __init__(self, policy: Policy, sets: Mapping[str, WeightSet]) -> None:
        self.policy = policy
        self.sets = dict(sets)
        self.parameters: Sequence[nn.Parameter] = [p for _, p in policy.trainable()]
        kept = [name for name, kind in self.sets.items() if not self._off(kind)]
        self.stored = {name: [p.detach().clone() for p in self.parameters] for name in kept}

    def _off(self, kind: WeightSet) -> bool:
        return kind.kind == "frozen" and self.policy.adapted

    def bytes(self) -> dict[str, int]:
        """Memory of every stored set."""
        return {name: sum(t.numel() * t.element_size() for t in tensors) for name, tensors in self.stored.items()}

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Run the module with set `name`. Never leave a graph of another set open across this."""
        if name == "current":
            yield
        elif name not in self.sets:
            raise ValueError(f"weight set {name!r} does not exist; the method declares {', '.join(['current', *self.sets])}")
        elif name not in self.stored:
            with self.policy.reference():
                yield
        else:
            self._swap(name)
            try:
                yield
            finally:
                self._swap(name)

    def _swap(self, name: str) -> None:
        for p, t in zip(self.parameters, self.stored[name], strict=True):
            p.data, t.data = t.data, p.data

    @torch.no_grad()
    def follow(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Move every set after the optimizer steps of an iteration."""
        for name, kind in self.sets.items():
            if kind.kind == "ema" and kind.decay is not None:
                keep = kind.decay(iteration)
                for p, t in zip(self.parameters, self.stored[name], strict=True):
                    t.lerp_(p.detach(), 1 - keep)
            elif kind.kind == "copy" and kind.when is not None and kind.when(iteration, metrics):
                for p, t in zip(self.parameters, self.stored[name], strict=True):
                    t.copy_(p.detach())

    def state(self) -> dict[str, list[Tensor]]:
        return {"current": [p.detach() for p in self.parameters], **self.stored}

    @torch.no_grad()
    def load(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        if set(state) != {"current", *self.stored}:
            raise ValueError(
                f"the checkpoint holds weight sets {sorted(state)}, this method needs "
                f"{sorted(['current', *self.stored])}; resume with the method and model of the run"
            )
        for name, tensors in {"current": self.parameters, **self.stored}.items():
            if len(tensors) != len(state[name]):
                raise ValueError(
                    f"the checkpoint's {name!r} weights have {len(state[name])} tensors, this model trains "
                    f"{len(tensors)}; resume with the model and lora settings of the run"
                )
            for own, saved in zip(tensors, state[name], strict=True):
                if own.shape != saved.shape:
                    raise ValueError(
                        f"the checkpoint's {name!r} weights have a tensor of shape {list(saved.shape)}, this "
                        f"model's is {list(own.shape)}; resume with the model and lora settings of the run"
                    )
                own.copy_(saved)
