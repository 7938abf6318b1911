"""flowrl train."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flowrl.recipe import Recipe

TEXT = ("device", "dtype")
"""Fields of a reward that are never numbers."""
UNSAID = ""
"""Prompts of a recipe that was begun with a model alone."""


def train(
    recipe: Annotated[str | None, typer.Argument(help="A recipe (shapes, style), or a YAML file such as a run's run.yaml.")] = None,
    model: Annotated[str | None, typer.Option(help="A hub name, a folder in diffusers format, or shapes (embedded).")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WEIGHT[,gate=X]", help="A name, module:name or file.py:function; flowrl rewards."),
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="A file or folder of prompts, hf:owner/name:split, or shapes.")] = None,
    images: Annotated[str | None, typer.Option(help="Recipe style: a folder of 10 to 50 images, captions in name.txt.")] = None,
    trigger: Annotated[str | None, typer.Option(help="Recipe style: the word that asks for it.")] = None,
    vram: Annotated[float | None, typer.Option(min=1, help="GB of the GPU: settings with which the model fits it.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting: optim.lr=1e-4.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of noise, prompts and weights (run.seed).")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the run (run.folder); default runs/NAME-TIME.")] = None,
    iterations: Annotated[int | None, typer.Option(help="How many iterations (run.iterations).")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so many minutes (run.minutes).")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with the run in this folder.")] = None,
) -> None:
    """Train a model with rewards and leave a run folder.

    Examples:

        flowrl train shapes                          # the embedded model; no downloads

        flowrl train shapes --seed 1 --set optim.lr=1e-4

        flowrl train --model stabilityai/stable-diffusion-3.5-medium --reward clip=1 --prompts prompts.txt

        flowrl train --model Tongyi-MAI/Z-Image --vram 24 --reward hpsv2.1=1 --prompts prompts.txt

        flowrl train style --images my_style/ --trigger mystyle --model stabilityai/stable-diffusion-3.5-medium

        flowrl train --model my/model --reward clip=1 --reward mine.py:brightness=0.2 --prompts prompts.txt

        flowrl train runs/some-run/run.yaml --out runs/again      # repeat a run

        flowrl train --resume runs/some-run
    """
    shortcuts = {
        "policy.model": model, "data.prompts": prompts, "run.seed": seed, "run.folder": out,
        "run.iterations": iterations, "run.minutes": minutes,
    }  # fmt: skip
    given = {key: value for key, value in shortcuts.items() if value is not None}
    looks = {key: value for key, value in {"images": images, "trigger": trigger}.items() if value is not None}
    resolved = build(recipe, given, reward or [], settings or [], resume, looks, vram)

    from flowrl.cli import screen
    from flowrl.recipes.run import train as run

    speaks = int(os.environ.get("RANK", 0)) == 0
    logging.basicConfig(format="%(message)s")
    logging.getLogger("flowrl").setLevel(logging.INFO if speaks else logging.ERROR)
    result = run(resolved, resume=None if resume is None else str(resume))
    if result.interrupted:
        raise typer.Exit(130)
    if speaks:
        screen.final(Path(result.folder))


def build(
    name: str | None,
    shortcuts: Mapping[str, Any],
    rewards: Sequence[str] = (),
    settings: Sequence[str] = (),
    resume: Path | None = None,
    looks: Mapping[str, str] | None = None,
    vram: float | None = None,
) -> Recipe:
    """The recipe a command line means: the named one or the file's, then --vram, then --model, --reward and the like, then --set.

    looks: images and trigger of the recipe `style`.  vram: GB that the model has to fit into.

    Raises: ValueError where nothing says what to train, or an option and --set give the same setting; where a model that brings no
    prompts is given none.
    """
    from flowrl.settings import resolve

    if name == "style" or looks:
        base = _style(name, looks or {}, shortcuts.get("policy.model", "shapes"))
    else:
        base = _base(name, "policy.model" in shortcuts, resume)
    if vram is not None:
        from flowrl.memory import overrides

        base = resolve(base, overrides(str(shortcuts.get("policy.model", base.policy.model)), vram))
    shortcuts = dict(shortcuts)
    if rewards:
        shortcuts["rewards"] = [asked(text) for text in rewards]
    for text in settings:
        key = text.partition("=")[0].strip()
        if key in shortcuts:
            raise ValueError(f"{key} is given twice: by an option of its own and by --set {text}; leave one out")
    return _prompted(resolve(resolve(base, shortcuts), settings))


def _prompted(recipe: Recipe) -> Recipe:
    """The recipe, whose prompts are the embedded model's own where nothing gave any.

    Raises: ValueError where the model is no embedded one.
    """
    if recipe.data.prompts != UNSAID:
        return recipe
    from flowrl.models import EMBEDDED
    from flowrl.settings import resolve

    model = recipe.policy.model
    if model not in EMBEDDED:
        raise ValueError(
            f"nothing says which prompts {model} is to be trained on: give --prompts FILE, or --prompts shapes for the embedded "
            "captions"
        )
    return resolve(recipe, {"data.prompts": model})


def asked(text: str) -> dict[str, Any]:
    """NAME[=WEIGHT][,FIELD=VALUE ...] as the fields of a RewardSpec: "geneval=1,gate=0.8", "hpsv3,device=cuda:1,offload=true"."""
    from flowrl.fields import fields_of
    from flowrl.recipe import RewardSpec
    from flowrl.rewards import parse
    from flowrl.rewards.names import FIELD
    from flowrl.yamlfile import scalar

    kinds = {name: kind for name, kind in (fields_of(RewardSpec) or {}).items() if name not in ("name", "weight")}
    given: dict[str, Any] = {}
    for name, value in FIELD.findall(text):
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kinds)}"
            raise ValueError(f"reward {text!r} has no field {name!r}; {hint}")
        if name in given:
            raise ValueError(f"reward {text!r} gives {name} twice")
        given[name] = value if name in TEXT else scalar(value, f"--reward {text}: {name}")
    name, weight = parse(FIELD.sub("", text))
    return {"name": name, "weight": weight, **given}


def _style(name: str | None, looks: Mapping[str, str], model: str) -> Recipe:
    from flowrl.recipes import style

    if name != "style" or set(looks) != {"images", "trigger"}:
        given = " and ".join(f"--{option}" for option in looks) or "neither"
        raise ValueError(
            f"a style is trained by: flowrl train style --images FOLDER --trigger WORD; here the recipe is {name or 'none'}, and "
            f"of the two options {given} is given. A run that was stopped goes on with --resume RUN alone"
        )
    return style(looks["images"], looks["trigger"], model)


def _base(name: str | None, has_model: bool, resume: Path | None) -> Recipe:
    from flowrl.recipe import DataSpec, Recipe
    from flowrl.settings import load

    if name is None and resume is not None:
        if not (resume / "run.yaml").is_file():
            raise FileNotFoundError(f"{resume} holds no run to go on with: it has no run.yaml; give the folder of a run")
        return load(resume / "run.yaml")
    if name is None:
        if not has_model:
            raise ValueError("nothing to train: name a recipe (flowrl train shapes) or a model (--model NAME --reward clip=1 ...)")
        return Recipe(data=DataSpec(prompts=UNSAID))
    if name.endswith((".yaml", ".yml")):
        return load(name)
    from flowrl.recipes import named

    return named(name)
