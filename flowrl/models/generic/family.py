"""Any pipeline as a family, by conventions that were learned from it. Its own code encodes, schedules and decodes."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.models import ddim
from flowrl.models.family import Encoding, Pictures
from flowrl.models.guidance import Guider
from flowrl.recipe import PolicySpec
from flowrl.samplers import Path, paths

from .infer import COMBINES, Convention, Unknown, learned
from .listen import Heard, filled, first_tensor, leaves, listening, patched

STEPS = 3
SCALE = 3.7  # of the guided run: no factor that a convention would hide
PROBES = ("a red circle", "two blue squares left of a green circle")
NETWORKS = ("transformer", "unet")


class Generic:
    """A pipeline whose class has no family of its own.

    It is run three times when it is built: with guidance, without, and for two prompts. What is not understood then is refused;
    what is, is to be verified against the pipeline before it is trusted (`flowrl.conformance`).

    Raises: Unknown, a sentence.
    """

    feed_forward: Sequence[str] = ()
    embeds = False
    pictures = (0, 0)

    def __init__(self, pipe: Any, spec: PolicySpec) -> None:
        self.pipe, self.spec = pipe, spec
        self.modules = _network(pipe)
        self.path = _single_steps(pipe)
        self.parameters = inspect.signature(type(pipe).__call__).parameters
        if "guidance_scale" not in self.parameters and "true_cfg_scale" not in self.parameters:
            raise Unknown(f"{type(pipe).__name__} takes no guidance_scale")
        plain, two = self._run(PROBES[:1], 0.0, STEPS), self._run(PROBES, 0.0, 1)
        guided = self._run(PROBES[:1], SCALE, STEPS)
        several = len(guided.steps[0].calls) > 1 or self._doubled(guided, plain)
        clock = self._clock(self.sigmas_of(plain)[:-1])
        self.convention: Convention = learned(guided if several else None, plain, two, SCALE, clock)
        how = self.convention
        self.guider = Guider(COMBINES[how.combine or "linear"], joined=how.joined and how.first)
        x = plain.steps[0].x
        self.shape = tuple(x.shape[1:])
        self.channels = -1 if x.ndim == 3 else 0
        self.guidance = 1.0
        shown = torch.as_tensor(plain.made)
        self.pixels = shown[0].numel() // 3
        self.fps = float(self._own("frame_rate") or 16.0) if shown.ndim == 5 else None
        self.targets = _attention(getattr(pipe, self.modules[0]))

    def _own(self, name: str) -> Any:
        known = self.parameters.get(name)
        return None if known is None or known.default is inspect.Parameter.empty else known.default

    @staticmethod
    def _doubled(guided: Heard, plain: Heard) -> bool:
        """Whether the guided run's only call had twice the rows."""
        a, b = guided.steps[0].calls[0].answer, plain.steps[0].calls[0].answer
        return a is not None and b is not None and len(a) == 2 * len(b)

    def call_pipeline(self, guidance: float) -> dict[str, Any]:
        """Everything the pipeline is told beside prompts and latents: what the spec sets, where the pipeline takes it."""
        spec = self.spec
        wanted = {
            "guidance_scale": guidance,
            "true_cfg_scale": guidance if "guidance_scale" not in self.parameters else None,
            "height": spec.height,
            "width": spec.width,
            "num_frames": spec.frames,
            "max_sequence_length": spec.max_sequence_length,
            "use_resolution_binning": False,  # it draws another size and stretches it
        }
        return {name: value for name, value in wanted.items() if value is not None and name in self.parameters}

    def _call(self, prompts: Sequence[str], guidance: float, steps: int, **more: Any) -> Any:
        """The pipeline's own call, with gradients where its inputs have them."""
        named = {**self.call_pipeline(guidance), "num_inference_steps": steps, "prompt": list(prompts), **more}
        if guidance > 1 and "negative_prompt" in self.parameters:
            named.setdefault("negative_prompt", [self.spec.negative] * len(prompts))
        call: Any = type(self.pipe).__call__
        made = getattr(call, "__wrapped__", call)(self.pipe, **named)
        return made.frames if hasattr(made, "frames") else made.images

    @torch.no_grad()
    def _run(
        self, prompts: Sequence[str], guidance: float, steps: int, stop: bool = False, negative: str | None = None
    ) -> Heard:
        draw = torch.Generator().manual_seed(0)
        self.pipe.set_progress_bar_config(disable=True)
        network: nn.Module = getattr(self.pipe, self.modules[0])
        with listening(self.pipe, network, (lambda heard: True) if stop else (lambda heard: False)) as heard:
            more = {} if negative is None else {"negative_prompt": [negative] * len(prompts)}
            heard.made = self._call(prompts, guidance, steps, generator=draw, output_type="pt", **more)
        return heard

    def sigmas(self, steps: int) -> Tensor:
        """The levels of the scheduler after the pipeline has set them."""
        if steps < 1:
            raise ValueError(f"a schedule of {steps} steps; give at least 1")
        if self.path is not paths.flow:
            return ddim.visited(self.pipe.scheduler, steps)
        with self._idle():
            return self.sigmas_of(self._run(PROBES[:1], 0.0, steps, stop=True))

    def sigmas_of(self, heard: Heard) -> Tensor:
        """Those of a run."""
        if self.path is not paths.flow:
            return ddim.visited(self.pipe.scheduler, len(heard.steps))
        if heard.sigmas is None:
            raise Unknown("the scheduler has no sigmas")
        return heard.sigmas.double().cpu()

    def _clock(self, sigma: Tensor) -> Tensor:
        return sigma.double() if self.path is paths.flow else self.path.time(sigma).double()

    def expert(self, sigma: float) -> int:
        return 0

    def encode(self, text: str, pictures: Pictures) -> Encoding:
        """What the network was given of the prompt, when the pipeline first asked it."""
        with self._idle(texts=False):
            heard = self._run([text], 0.0, STEPS, stop=True)
        given = dict(leaves(heard.steps[0].calls[0].given))
        return {_key(path): given[path][0] for path in sorted(self.convention.rows)}

    def negative(self, text: str, pictures: Pictures) -> Encoding:
        """Some pipelines put words before a prompt and none before what is guided away from."""
        how = self.convention
        if how.combine is None:
            return self.encode(text, pictures)
        with self._idle(texts=False):
            heard = self._run(PROBES[:1], SCALE, STEPS, stop=True, negative=text)
        calls = heard.steps[0].calls
        given = dict(leaves(calls[0 if how.joined or how.first else 1].given))
        return {_key(path): given[path][0 if how.first or not how.joined else 1] for path in sorted(how.rows)}

    def call(self, network: nn.Module, x: Tensor, sigma: Tensor, given: Mapping[str, Tensor], guidance: float) -> Tensor:
        how, clock = self.convention, self._clock(sigma)
        state = x
        for d in how.inserted:
            state = state.unsqueeze(d)

        def put(path: str, value: Any) -> Any:
            if path == how.state:
                return state
            if path in how.times:
                time = how.times[path]
                told = time.factor * clock + time.offset
                told = (told if time.dtype.is_floating_point else told.round()).to(time.dtype)
                return told.view(-1, *[1] * len(time.shape)).expand(-1, *time.shape)
            if path in how.rows:
                return given[_key(path)]
            return value.to(x.device) if isinstance(value, Tensor) else value

        u = first_tensor(network(**filled(how.template, put)))
        u = u if how.channels is None else u[:, : how.channels]
        return how.sign * u.reshape(x.shape).float()

    def whole(self, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return x

    def decode(self, latents: Tensor) -> Tensor:
        """What the pipeline makes of final latents: its own call with one step whose result they are."""
        shown = torch.cat([self._decoded(latents[i : i + 1]) for i in range(len(latents))])
        # images are [N, 3, H, W], videos [N, T, 3, H, W]
        return shown.movedim(-3, -1).float()

    def _decoded(self, latents: Tensor) -> Tensor:
        with self._idle(), patched(self.pipe.scheduler, "step", _ending(self.pipe.scheduler.step, latents)):
            return torch.as_tensor(self._call(PROBES[:1], 0.0, 1, output_type="pt", generator=torch.Generator().manual_seed(0)))

    @cached_property
    def _texts(self) -> Any:
        """What encode_prompt returns for the probe."""
        kept: list[Any] = []
        right = self.pipe.encode_prompt

        def note(*args: Any, **kwargs: Any) -> Any:
            kept.append(right(*args, **kwargs))
            return kept[-1]

        with patched(self.pipe, "encode_prompt", note):
            self._run(PROBES[:1], 0.0, 1, stop=True)
        return kept[0]

    def _idle(self, texts: bool = True) -> Any:
        """Inside, the network answers at once, with zeros, and texts are not encoded anew."""
        stack = ExitStack()
        network: nn.Module = getattr(self.pipe, self.modules[0])
        template = self.convention.template

        def zeros(*args: Any, **kwargs: Any) -> Any:
            given = dict(leaves(kwargs))
            state = given.get(self.convention.state, args[0] if args else None)
            answer = torch.zeros_like(state)
            if self.convention.channels is not None:
                answer = torch.cat([answer, answer], 1)
            return (answer,) if template.get("return_dict") is False else _Answer(answer)

        zeros.__signature__ = inspect.signature(network.forward)  # pyright: ignore[reportFunctionMemberAccess]
        stack.enter_context(patched(network, "forward", zeros))
        if texts and hasattr(self.pipe, "encode_prompt"):
            kept = self._texts
            stack.enter_context(patched(self.pipe, "encode_prompt", lambda *args, **kwargs: kept))
        return stack


def _key(path: str) -> str:
    return path.replace("/", "__")


class _Answer(tuple):
    """An answer as a pipeline may read it: by index or as .sample."""

    def __new__(cls, value: Tensor) -> _Answer:
        return super().__new__(cls, (value,))

    @property
    def sample(self) -> Tensor:
        return self[0]


def _ending(right: Any, latents: Tensor) -> Any:
    @functools.wraps(right)
    def step(output: Tensor, time: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (latents.to(x.dtype),)

    return step


def _network(pipe: Any) -> tuple[str, ...]:
    found = [name for name, part in pipe.components.items() if isinstance(part, nn.Module) and name.startswith(NETWORKS)]
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise Unknown(f"{type(pipe).__name__} has {len(found)} networks that denoise ({names}); one is understood")
    return (found[0],)


def _single_steps(pipe: Any) -> Path:
    """The path, and a scheduler with single steps in the place of one that looks back: on a flow Euler's of the same shift, on a
    variance-preserving diffusion DDIM's of the same levels.

    Raises: Unknown for a scheduler of neither.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = pipe.scheduler
    config: Any = scheduler.config
    if config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas"):
        shift = config.get("flow_shift") or 1.0
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=config["num_train_timesteps"], shift=shift)
    elif "beta_schedule" in config:
        pipe.scheduler = ddim.ddim(scheduler)
        trained = getattr(scheduler, "alphas_cumprod", None)
        if trained is None or not torch.allclose(trained.double(), pipe.scheduler.alphas_cumprod.double(), atol=1e-6):
            raise Unknown(f"the levels of its {type(scheduler).__name__} are not those of a DDIMScheduler with its settings")
        return ddim.path(pipe.scheduler)
    elif not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or config.get("invert_sigmas"):
        raise Unknown(f"its {type(scheduler).__name__} is neither of a flow nor of a variance-preserving diffusion")
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    return paths.flow


def _attention(network: nn.Module) -> tuple[str, ...]:
    """Endings of the linear layers that belong to an attention."""
    found: dict[str, None] = {}
    for name, module in network.named_modules():
        parts = name.split(".")
        at = [i for i, part in enumerate(parts) if part.startswith(("attn", "attention", "self_attn", "cross_attn"))]
        if isinstance(module, nn.Linear) and at and at[-1] < len(parts) - 1:
            found[".".join(parts[at[-1] :])] = None
    if not found:
        raise Unknown(f"{type(network).__name__} has no attention layers that could be told by their names")
    return tuple(found)
