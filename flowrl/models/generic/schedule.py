"""The levels of a pipeline nobody wrote a family for, and what its clock shows at them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flowrl.models import ddim
from flowrl.models.family import euler
from flowrl.samplers import Path, paths

from .infer import Unknown
from .listen import Heard


@dataclass(frozen=True)
class Schedule:
    """turned: the scheduler's own sigma is 0 at noise and 1 at data, so that its levels and its answers are turned round."""

    scheduler: Any
    path: Path
    turned: bool = False

    @property
    def sign(self) -> int:
        return -1 if self.turned else 1

    def levels(self, heard: Heard) -> Tensor:
        """float64 [steps + 1] of a run.

        Raises: Unknown where the scheduler does not show them.
        """
        if self.path is not paths.flow:
            return self.diffused(len(heard.steps))
        if heard.sigmas is None:
            raise Unknown("the scheduler has no sigmas")
        sigmas = heard.sigmas.double().cpu()
        return 1 - sigmas if self.turned else sigmas

    def diffused(self, steps: int) -> Tensor:
        """Of a variance-preserving diffusion."""
        return ddim.visited(self.scheduler, steps)

    def clock(self, sigma: Tensor) -> Tensor:
        return self.path.time(sigma).double() if isinstance(self.path, paths.VP) else sigma.double()


def single_steps(pipe: Any) -> Schedule:
    """Gives the pipeline a scheduler with single steps in the place of one that looks back: on a flow Euler's of the same shift, on
    a variance-preserving diffusion DDIM's of the same levels.

    Raises: Unknown for a scheduler of neither.
    """
    from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, FlowMatchEulerDiscreteScheduler

    scheduler = pipe.scheduler
    config: Any = scheduler.config
    single = euler(scheduler)
    if single is not scheduler:
        pipe.scheduler = single
    elif "beta_schedule" in config:
        kind = type(scheduler)
        if kind in (CogVideoXDDIMScheduler, CogVideoXDPMScheduler):  # which shift their levels as no other does
            pipe.scheduler = CogVideoXDDIMScheduler.from_config(config, clip_sample=False)
        else:
            pipe.scheduler = ddim.ddim(scheduler)
        trained = getattr(scheduler, "alphas_cumprod", None)
        if trained is None or (trained.double() - pipe.scheduler.alphas_cumprod.double()).abs().max() > 1e-6:
            raise Unknown(f"the levels of its {kind.__name__} are not those of a DDIMScheduler with its settings")
        return Schedule(pipe.scheduler, ddim.path(pipe.scheduler))
    elif not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise Unknown(f"its {type(scheduler).__name__} is neither of a flow nor of a variance-preserving diffusion")
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    return Schedule(pipe.scheduler, paths.flow, bool(pipe.scheduler.config.invert_sigmas))
