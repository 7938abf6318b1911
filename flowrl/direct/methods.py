"""Published methods that differentiate the reward, each a scheme and a loss. The one table of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from flowrl.rewards.base import State
from flowrl.samplers import Plan, chains, laws, solvers
from flowrl.samplers.noise import Source
from flowrl.samplers.solvers import Solver
from flowrl.types import WeightSet

from .losses import Loss
from .schemes import Known, Scheme, Truncated
from .travel import Route, route


@dataclass(frozen=True)
class Direct:
    """A method of direct reward gradients as a composition. group: images a prompt;  beta: of the mean squared distance between the
    trained predictions and the reference's;  updates: optimizer steps an iteration.
    """

    scheme: Scheme
    loss: Loss
    group: int = 1
    beta: float = 0.0
    updates: int = 1
    sample_from: str = field(default="current", init=False)
    export: str = field(default="current", init=False)
    solver: Solver = field(default=solvers.euler, init=False)
    features: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.group < 1 or self.updates < 1 or self.beta < 0:
            raise ValueError(
                f"group {self.group}, updates {self.updates}, beta {self.beta:g}: give groups and updates of 1 or more and a beta "
                "of 0 or more"
            )

    @property
    def weights(self) -> Mapping[str, WeightSet]:
        return {"reference": WeightSet("frozen")} if self.beta else {}

    def plan_at(self, iteration: int, sigmas: Tensor, slot: int) -> Plan:
        """The quiet way every image takes before anything is truncated."""
        return chains(sigmas, laws.ode(), (), self.group)

    def init(self) -> State:
        return {}


def refl(
    group: int = 1, late: float = 0.75, target: float = 2.0, scale: float = 1e-3, beta: float = 0.0, updates: int = 1
) -> Direct:
    """ReFL: one step of the last quarter is trained, drawn anew each iteration; the image is x0_hat right after it.

    loss = scale relu(target - r): images that reach the target are done. late: the share of the schedule before the steps drawn
    from; 40 steps and 0.75 give steps 30 to 39.

    Source: ImageReward (2304.05977), `ImageReward/ReFL.py`.
    Differs: their loss of pretraining beside the reward's is left out; beta is ours.
    """
    _share("late", late)

    def route_at(noise: Source, sigmas: Tensor) -> Route:
        steps = len(sigmas) - 1
        first = min(int(late * steps), steps - 1)
        step = first + int(noise.uniform(0, 0, "refl") * (steps - first))
        return route(sigmas, [step], step)

    return Direct(Truncated(route_at), Loss("hinge", target, scale), group, beta, updates)


def draft(
    group: int = 1, k: int = 1, lv: int = 0, loss: str = "minus", target: float = 0.0, beta: float = 0.0, updates: int = 1
) -> Direct:
    """DRaFT-K: gradients through the last k steps; k = steps is the whole sampler. lv > 0: DRaFT-LV, which averages over the image
    and lv copies whose last step is made again from new noise.

    Raises: ValueError for k < 1, lv < 0, lv with k > 1; where the schedule has fewer than k steps.
    Source: DRaFT (2309.17400): K = 1 and 10, LV with K = 1 and two redraws.
    Differs: from memory of the paper, whose code is not public; beta is ours.
    """
    if k < 1 or lv < 0 or (lv and k != 1):
        raise ValueError(
            f"draft with k {k} and lv {lv}: k is at least 1, lv at least 0, and redraws (lv) are of the last step, k 1"
        )

    def route_at(noise: Source, sigmas: Tensor) -> Route:
        steps = len(sigmas) - 1
        if k > steps:
            raise ValueError(f"draft trains the last {k} steps of a schedule of {steps}; use method.args.k={steps} or more steps")
        return route(sigmas, range(steps - k, steps))

    return Direct(Truncated(route_at, lv), Loss(loss, target), group, beta, updates)


def alignprop(
    group: int = 1,
    start: Literal["uniform", "gaussian", "last"] = "uniform",
    mean: float = 0.84,
    std: float = 0.1,
    loss: str = "rest",
    target: float = 1.0,
    scale: float = 0.01,
    beta: float = 0.0,
    updates: int = 1,
) -> Direct:
    """AlignProp: gradients through the steps from t on, with t drawn anew each iteration: anywhere, around mean (a share of the
    schedule), or always the last step.

    loss "rest" with target 1 is their 1 - HPS; "distance" with target 10 their |aesthetics - 10|.

    Source: AlignProp (2310.03739), `alignprop_trainer.py`, `sd_pipeline.py`: gaussian(42, 5) of 50 steps, coefficient 0.01.
    Differs: beta is ours.
    """
    if start not in ("uniform", "gaussian", "last"):
        raise ValueError(f"start {start!r} is unknown; use uniform, gaussian or last")
    _share("mean", mean)

    def route_at(noise: Source, sigmas: Tensor) -> Route:
        steps = len(sigmas) - 1
        drawn = {
            "uniform": int(noise.uniform(0, 0, "alignprop") * steps),
            "gaussian": round(steps * (mean + std * float(noise.normal((1,), 0, 0, "alignprop")))),
            "last": steps - 1,
        }[start]
        return route(sigmas, range(min(max(drawn, 0), steps - 1), steps))

    return Direct(Truncated(route_at), Loss(loss, target, scale), group, beta, updates)


def drtune(
    group: int = 1,
    trained: int = 5,
    early: float = 0.4,
    loss: str = "minus",
    target: float = 0.0,
    beta: float = 0.0,
    updates: int = 1,
) -> Direct:
    """DRTune: the network never sees its input's graph, so the gradient runs along the sampler only and reaches early steps without
    a product of Jacobians; `trained` evenly spaced steps keep a graph, and the way jumps to x0_hat somewhere in its last `early`.

    Offset of the steps and place of the jump are drawn anew each iteration.

    Raises: ValueError for trained < 1 or a schedule that stops before as many steps.
    Source: DRTune (2405.00760).
    Differs: read in a secondary text only: the two constants are ours; steps are spaced over those before the jump; beta is ours.
    """
    if trained < 1:
        raise ValueError(f"drtune with {trained} trained steps; give at least 1")
    _share("early", early)

    def route_at(noise: Source, sigmas: Tensor) -> Route:
        steps = len(sigmas) - 1
        stop = steps - 1 - int(noise.uniform(0, 0, "drtune stop") * int(early * steps))
        if trained > stop + 1:
            raise ValueError(
                f"drtune trains {trained} steps, but a schedule of {steps} may stop after {stop + 1}; lower method.args.trained or "
                "method.args.early, or use more steps"
            )
        stride = (stop + 1) // trained
        offset = int(noise.uniform(0, 0, "drtune offset") * (stop + 1 - (trained - 1) * stride))
        return route(sigmas, range(offset, offset + trained * stride, stride), stop, attached=False)

    return Direct(Truncated(route_at), Loss(loss, target), group, beta, updates)


def srpo(
    group: int = 1,
    wanted: str = "Realistic photo. ",
    unwanted: str = "CG Render. ",
    reach: float = 0.1,
    target: float = 0.7,
    levels: int = 1000,
    first: float = 27 / 28,
    last: float = 0.75,
    down: tuple[float, float] = (0.1, 0.25),
    up: tuple[float, float] = (0.3, 0.01),
    updates: int = 1,
) -> Direct:
    """SRPO: the policy's image is mixed with known noise, makes one step down and one step up to a drawn level, and is recovered
    with that noise; rewarded is what the text tells apart.

    R = (1 + k) r(wanted + prompt) - r(unwanted + prompt) on the way down, (1 + k) r(unwanted + prompt) - r(wanted + prompt) on
    the way up, which undoes what any text would reward; loss = mean over both of relu(target - R).
    levels points, linear from `first` to `last`, both in (0, 1); a step spans the share `reach` of them; k is linear over them,
    `down` and `up`.

    Raises: ValueError for a grid without room for a step.
    Source: SRPO (2509.06942), SRPO@81e5898 `fastvideo/SRPO.py` 520-625: 1 - groundtruth_ratio is reach; entries 5 and 25 of a
    50-step schedule of shift 3 are 27/28 and 3/4.
    Differs: a level a row, theirs one a batch; both rollout and step are guided alike (theirs 1 and 3.5); no offline images.
    The words are one pair of theirs, from memory.
    """
    places = max(1, round(reach * levels))
    if levels < 3 or not 0 < last < first < 1 or not 0 < reach < 1:
        raise ValueError(
            f"srpo with {levels} levels from {first:g} to {last:g} and a reach of {reach:g}: give at least 3 levels that fall "
            "inside (0, 1), and a reach inside (0, 1)"
        )
    if wanted == unwanted:
        raise ValueError(f"srpo is told apart by words, and wanted and unwanted are both {wanted!r}; give two different ones")
    grid = torch.linspace(first, last, levels)
    return Direct(Known(grid, places, wanted, unwanted, down, up), Loss("hinge", target), group, 0.0, updates)


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a share of the schedule and is {value:g}; give a number in [0, 1]")


TABLE: dict[str, Callable[..., Direct]] = {
    "refl": refl,
    "draft": draft,
    "alignprop": alignprop,
    "drtune": drtune,
    "srpo": srpo,
}
