"""Run a recipe from beginning to end: before, the loop, after, and everything that is written."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowrl import checkpoint, data, dist, export, settings
from flowrl.data import Prompts
from flowrl.display import Display
from flowrl.dist import World
from flowrl.export.diffusers import savable
from flowrl.export.files import adapters, write_comfy
from flowrl.export.run import about
from flowrl.finite import demand
from flowrl.folder import RunFolder, write_atomic
from flowrl.loop import Parts, Session, begin, choose
from flowrl.models.policy import DiffusersPolicy
from flowrl.recipe import Recipe
from flowrl.report import write as write_report
from flowrl.scoring import Unscored
from flowrl.selection import Selection
from flowrl.sizes import Sizes, cut, derive, describe
from flowrl.types import Policy

from . import build, strengths
from .engine import engine, notes
from .jury import Jury, spread
from .result import outcome

log = logging.getLogger("flowrl")
KEPT = 1.2
"""The evaluation after training is kept so many times what the one before took."""
EMPTY, PAUSE = 5, 2.0
"""So many times in a row nothing may be scored, with so many seconds after the first, twice as many after the next."""
CACHED_PROMPTS = 2000
"""SD3.5's encoding of a prompt takes 2.7 MB."""


Given = tuple[Mapping[str, Any] | None, Any, Policy | None]
"""Values beside the recipe: rewards, prompts, policy."""


@dataclass(frozen=True)
class Result:
    """What a run came to. before, after, gain: as in result.json; None where the run was interrupted or nothing is held out."""

    folder: Path
    iterations: int
    interrupted: bool
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    gain: Mapping[str, Any] | None = None


def train(
    recipe: Recipe | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    rewards: Mapping[str, Any] | None = None,
    prompts: Any = None,
    policy: Policy | None = None,
    resume: str | Path | None = None,
) -> Result:
    """Train a model with rewards and leave a run folder.

    recipe: a Recipe or the name of one (None: what the resumed run was; Recipe() beside a policy or a model of one's own, which
      overrides name as "policy.model"; else "shapes");
    overrides: {"optim.lr": 1e-4, ...};
    rewards: name -> f(images, prompts, metadata) -> scores, or (f, weight), added to the recipe's;
    prompts: anything `data.read` takes, instead of data.prompts;
    policy: a model that is a value (FieldPolicy, or what load_policy made of a pipeline), trained in place instead of loading
      policy.model; of the recipe's policy only the steps count. A run that is resumed wants it again, as new: its weights come
      from the checkpoint.
    resume: the folder of a run to go on with.

    Raises: ValueError, OSError: a sentence each, for settings, prompts, models and folders that cannot be used.
    """
    from flowrl.recipes import named

    if recipe is None:
        model = (overrides or {}).get("policy.model")
        started = named(model or "shapes") if policy is None and model in (None, *build.WORLDS) else Recipe()
        recipe = started if resume is None else settings.load(RunFolder.open(resume).path / "run.yaml")
    recipe = settings.resolve(named(recipe) if isinstance(recipe, str) else recipe, overrides or {})
    world = dist.start(recipe.run.device)
    if not log.hasHandlers():  # a script that set up no logging still sees what was derived
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO if world.main else logging.ERROR)
    try:
        return _train(recipe, (rewards, prompts, policy), None if resume is None else Path(resume), world)
    finally:
        world.stop()


def _train(recipe: Recipe, given: Given, resume: Path | None, world: World) -> Result:
    method, selection = build.method(recipe.method, recipe.sizes.group), build.fitting(recipe)
    recipe, folder = _folder(recipe, resume, world)
    if resume is not None:
        started = settings.load(folder.path / "run.yaml")
        was, now = started.policy.model, recipe.policy.model
        if _another(was, now):
            raise ValueError(f"{folder.path} trains {was}, and {now} is given; leave the model out, or begin another run with it")
        for line in settings.changes(started, recipe):
            log.log(logging.WARNING if world.main else logging.DEBUG, "resumed with another setting: %s", line)
    try:
        parts, held = _parts(recipe, method, selection, given, world)
        judges = build.judges(recipe.evaluate.rewards, world.device)
        sizes, line = _sizes(parts)
        recipe, session = parts.recipe, begin(parts, sizes)
    except BaseException:
        if world.main and resume is None:
            folder.forget()
        raise
    if resume is not None:
        _restore(session, folder, world)
    with world.together():
        if world.main:
            _record(recipe, given[1], folder)
    _free_encoders(parts.policy, (parts.prompts, held), world)
    jury = Jury(parts, held, judges, folder)
    if world.main:
        for said in (line, *notes(parts)):
            log.info("%s", said)
        for name, count in session.weights.bytes().items():
            log.info("weight set %s: %.1f MB", name, count / 2**20)
    if "before" not in session.books and len(held):
        session.books["before"] = _judged(jury, "before", session, folder, times=1)
        _afford(recipe.run.minutes, jury.seconds)
    if jury.watches and not session.iteration and "history" not in session.books:
        jury.quick(session)  # what the guards compare with
    if _loop(parts, session, jury, folder):
        if world.main:
            log.warning("stopped after iteration %d; go on with: flowrl train --resume %s", session.iteration, folder.path)
            write_report(folder.path)
        return Result(folder.path, session.iteration, True)
    return _finish(parts, session, jury, folder)


def _another(was: str, now: str) -> bool:
    """Whether these are two models: a folder may be named by another path, or have moved."""
    before, after = Path(was).expanduser(), Path(now).expanduser()
    if before.exists() and after.exists():
        return not before.samefile(after)
    return was != now and not before.is_absolute()


def _parts(recipe: Recipe, method: Any, selection: Selection, given: Given, world: World) -> tuple[Parts, Prompts]:
    """All that a recipe names or that was given as values, and the prompts held out."""
    rewards, prompts, ready = given
    trained, held = build.prompts(recipe.data, prompts)
    policy, recipe = build.policy(recipe, ready, world)
    demand(policy.modules if isinstance(policy, DiffusersPolicy) else {"": policy.network})
    if recipe.policy.lora.rank and isinstance(policy, DiffusersPolicy):
        savable(type(policy.pipe), list(policy.modules))  # said now rather than when the run is done
    trained, held = (timed(part, policy.fps) for part in (trained, held))
    features = build.features(recipe.evaluate.features, recipe.evaluate.frames)
    if method.features and features is None:
        raise ValueError(
            f"method {recipe.method.name} compares images by features; give evaluate.features=module:function "
            "(images uint8 [N, H, W, 3] -> [N, D]), as flowrl.shapes.judge:features"
        )
    scored, resized = build.rewards(recipe, rewards, world.device), build.resized(recipe.method)
    build.referred(scored, trained)
    rules = build.rules(recipe, scored)
    return Parts(recipe, policy, method, scored, trained, world, selection, resized, features, rules), held


def _afford(minutes: float | None, seconds: float) -> None:
    """A warning where evaluations of so many seconds, before and after, leave less than a quarter of the time to train in."""
    if minutes is not None and 60 * minutes < (1 + KEPT) * seconds / 0.75:
        log.warning(
            "an evaluation takes %.0f s and there are two, so of %g minutes %.0f s are left to train in; lower evaluate.prompts or "
            "evaluate.images, or raise run.minutes", seconds, minutes, max(0.0, 60 * minutes - (1 + KEPT) * seconds)
        )  # fmt: skip


def _folder(recipe: Recipe, resume: Path | None, world: World) -> tuple[Recipe, RunFolder]:
    """The run's folder, made by the main process."""
    stamp = datetime.fromtimestamp(world.same(time.time())).strftime("%Y%m%d-%H%M%S")
    path = resume or Path(recipe.run.folder or f"runs/{recipe.run.name}-{stamp}")
    folder = RunFolder(path)
    with world.together():
        if world.main:
            folder = (RunFolder.create if resume is None else RunFolder.open)(path)
    return replace(recipe, run=replace(recipe.run, folder=str(path))), folder


def timed(prompts: Prompts, fps: float | None) -> Prompts:
    """Prompts of videos, with their rate as metadata "fps", which rewards of motion read; another rate given there is wrong, as the
    policy alone decides, and is replaced."""
    if fps is None:
        return prompts
    if other := [m["fps"] for m in prompts.metadata if m.get("fps", fps) != fps]:
        log.warning("metadata say fps %s, but the policy makes videos of %g frames a second, which is what counts", other[0], fps)
    heldout = None if prompts.heldout is None else timed(prompts.heldout, fps)
    return replace(prompts, metadata=tuple({**m, "fps": fps} for m in prompts.metadata), heldout=heldout)


def _record(recipe: Recipe, prompts: Any, folder: RunFolder) -> None:
    """run.yaml, the resolved recipe, in one step; not before all it names has been found, so that a failed start leaves no run.

    Prompts that were given as a value go into prompts.jsonl beside it.
    """
    if isinstance(prompts, str | Path):
        recipe = replace(recipe, data=replace(recipe.data, prompts=str(prompts)))
    elif prompts is not None:
        given, path = data.read(prompts, recipe.data.prompt, recipe.data.image), folder.path / "prompts.jsonl"
        lines = [json.dumps({**row, "prompt": text}, default=str) for text, row in zip(given.text, given.metadata, strict=True)]
        write_atomic(path, ("\n".join(lines) + "\n").encode())
        recipe = replace(recipe, data=replace(recipe.data, prompts=str(path), prompt="prompt"))
    settings.dump(recipe, folder.path / ".run.yaml").replace(folder.path / "run.yaml")


def _restore(session: Session, folder: RunFolder, world: World) -> None:
    """Go on from the newest whole checkpoint; a run that was stopped before its first one begins again.

    Raises: FileNotFoundError where there are checkpoints and all are damaged.
    """
    if any(folder.checkpoints.glob("[0-9]*")):
        iteration, state, path = checkpoint.load_latest(folder.path)
        session.load(iteration, state)
        log.info("resumed %s at iteration %d from %s", folder.path, iteration, path.name)
    else:
        log.info("%s has no checkpoint yet: the run begins again", folder.path)
    with world.together():
        if world.main:
            folder.cut(session.iteration)


def _free_encoders(policy: Policy, prompts: Sequence[Prompts], world: World) -> None:
    """On a GPU: encode every prompt once and drop the text encoders, where the encodings of all of them fit."""
    asked = [pair for some in prompts for pair in zip(some.text, some.images, strict=True)]
    if not world.device.startswith("cuda") or len(set(asked)) > CACHED_PROMPTS:
        return
    policy.free_encoders([text for text, _ in asked], [image for _, image in asked])
    torch.cuda.empty_cache()


def _sizes(parts: Parts) -> tuple[Sizes, str]:
    """Slices and blocks for this plan, and a line that says so."""
    recipe, world = parts.recipe, parts.world
    try:
        plan = parts.method.plan_at(0, parts.policy.sigmas(recipe.policy.steps), 0)
        held = engine(parts.method).rehearse(parts, plan)
    except ValueError as error:
        of = f"{build.told(recipe.method)}, policy.steps {recipe.policy.steps}, sizes.group {recipe.sizes.group}"
        raise ValueError(f"{error} ({of})") from error
    # what a selection has against the prompts is said now as well
    choose(parts, 0, parts.selection.init())
    count, most = recipe.sizes.prompts * len(plan.roots), max(1, parts.policy.rows_that_fit() // held)
    sizes = derive(recipe.sizes, count, parts.method.updates, world.size, most)
    blocks = cut(plan, recipe.sizes.prompts, sizes, parts.method.updates, world.size)
    return sizes, describe(sizes, blocks, plan, recipe.sizes.prompts, world.size, parts.method.updates)


@contextmanager
def _signals(world: World) -> Iterator[list[float]]:
    """Ctrl-C and SIGTERM ask the loop to stop after the iteration; a second one stops at once. Yields when they came."""
    caught: list[float] = []
    # a launcher passes on the Ctrl-C that the terminal has already sent to every process: an echo is no second one
    echo = 3.0 if world.size > 1 else 0.0

    def note(number: int, frame: object) -> None:
        if caught and time.monotonic() - caught[0] > echo:
            raise KeyboardInterrupt
        caught.append(time.monotonic())

    try:
        old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        old = {}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _loop(parts: Parts, session: Session, jury: Jury, folder: RunFolder) -> bool:
    """Iterate until the iterations or the minutes are used up; True if a signal stopped it. Checkpoints on the way."""
    recipe, world = parts.recipe, parts.world
    run, spec = recipe.run, recipe.evaluate
    jury.seconds = jury.seconds or session.books.get("before", {}).get("seconds", 0.0)
    began = time.perf_counter() - session.books.get("elapsed", jury.seconds)
    title = f"{recipe.method.name} on {recipe.policy.model}"
    saved, iterate = session.iteration, engine(parts.method).iterate

    def save() -> None:
        session.books["elapsed"] = time.perf_counter() - began
        with world.together():
            if world.main:
                checkpoint.save(folder.path, session.iteration, session.state(), session.books.get("score"), run.keep)

    if not session.iteration:
        save()  # a run that is stopped early keeps its evaluation before
    with _signals(world) as caught, Display(run.iterations, title, quiet=not world.main) as display:
        while session.iteration < run.iterations:
            row: dict[str, Any] = dict(iterate(parts, session))
            last = session.iteration == run.iterations
            jury.note(session, row)
            looked = bool(spec.every) and len(jury.held) > 0 and session.iteration % spec.every == 0
            if looked:
                row |= jury.quick(session)
            with world.together():
                if world.main:
                    folder.log(row)
                    display.update({**row, "minutes_budget": run.minutes, "minutes_elapsed": (time.perf_counter() - began) / 60})
            stop = world.any(bool(caught))
            needed = time.perf_counter() - began + KEPT * jury.seconds + row["seconds/total"]
            late = run.minutes is not None and world.same(needed) > 60 * run.minutes
            lost = session.empty >= EMPTY
            if session.iteration - saved >= run.save_every or stop or late or last or lost or (looked and jury.leads(session)):
                save()
                saved = session.iteration
            if stop:
                return True
            if lost:
                raise Unscored(f"nothing could be scored {EMPTY} times in a row, see the warnings above; {_later(folder)}")
            if looked and jury.stops(session):
                _go_back(session, folder)
                break
            if late:
                log.info(
                    "time is up: the evaluation after training is kept %.0f s of the %.1f minutes", KEPT * jury.seconds, run.minutes
                )
                break
            if session.empty and not last:
                _wait(session.empty, caught)
    return False


def _later(folder: RunFolder) -> str:
    return f"once that works again, go on with: flowrl train --resume {folder.path}"


def _wait(times: int, caught: Sequence[float] = ()) -> None:
    """Before what could not be scored so many times is tried again; a signal ends it."""
    seconds = PAUSE * 2 ** (times - 1)
    log.warning("waiting %g s", seconds)
    end = time.monotonic() + seconds
    while not caught and (left := end - time.monotonic()) > 0:
        time.sleep(min(0.2, left))


def _go_back(session: Session, folder: RunFolder) -> None:
    """To the best checkpoint, which the run then ends with."""
    at, why = session.iteration, session.books["alarm"]
    best = max((e for e in checkpoint.entries(folder.path) if e.score is not None), key=lambda e: (e.score, e.iteration))
    session.load(*checkpoint.load(best.path))
    session.books["stopped"] = {"at": at, "kept": best.iteration, "why": why}
    log.warning("stopped at iteration %d; the run ends with its best checkpoint, of iteration %d", at, best.iteration)


def _judged(jury: Jury, when: str, session: Session, folder: RunFolder, times: int = EMPTY) -> dict[str, Any]:
    """The protocol, again where its headline judge could score nothing.

    Raises: Unscored where it could not `times` times.
    """
    for tried in range(1, times + 1):
        found = jury.full(when, session)
        if np.isfinite(np.array(next(iter(found["scores"].values())), dtype=float)).any():
            return found
        if tried < times:
            _wait(tried)
    raise Unscored(f"{next(iter(jury.judges))} could score no held-out image, see the warnings above; {_later(folder)}")


def _finish(parts: Parts, session: Session, jury: Jury, folder: RunFolder) -> Result:
    """After: the protocol again, the adapter at several strengths, the weights for others, result.json and the report."""
    world = parts.world
    after = _judged(jury, "after", session, folder) if len(jury.held) else None
    result = outcome(parts, session, jury, folder, after)
    few = jury.held.take(spread(len(jury.held), strengths.shown(parts.policy)))
    drawn = strengths.drawn(parts, session, few) if len(few) and parts.recipe.policy.lora.rank else {}
    with world.together():
        if world.main:
            if drawn:
                strengths.save_strengths(folder, few, drawn)
            with session.weights.using(parts.method.export):
                _export(parts, folder, session.iteration, drawn)
            folder.write_json("result.json", result)
            write_report(folder.path)
    return Result(folder.path, session.iteration, False, *(result.get(k) for k in ("before", "after", "gain")))


def _export(parts: Parts, folder: RunFolder, iterations: int, drawn: Mapping[float, np.ndarray]) -> None:
    """lora/: what diffusers finds there, and beside it a file named after the run's folder for ComfyUI."""
    export.save(parts.policy, folder.lora)
    if not parts.recipe.policy.lora.rank:
        return
    sides = next((pictures.shape[-2:-4:-1] for pictures in drawn.values()), None)
    pipeline = type(parts.policy.pipe).__name__
    try:
        write_comfy(folder.lora, adapters(parts.policy.modules), about(parts.recipe, pipeline, iterations, sides))
    except ValueError as error:  # the run is done, and its weights are safe
        log.warning("no file for ComfyUI: %s", error)
