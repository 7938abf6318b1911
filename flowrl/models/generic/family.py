"""Any pipeline as a family, by conventions that were learned from it. Its own code encodes, schedules and decodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.models.family import Encoding, Pictures, still
from flowrl.models.guidance import Guider
from flowrl.recipe import PolicySpec
from flowrl.samplers import paths

from .idle import FEW, PROBES, Idle
from .infer import COMBINES, Convention, Line, Unknown, coarse, divided, learned
from .listen import Call, filled, first_tensor, leaves
from .running import Runner
from .schedule import single_steps

STEPS = 4  # of the runs it learns from; divides 1000, as DDIM's trailing spacing asks
MANY = 50  # of the run that shows how times are rounded in half precision
SCALE = 3.7  # of the guided run: no factor that a convention would hide


class Generic:
    """A pipeline whose class has no family of its own.

    It is run three times when it is built: with guidance, without, and for two prompts. What is not understood then is refused;
    what is, is to be verified against the pipeline before it is trusted (`flowrl.conformance`).

    kept_in: the precision in which the pipeline keeps its latents.

    Raises: Unknown, a sentence.  ValueError where it draws another size than the spec asks for.
    """

    feed_forward: Sequence[str] = ()
    pictures = (0, 0)

    def __init__(self, pipe: Any, spec: PolicySpec) -> None:
        self.pipe, self.spec = pipe, spec
        self.runner = Runner(pipe, spec)
        self.modules = (self.runner.name,)
        self.schedule = single_steps(pipe)
        self.path = self.schedule.path
        run = self.runner.run
        plain, two, guided = run(PROBES[:1], 0.0, STEPS), run(PROBES, 0.0, FEW, stop=1), run(PROBES[:1], SCALE, STEPS)
        clock = self.schedule.clock(self.schedule.levels(plain)[:-1])
        self.convention: Convention = learned(guided, plain, two, SCALE, clock)
        self.idle = Idle(self.runner, self.convention)
        if any(coarse(line.dtype) for line in self.convention.times.values()):
            self.convention = replace(self.convention, times=self._times())
        how = self.convention
        self.guider = Guider(COMBINES[how.combine or "linear"], joined=how.joined and how.first)
        self.embeds = bool(how.told)
        self.guidance = float(self.runner.own("guidance_scale") or 1.0) if self.embeds else 1.0
        x, shown = plain.steps[0].x, torch.as_tensor(plain.made)
        _drawn_as_asked(shown, x, self.idle, spec)
        self.kept_in = x.dtype
        self.shape = tuple(x.shape[1:])
        self.channels = -1 if x.ndim == 3 else 0
        self.pixels = shown[0].numel() // 3
        self.fps = float(self.runner.own("frame_rate") or 16.0) if shown.ndim == 5 else None
        self.grid = self.idle.grid(x, *shown.shape[-2:])
        self.targets = _attention(self.runner.network)

    def _times(self) -> dict[str, Line]:
        heard = self.idle.through(MANY)
        clock = self.schedule.clock(self.schedule.levels(heard)[:-1])
        return divided(self.convention.times, heard.steps, clock, self.pipe.scheduler.config.num_train_timesteps)

    def sigmas(self, steps: int) -> Tensor:
        """The levels of the scheduler after the pipeline has set them."""
        if steps < 1:
            raise ValueError(f"a schedule of {steps} steps; give at least 1")
        return self.schedule.levels(self.idle.sigmas(steps)) if self.path is paths.flow else self.schedule.diffused(steps)

    def expert(self, sigma: float) -> int:
        return 0

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        """What the network was given of the prompt, when the pipeline first asked it."""
        with self.idle.on(texts=False):
            heard = self.runner.run([text], 0.0, STEPS, stop=1)
        return self._rows(heard.steps[0].calls[0], 0)

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        """Some pipelines put words before a prompt and none before what is guided away from."""
        how = self.convention
        if how.combine is None:
            return self.encode(text, pictures)
        with self.idle.on(texts=False):
            heard = self.runner.run(PROBES[:1], SCALE, STEPS, stop=1, negative_prompt=[text])
        return self._rows(heard.steps[0].calls[0 if how.joined or how.first else 1], int(how.joined and not how.first))

    def _rows(self, call: Call, row: int) -> Encoding:
        given = dict(leaves(call.given))
        return {_key(path): given[path].select(axis, row) for path, axis in sorted(self.convention.rows.items())}

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        how, clock = self.convention, self.schedule.clock(sigma)
        told = torch.full_like(clock, guidance)

        def put(path: str, value: Any) -> Any:
            if path == how.state:
                return self._state(x, value)
            if path in how.times:
                return how.times[path].at(clock)
            if path in how.told:
                return how.told[path].at(told)
            if path in how.rows:
                row = given[_key(path)].movedim(0, how.rows[path])
                return row.to(value.dtype) if row.is_floating_point() else row
            return value.to(x.device) if isinstance(value, Tensor) else value

        u = first_tensor(network(**filled(how.template, put)))
        u = u if how.channels is None else u[:, : how.channels]
        return self.schedule.sign * how.sign * u.reshape(x.shape).float()

    def _state(self, x: Tensor, seen: Tensor) -> Tensor:
        """As the network takes it: with the constant channels of the one it was seen to be given."""
        state = x
        for d in self.convention.inserted:
            state = state.unsqueeze(d)
        rest = seen[:, state.shape[1] :].to(x)
        return torch.cat([state, rest.expand(len(x), *rest.shape[1:])], 1) if rest.shape[1] else state

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Tokens as the picture of them, where the pipeline takes its latents so."""
        return x if self.grid is None else x.mT.unflatten(2, self.grid)

    def decode(self, latents: Tensor) -> Tensor:
        """What the pipeline makes of final latents: its own call with steps whose result they are."""
        last = latents if self.grid is None else latents.flatten(2).mT
        shown = torch.cat([self.idle.decoded(last[i : i + 1]) for i in range(len(last))])
        # images are [N, 3, H, W], videos [N, T, 3, H, W]
        return shown.movedim(-3, -1).float()

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        """What the spec sets, where the pipeline takes it."""
        return self.runner.told(guidance)


def _key(path: str) -> str:
    return path.replace("/", "__")


def _drawn_as_asked(shown: Tensor, x: Tensor, idle: Idle, spec: PolicySpec) -> None:
    """shown: images [N, 3, H, W] or videos [N, T, 3, H, W], of latents x.

    Raises: ValueError where their size is not the one that the spec asks for: pipelines round it to what they can draw.
    """
    name = type(idle.pipe).__name__
    if shown.ndim == 4:
        still(spec, name)
    sizes = {"frames": shown.shape[1], "height": shown.shape[-2], "width": shown.shape[-1]}
    for setting, size in sizes.items():
        asked = getattr(spec, setting)
        if asked is not None and asked != size and (setting != "frames" or shown.ndim == 5):
            more = idle.next_frames(asked, x) if setting == "frames" else None
            raise ValueError(
                f"{setting} {asked}: {name} draws {size}; give {size}" + (f" or {more}" if more else " or another that it draws")
            )


def _attention(network: nn.Module) -> tuple[str, ...]:
    """Endings of the linear layers that belong to an attention."""
    found: dict[str, None] = {}
    others = [f".{name}" for name, module in network.named_modules() if not isinstance(module, nn.Linear)]
    for name, module in network.named_modules():
        parts = name.split(".")
        at = [i for i, part in enumerate(parts) if part.startswith(("attn", "attention", "self_attn", "cross_attn"))]
        if isinstance(module, nn.Linear) and at and at[-1] < len(parts) - 1:
            ending = ".".join(parts[at[-1] :])
            # an adapter sits on all that end so: a layer here may be a list of layers there
            found[name if any(other.endswith(f".{ending}") for other in others) else ending] = None
    if not found:
        raise Unknown(f"{type(network).__name__} has no attention layers that could be told by their names")
    return tuple(found)
