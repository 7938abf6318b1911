"""The values that flow through flowrl, and the glossary of its names.

sigma   noise level, 1 = noise, 0 = data
u       guided network output; on the flow path the velocity v = x1 - x0
noise   level of a step; z a standard normal draw
prompt  one slot of the iteration's global list (P of them);  group  the leaves of one prompt (G);  leaf  an end of the plan
node    a state of the plan (n);  edge  the step into a node (E recorded ones);  row  a state where a prediction is wanted (N)
unit    one root's subtree of one slot: what sharding distributes
old     the policy that sampled;  ref  the frozen reference
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from flowrl.rewards.base import Samples, Scores, State
from flowrl.samplers import Path, Plan, Rollout, solvers
from flowrl.samplers.laws import FlowNoise
from flowrl.samplers.noise import Source
from flowrl.samplers.solvers import Solver

__all__ = [
    "Advantage",
    "Batch",
    "Cond",
    "Credit",
    "Loss",
    "Method",
    "Objective",
    "Outcome",
    "Path",
    "Plan",
    "Policy",
    "Queries",
    "Rollout",
    "Samples",
    "Scores",
    "State",
    "WeightSet",
]


class Cond(Protocol):
    """Encoded prompts. Rows are taken by slot; negatives are stored once."""

    def take(self, slots: Tensor) -> Cond: ...

    def to(self, device: str) -> Cond: ...


class Policy(Protocol):
    """A model as flowrl sees it."""

    path: Path
    network: nn.Module

    @property
    def guidance(self) -> float:
        """The scale where `encode` is given none."""
        ...

    @property
    def fps(self) -> float | None:
        """Frames a second of its videos; None: it makes images."""
        ...

    def encode(
        self,
        prompts: Sequence[str],
        guidance: float | None = None,
        images: Sequence[FilePath | None] | None = None,
    ) -> Cond:
        """images: the file each prompt comes with, for policies that are shown one (a first frame, what is to be edited)."""
        ...

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor | tuple[Tensor, Tensor]:
        """u [N, *d] float32, or (u, raw) with a head for learned noise."""
        ...

    def sigmas(self, steps: int) -> Tensor: ...

    def latent_shape(self) -> tuple[int, ...]: ...

    def decode(self, x0: Tensor, cond: Cond | None = None) -> Tensor:
        """uint8 [N, H, W, 3], or [N, T, H, W, 3]: `images`, rounded."""
        ...

    def images(self, x0: Tensor, cond: Cond | None = None) -> Tensor:
        """float32 [N, H, W, 3] in [0, 1] (videos: [N, T, H, W, 3]), with a graph where x0 has one. cond: of the same rows, for
        policies whose states are only a part of what is decoded."""
        ...

    def decode_rows(self) -> int:
        """Images a decoder call without a graph has memory for."""
        ...

    def lane(self, sigma: float) -> int: ...

    def trainable(self) -> Sequence[tuple[str, nn.Parameter]]: ...

    @property
    def adapted(self) -> bool:
        """True where an adapter is trained, so that `reference()` can switch it off."""
        ...

    def free_encoders(self, prompts: Sequence[str] = (), images: Sequence[FilePath | None] | None = None) -> None: ...

    def rows_that_fit(self) -> int:
        """Rows of one training call that memory allows, by estimate."""
        ...

    def reference(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Outcome:
    """What a rollout earned, gathered over all processes. scores: name -> [P, L]; weights: name -> factor in the weighted sum,
    0 for rewards that only inform.

    features [P, L, D]: of the images, where the method asks for them;  metrics: the row of the last iteration ("kl/mean" ...).
    """

    plan: Plan
    scores: Mapping[str, Scores]
    weights: Mapping[str, float]
    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    slots: Tensor
    iteration: int
    log_prob: Tensor | None = None
    features: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Credit:
    """advantage, weight, kl_weight: float32 [P, n], one entry a node (= the edge into it). Weight 0 drops an edge; shapes
    never change. kl_scale: factor of the KL term, outside its denominator.
    """

    advantage: Tensor
    weight: Tensor
    kl_weight: Tensor
    kl_scale: float = 1.0

    def take(self, rows: Tensor) -> Credit:
        return Credit(self.advantage[rows], self.weight[rows], self.kl_weight[rows], self.kl_scale)


class Advantage(Protocol):
    def init(self) -> State: ...

    def apply(self, outcome: Outcome, state: State) -> tuple[Credit, State]: ...


@dataclass(frozen=True)
class Queries:
    """Where an objective wants predictions (N rows) and what it makes of them (E edges), as indices into a rollout.

    row_prompt, kept [N]: the state x[row_prompt, kept] of the rollout a row starts from.  sigma [N]: the level it is asked at.
    key [N]: -1 takes the state as it is; k >= 0 re-noises it to sigma with the noise of key k.
    old [N]: index of the recorded prediction u[row_prompt, old], -1 where there is none.
    row [E]: the row of an edge.  child [E]: kept index of its end, -1 for forward-process objectives.
    a, b, s [E]: the step's three numbers; delta [E]: sigma - sigma'.  advantage, weight, kl_weight [E], kl_scale: credit, with the
      whole step's denominator in the weights.
    group [E]: the edge's prompt, as its slot in the iteration's list; node [E]: the node it leads to, or the leaf that is
      re-noised; draw [E]: which re-noising of that leaf. What a coupled loss takes together is told by these.
    slices: row indices of each network call, in order; block: the rollout's block each belongs to.
    share, kl_share [E]: how much an edge's step counts beside others (`objectives.scales`), of the policy and of the KL; no part of
      the denominator. None: alike.
    """

    row_prompt: Tensor
    kept: Tensor
    sigma: Tensor
    key: Tensor
    old: Tensor
    row: Tensor
    child: Tensor
    a: Tensor
    b: Tensor
    s: Tensor
    delta: Tensor
    advantage: Tensor
    weight: Tensor
    kl_weight: Tensor
    group: Tensor
    node: Tensor
    draw: Tensor
    slices: Sequence[Tensor]
    block: Sequence[int]
    share: Tensor | None = None
    kl_share: Tensor | None = None
    kl_scale: float = 1.0


@dataclass(frozen=True)
class Batch:
    """One slice of Queries with its tensors formed. x [N, *d]; delta [E]: sigma - sigma'; x_next [E, *d]; u_old, x0, target [N, *d]
    where they exist. learned: the law of learned noise, whose predictions are [N, 2, *d], u and the raw noise.

    A coupled loss is given the edges of a whole optimizer step, of all processes, and neither x nor what was made of it.
    """

    x: Tensor
    sigma: Tensor
    slot: Tensor
    row: Tensor
    a: Tensor
    b: Tensor
    s: Tensor
    advantage: Tensor
    weight: Tensor
    kl_weight: Tensor
    delta: Tensor
    x_next: Tensor | None = None
    u_old: Tensor | None = None
    x0: Tensor | None = None
    target: Tensor | None = None
    learned: FlowNoise | None = None
    group: Tensor | None = None
    node: Tensor | None = None
    draw: Tensor | None = None
    plan: Plan | None = None
    kl_scale: float = 1.0


@dataclass(frozen=True)
class Loss:
    """value: scalar to minimise, already divided by the step's denominator. metrics: name -> detached
    scalar, summed over slices (names that end in max_abs: the largest)."""

    value: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """needs: names of the weight sets it asks beside "current".  separable: each edge's loss is its own.  clips: a bound on the
    ratio to the weights that sampled can cut an edge's gradient off.
    """

    @property
    def needs(self) -> Sequence[str]: ...

    @property
    def separable(self) -> bool: ...

    @property
    def clips(self) -> bool: ...

    def queries(self, rollout: Rollout, credit: Credit, noise: Source) -> Queries: ...

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor: ...

    def loss(self, batch: Batch, m: Tensor) -> Loss: ...


@dataclass(frozen=True)
class WeightSet:
    """A named copy of the trainable weights. kind "frozen": as at the start; "ema": follows with decay(it); "copy": replaced
    when when(it, the iteration's metrics).
    """

    kind: Literal["frozen", "ema", "copy"]
    decay: Callable[[int], float] | None = None
    when: Callable[[int, Mapping[str, float]], bool] | None = None


@dataclass(frozen=True)
class Method:
    """A published method as a composition. plan_at(iteration, sigmas, slot) -> Plan; `updates` optimizer steps a rollout.

    sample_from, export: the weight set that samples, and the one that is evaluated and saved.  solver: of quiet steps.
    features: whether the advantage wants features of the images (recipe: evaluate.features).
    """

    plan_at: Callable[[int, Tensor, int], Plan]
    advantage: Advantage
    objective: Objective
    weights: Mapping[str, WeightSet] = field(default_factory=dict)
    sample_from: str = "current"
    export: str = "current"
    updates: int = 1
    epochs: int = 1
    solver: Solver = solvers.euler
    features: bool = False

    def __post_init__(self) -> None:
        """Raises: ValueError for a weight set that something needs and nothing declares, or fewer than 1 update or epoch."""
        if self.updates < 1 or self.epochs < 1:
            raise ValueError(
                f"{self.updates} optimizer steps a rollout over {self.epochs} epochs trains nothing; give at least 1 of each"
            )
        wanted = {*self.objective.needs, self.sample_from, self.export} - {"current"}
        if missing := sorted(wanted - set(self.weights)):
            raise ValueError(
                f"the method needs the weight set {missing[0]!r} and declares {', '.join(sorted(self.weights)) or 'none'}: a KL or "
                f'a contrast needs something to compare with; add weights={{"{missing[0]}": WeightSet("frozen")}}'
            )

    @property
    def idle_clip(self) -> bool:
        """Whether the objective's clip can never act: the one optimizer step of a rollout takes its gradient at ratio 1."""
        return self.objective.clips and self.sample_from == "current" and self.updates * self.epochs == 1

    def init(self) -> State:
        """What the method remembers from one iteration to the next, as it starts."""
        return {"advantage": self.advantage.init()}
