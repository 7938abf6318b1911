"""Steps whose clean prediction is clipped, an option of DDPO. They are not linear in u, so they have no replay."""

from __future__ import annotations

from torch import Tensor

from .laws import Law
from .paths import Path


def step(
    x: Tensor,
    u: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    law: Law,
    path: Path,
    noise: Tensor | None = None,
    bound: float = 1.0,
    again: bool = False,
    guard: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """x' = alpha' clip(x0_hat, -bound, bound) + c x1_hat + s noise -> (x', mean), [N, *d] each.

    sigma, sigma_next [N] float64.  again: x1_hat is taken afresh from the clipped x0_hat, so that both agree with x.

    Source: DDPO, ddpo-pytorch@1958463 `ddim_step_with_logprob` (clip_sample, use_clipped_model_output = again).
    """
    wide = (-1, *[1] * (x.ndim - 1))

    def rows(t: Tensor) -> Tensor:
        return t.to(x).view(wide)

    c, s = law(sigma, sigma_next, guard, alpha=path.alpha)
    x0 = path.x0(x, u, rows(sigma))
    kept = x0.clamp(-bound, bound)
    x1 = (x - rows(path.alpha(sigma)) * (kept if again else x0)) / rows(sigma)
    mean = rows(path.alpha(sigma_next)) * kept + rows(c) * x1
    return (mean if noise is None else mean + rows(s) * noise), mean
