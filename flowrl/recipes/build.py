"""From a recipe's plain data to the values the loop takes. The only place that meets models and rewards by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from flowrl import data, direct, methods, selection, settings
from flowrl.data import Prompts
from flowrl.direct import Direct
from flowrl.dist import World
from flowrl.loading import load_policy
from flowrl.looks import FRAMES
from flowrl.models.policy import DiffusersPolicy
from flowrl.recipe import GIVEN, DataSpec, LoraSpec, MethodSpec, PolicySpec, Recipe, SelectionSpec
from flowrl.rewards import TABLE, Place, Rule, make
from flowrl.rewards.base import Refers, Reward
from flowrl.rewards.load import load
from flowrl.rewards.videos import chosen
from flowrl.said import near
from flowrl.selection import Selection
from flowrl.types import Method, Policy

from .style import prompts as styled

SMALLEST = 2
"""A group needs two images before one can be better than another."""

NEEDED = ("network", "path", "guidance", "encode", "predict", "sigmas", "latent_shape", "decode", "images", "trainable")
"""What every policy has."""
WORLDS = {"shapes": "flowrl.shapes.protocol", "shapes_video": "flowrl.shapes_video.protocol"}
"""Embedded prompts by name: the module that has their `training` and held-out `rows`."""

METHODS: dict[str, Callable[..., Method | Direct]] = {**methods.TABLE, **direct.TABLE}
"""Every method by name: those that compare images, and those that follow their reward's gradient."""


def method(spec: MethodSpec, group: int) -> Method | Direct:
    """The method a spec names, with its arguments checked against the function's own.

    Raises: ValueError for an unknown name or argument, a group too small to compare, or arguments the method refuses.
    """
    if group < SMALLEST and spec.name not in direct.TABLE:
        raise ValueError(
            f"sizes.group is {group}: a group of {group} has nothing to compare with, so every advantage is 0; "
            f"use at least {SMALLEST}"
        )
    make_method = METHODS.get(spec.name) or (load(spec.name, "method") if ":" in spec.name else None)
    if make_method is None:
        hint = near(spec.name, METHODS)
        raise ValueError(
            f"method {spec.name!r} is unknown{hint}; there are: {', '.join(METHODS)}, module:function or file.py:function"
        )
    if "group" in spec.args:
        raise ValueError("the group size is sizes.group; take method.args.group out")
    arguments = settings.arguments(make_method, {**spec.args, "group": group})
    try:
        return make_method(**arguments)
    except ValueError as error:
        raise ValueError(f"{error} ({told(spec)}, sizes.group {group})") from error


def told(spec: MethodSpec) -> str:
    """The settings that a method is made of, for messages."""
    given = ", ".join(f"{name}={value}" for name, value in spec.args.items())
    return f"method {spec.name} with {f'method.args {given}' if given else 'its own arguments'}"


def resized(spec: MethodSpec) -> Callable[[int], Method | Direct]:
    """The method at any group size; each is built once."""
    return cache(partial(method, spec))


def policy(recipe: Recipe, given: Policy | None, world: World) -> tuple[Policy, Recipe]:
    """The policy a recipe names; or the one that was given as a value, with the recipe saying so.

    Raises: ValueError for a value whose guidance or device is not the recipe's, and for a run of such a value without it; TypeError
    for a value that is no policy.
    """
    model = recipe.policy.model
    if given is None:
        if model.startswith(GIVEN):
            raise ValueError(f"the model of this run was a value of Python's, a {model[len(GIVEN) :]}; give it again: policy=...")
        return cast(Policy, load_policy(recipe.policy, world.device, seed=recipe.run.seed)), recipe
    _is_policy(given)
    if recipe.policy.guidance not in (None, given.guidance):
        raise ValueError(f"policy.guidance is {recipe.policy.guidance}, that of the given policy {given.guidance}; set it there")
    device, kind = given.trainable()[0][1].device.type, torch.device(world.device).type
    if device != kind:
        raise ValueError(f"the given policy is on {device}, the run on {kind}; move its network, or set run.device to {device}")
    known = given.spec if isinstance(given, DiffusersPolicy) else PolicySpec(lora=LoraSpec(rank=0))
    said = {"model": f"{GIVEN}{type(given).__name__}", "guidance": given.guidance, "steps": recipe.policy.steps}
    return given, replace(recipe, policy=replace(known, **said))


def _is_policy(given: object) -> None:
    """Raises: TypeError for a value without what every policy has, with how to make one of it."""
    kind = type(given).__name__
    if isinstance(given, nn.Module):
        raise TypeError(f"policy is a {kind}, a bare network: wrap it in flowrl.models.FieldPolicy(network, shape)")
    if isinstance(given, str | Path | PolicySpec) or hasattr(given, "components"):
        raise TypeError(f"policy is a {kind}: make a policy of it, policy=flowrl.load_policy(...)")
    if lacking := [name for name in NEEDED if not hasattr(given, name)]:
        raise TypeError(
            f"policy is a {kind}, which is none (it has no {', '.join(lacking)}): give what flowrl.load_policy returned, or a "
            "flowrl.models.FieldPolicy"
        )


def chooser(spec: SelectionSpec) -> Selection:
    """The selection of prompts a spec names, with its arguments checked against the function's own.

    Raises: ValueError for an unknown name or argument, or arguments the selection refuses.
    """
    make_selection = selection.TABLE.get(spec.name) or (load(spec.name, "selection") if ":" in spec.name else None)
    if make_selection is None:
        hint = near(spec.name, selection.TABLE)
        raise ValueError(
            f"data.selection.name {spec.name!r} is unknown{hint}; there are: {', '.join(selection.TABLE)}, or module:function"
        )
    return make_selection(**settings.arguments(make_selection, spec.args, "data.selection.args"))


def fitting(recipe: Recipe) -> Selection:
    """`chooser`, once the method has been built at every group size it may ask for.

    Raises: ValueError for what `chooser` refuses, and where sizes, selection and method do not go together.
    """
    made, at = chooser(recipe.data.selection), resized(recipe.method)
    for size in made.sizes(recipe.sizes.prompts, recipe.sizes.group):
        try:
            at(size)
        except ValueError as error:
            if size == recipe.sizes.group:
                raise
            raise ValueError(
                f"data.selection {recipe.data.selection.name} may give a prompt a group of {size}, which {recipe.method.name} "
                f"cannot have ({error}); set data.selection.args.step, of which all groups are multiples"
            ) from None
    return made


def prompts(spec: DataSpec, given: Any = None) -> tuple[Prompts, Prompts]:
    """(train, held out) of a recipe, or of prompts given as a value."""
    if spec.style is None:
        return _plain(spec, given)
    alone = given is None and spec.prompts == spec.style.images
    return styled(spec.style, None if alone else _plain(spec, given), spec.heldout)


def _plain(spec: DataSpec, given: Any) -> tuple[Prompts, Prompts]:
    if given is None and spec.prompts in WORLDS:
        protocol = import_module(WORLDS[spec.prompts])
        return data.read(protocol.training(), "prompt"), data.read(protocol.rows(), "prompt")
    every = data.read(spec.prompts if given is None else given, spec.prompt, spec.image)
    return data.split(every, spec.heldout, spec.prompt, spec.image)


def rewards(recipe: Recipe, given: Mapping[str, Any] | None, device: str) -> dict[str, tuple[Reward, float]]:
    """name -> (reward, factor). given: name -> callable, or (callable, factor), for those that are Python values.

    Raises: ValueError where there is no reward, or one name stands for two.
    """
    out: dict[str, tuple[Reward, float]] = {}
    for spec in recipe.rewards:
        made = make(spec.name, place=Place(spec.device or device, spec.dtype, spec.batch, spec.offload, spec.frames))
        # GenEval says by whom it is judged; a reward of the user's is called what the user calls it
        name = made.name if spec.name.partition(":")[0] in TABLE else spec.name
        if name in out:
            raise ValueError(f"reward {name!r} is given twice; add the weights up instead")
        out[name] = (made, spec.weight)
    for name, value in (given or {}).items():
        if name in out:
            raise ValueError(f"reward {name!r} is given twice, in the recipe and as a value; give one of them another name")
        reward, factor = value if isinstance(value, tuple) else (value, 1.0)
        out[name] = (make(reward, name, place=device), float(factor))
    if not out:
        raise ValueError("there is no reward to train for; give --reward NAME (flowrl train --help shows the forms)")
    if not any(factor for _, factor in out.values()):
        raise ValueError(f"every reward ({', '.join(out)}) has weight 0, so nothing is trained for; give one of them a weight")
    return out


def referred(made: Mapping[str, tuple[Reward, float]], prompts: Prompts) -> None:
    """Raises: ValueError where a reward needs reference images and no prompt has one."""
    for name, (reward, _) in made.items():
        if isinstance(reward, Refers) and reward.refers and not any(prompts.images):
            raise ValueError(
                f"reward {name!r} compares with reference images, and these prompts have none; give a folder ({name}:FOLDER), or "
                "prompts with an image each (data.image)"
            )


def rules(recipe: Recipe, made: Iterable[str]) -> dict[str, Rule]:
    """name -> what the reward does beside being added up, for those that do more. made: the names, in the recipe's order."""
    asked = {name: Rule(spec.threshold, spec.gate) for spec, name in zip(recipe.rewards, made, strict=False)}
    return {name: rule for name, rule in asked.items() if rule != Rule()}


def judges(names: Sequence[str], device: str) -> dict[str, Reward]:
    return {name: make(name, place=device) for name in names}


def features(name: str | None, frames: int | None = FRAMES) -> Callable[..., Any] | None:
    """The function of images a recipe names; of videos it sees so many frames one by one, and the mean of what it says of them is
    taken.  frames None: it is one of videos, and sees them whole."""
    if name is None:
        return None
    made = load(name, "features")

    def over_frames(images: np.ndarray) -> Any:
        if images.ndim == 4 or frames is None:
            return made(images)
        some = images[:, chosen(images.shape[1], frames)]
        told = np.asarray(made(some.reshape(-1, *some.shape[2:])))
        return told.reshape(len(images), -1, told.shape[-1]).mean(1)

    return over_frames
