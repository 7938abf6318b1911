"""Neighbor-GRPO: no noise but at the start; an anchor's next state is drawn towards those of its better neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.kernels import mean_each, step
from flowrl.samplers import Rollout, laws
from flowrl.samplers.noise import Source
from flowrl.types import Batch, Credit, Loss, Queries

from .pools import mean_of, of
from .ratio import clipped


def chosen_by_distance(distance: Tensor, pool: Tensor, width: float = 1.0) -> Tensor:
    """log softmax of -distance / (2 width^2 mean distance) among the edges of each pool -> [E]; the mean without gradient.

    distance [E]: mean squares over latent dims, so that `width` means the same at every level.
    """
    scale = 2 * width**2 * mean_of(distance.detach(), pool).clamp(min=1e-12)
    logits = -distance / scale
    ids, index = pool.unique(return_inverse=True)
    top = torch.full((len(ids),), -torch.inf).to(logits).scatter_reduce(0, index, logits.detach(), "amax")
    total = logits.new_zeros(len(ids)).index_add(0, index, (logits - top[index]).exp())
    return logits - top[index] - total.log()[index]


@dataclass(frozen=True)
class Neighbor:
    """mean of clipped(log pi - log pi_old, A), where pi(i | anchor) is how likely the anchor's next state a x + b u is taken for
    that of its neighbour i, by distance (`chosen_by_distance`); A is the neighbour's.

    For quiet plans whose states are watched (`methods.neighbor_grpo`). anchors: images of a prompt whose states are asked, drawn
    anew each iteration.  clip: range of the ratio.  old: whether pi_old is taken under the weight set "old"; without it the ratio
    is 1, which is right for the one optimizer step after a rollout.

    Raises: ValueError for fewer than 1 anchor, or a clip or width that is not positive; while asking, for more anchors than images.
    Source: Neighbor-GRPO (2511.16955).
    Differs: written from the text; its softmax has a temperature that is not given, ours is the mean distance.
    """

    anchors: int = 4
    clip: float = 1e-4
    width: float = 1.0
    old: bool = False
    separable = False
    clips = True

    def __post_init__(self) -> None:
        if self.anchors < 1 or self.clip <= 0 or self.width <= 0:
            raise ValueError(
                f"neighbours of {self.anchors} anchors with clip {self.clip:g} and width {self.width:g}: give at least 1 anchor "
                "and positive numbers"
            )

    @property
    def needs(self) -> Sequence[str]:
        return ("old",) if self.old else ()

    def queries(self, rollout: Rollout, credit: Credit, noise: Source) -> Queries:
        plan = rollout.plan
        if plan.watched is None or len(plan.edges):
            raise ValueError("neighbours need a quiet plan whose states are watched; take the plan of methods.neighbor_grpo")
        if self.anchors > len(plan.roots):
            raise ValueError(
                f"{self.anchors} anchors among {len(plan.roots)} images of a prompt; use a larger group or fewer anchors"
            )
        kept = {int(n): i for i, n in enumerate(plan.kept)}
        inner = plan.watched.nonzero().flatten()
        rows: list[tuple[int, int]] = []
        edges: list[tuple[int, int, int]] = []
        slices: list[Tensor] = []
        owner: list[int] = []
        # an image without a score is neither an anchor nor anybody's neighbour
        alive = credit.weight > 0
        anchors = {p: self._anchors(plan.roots[alive[p, plan.roots]], int(slot), noise) for p, slot in enumerate(rollout.slots)}
        for index, block in enumerate(rollout.blocks):
            for depth in plan.depth[inner].unique().tolist():
                first = len(rows)
                for p, root in block.tolist():
                    for node in (
                        inner[(plan.depth[inner] == depth) & (plan.root[inner] == root)].tolist() if root in anchors[p] else ()
                    ):
                        next_states = ((plan.depth == depth + 1) & alive[p]).nonzero().flatten().tolist()
                        edges += [(len(rows), p, other) for other in next_states]
                        rows.append((p, node))
                if len(rows) > first:
                    pieces = torch.arange(first, len(rows)).split(rollout.size or len(rows))
                    slices += pieces
                    owner += [index] * len(pieces)
        prompt, node = (torch.tensor([r[i] for r in rows], dtype=torch.long) for i in range(2))
        row, of_edge, child = (torch.tensor([e[i] for e in edges], dtype=torch.long) for i in range(3))
        start, end = plan.sigma[node[row]], plan.sigma[child]
        a, b, _ = (t.float() for t in rollout.path.coefficients(start, end, *laws.ode()(start, end, plan.guard)))
        return Queries(
            row_prompt=prompt,
            kept=torch.tensor([kept[n] for n in node.tolist()], dtype=torch.long),
            sigma=plan.sigma[node],
            key=torch.full_like(node, -1),
            old=torch.full_like(node, -1),
            row=row,
            child=torch.tensor([kept[n] for n in child.tolist()], dtype=torch.long),
            a=a,
            b=b,
            s=torch.ones_like(a),
            delta=(start - end).float(),
            advantage=credit.advantage[of_edge, child],
            weight=credit.weight[of_edge, child],
            kl_weight=credit.kl_weight[of_edge, child],
            kl_scale=credit.kl_scale,
            group=rollout.slots[of_edge],
            node=child,
            draw=node[row],
            slices=slices,
            block=owner,
        )

    def _anchors(self, roots: Tensor, slot: int, noise: Source) -> list[int]:
        return sorted(roots.tolist(), key=lambda root: noise.uniform(slot, root, "anchor"))[: self.anchors]

    def measure(self, batch: Batch, u: Mapping[str, Tensor]) -> Tensor:
        """[E, 2]: distance of the anchor's next state to the neighbour's, now and under "old"."""
        assert batch.x_next is not None
        x, goal = batch.x[batch.row], batch.x_next
        now, old = (
            mean_each((step(x, v[batch.row], batch.a, batch.b, batch.s) - goal) ** 2) if v is not None else None
            for v in (u["current"], u.get("old"))
        )
        assert now is not None
        return torch.stack([now, now.detach() if old is None else old], 1)

    def loss(self, batch: Batch, m: Tensor) -> Loss:
        assert batch.group is not None and batch.draw is not None
        pool = of(batch.group, batch.draw)
        now, old = (chosen_by_distance(m[:, i], pool, self.width) for i in range(2))
        ratio = now - (old.detach() if self.old else now.detach())
        policy = (batch.weight * clipped(ratio, batch.advantage, self.clip)).sum()
        outside = (ratio.detach().abs() > self.clip).to(ratio)
        metrics = {
            "ratio/max_abs": ratio.detach().abs().max(),
            "ratio/bias": (batch.weight * ratio).sum().detach(),
            "loss/policy": policy.detach(),
            "clip/fraction": (batch.weight * outside).sum(),
        }
        return Loss(policy, metrics)


def neighbor(anchors: int = 4, clip: float = 1e-4, width: float = 1.0, old: bool = False) -> Neighbor:
    return Neighbor(anchors, clip, width, old)
