"""Held-out evaluation of a run: quick looks on the way, which the guards watch, and the full protocol before and after."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from flowrl import guards
from flowrl.data import Prompts
from flowrl.folder import RunFolder
from flowrl.guards import Look
from flowrl.heldout import Judged, judge
from flowrl.loop import Parts, Session, within_memory
from flowrl.rewards.base import Relative, Reward, TrainableReward
from flowrl.sizes import Sizes

from . import build
from .gallery import SHOWN, save_images, save_sheet

log = logging.getLogger("flowrl")


def bench(parts: Parts[Any], given: Mapping[str, Reward]) -> dict[str, Reward]:
    """Who judges held-out images: the judges that were given, then the rewards that are trained for, which are always seen beside.

    A reward that compares images, or learns, gives no level that could be followed; it judges only where there is nobody else.
    """
    trained = {name: reward for name, (reward, _) in parts.rewards.items()}
    steady = {name: reward for name, reward in trained.items() if not isinstance(reward, TrainableReward) and not _relative(reward)}
    return {**given, **{name: reward for name, reward in steady.items() if name not in given}} or trained


def _relative(reward: Reward) -> bool:
    return isinstance(reward, Relative) and reward.relative


class Jury:
    """judges: by name, the first is the headline;  free: those of them that are not trained for."""

    def __init__(self, parts: Parts[Any], held: Prompts, given: Mapping[str, Reward], folder: RunFolder) -> None:
        spec = parts.recipe.evaluate
        self.parts, self.folder, self.spec, self.guard = parts, folder, spec, parts.recipe.guard
        self.judges = bench(parts, given)
        if all(map(_relative, self.judges.values())) and parts.world.main and len(held):
            log.warning(
                "%s only compares the images of a prompt, so its mean says nothing of progress; name a judge that scores images "
                "alone, such as --set evaluate.rewards='[clip]'", ", ".join(self.judges)
            )  # fmt: skip
        self.free = [name for name in self.judges if not (name in parts.rewards and parts.rewards[name][1])]
        self.held = held.take(spread(len(held), spec.prompts or len(held)))
        self.few = self.held.take(spread(len(self.held), spec.quick))
        self.features = build.features(spec.features, spec.frames)
        self.tasks = [m.get("tag") for m in self.held.metadata]
        self.shown = spread(len(self.held), SHOWN)
        self.seconds = 0.0

    @property
    def watches(self) -> bool:
        return self.guard.act != "off" and self.spec.every > 0 and len(self.held) > 0

    def _judge(self, prompts: Prompts, images: int, session: Session, features: Any = None, show: Collection[int] = ()) -> Judged:
        def attempt(sizes: Sizes) -> Judged:
            with session.weights.using(self.parts.method.export):
                return judge(
                    self.parts.policy,
                    prompts,
                    self.judges,
                    images,
                    self.spec.steps,
                    sizes,
                    self.parts.world,
                    features,
                    self.spec.guidance,
                    show,
                    session.states["rewards"],
                )

        return within_memory(session, attempt)

    def quick(self, session: Session) -> dict[str, float]:
        """The judges' means over an image of each of a few captions, and how the pictures look; the images go to
        samples/<iteration>.png. What the guards say is logged, and is in session.books["alarm"]."""
        # one image alone has nothing to be compared with
        each = 2 if any(_relative(reward) for reward in self.judges.values()) else 1
        seen = self._judge(self.few, each, session, show=spread(len(self.few), SHOWN))
        scores = next(iter(seen.scores.values()))
        with self.parts.world.together():
            if self.parts.world.main:
                save_sheet(self.folder, session.iteration, self.few, seen, scores)
        row = {"heldout/score": _mean(scores)}
        if len(seen.scores) > 1:
            row |= {f"heldout/{name}": _mean(values) for name, values in seen.scores.items()}
        row |= {f"look/{name}": value for name, value in seen.looks.items()}
        bad = self._watch(session, seen)
        # an evaluation that looks like hacking is nobody's best
        session.books["score"] = math.nan if bad else row["heldout/score"]
        return {**row, "guard/suspects": float(len(bad))} if self.watches else row

    def _watch(self, session: Session, seen: Judged) -> list[str]:
        """What the guards have against this evaluation, in the light of those before it."""
        if not self.watches:
            return []
        recent: list[Mapping[str, float]] = session.books.pop("recent", [])
        history: list[dict[str, Any]] = session.books.setdefault("history", [])
        if len(history) == 1 and recent:  # the first iteration trained from what the first evaluation saw
            history[0]["trained"] = recent[0]["reward/mean"]
            history[0]["looks"] |= {name[5:]: v for name, v in recent[0].items() if name.startswith("look/")}
        since = {name: float(np.mean([row[name] for row in recent])) for name in (recent[0] if recent else {})}
        looks = {**seen.looks, **{name[5:]: value for name, value in since.items() if name.startswith("look/")}}
        scores = {name: [_mean(row) for row in values] for name, values in seen.scores.items()}
        history.append(asdict(Look(session.iteration, scores, since.get("reward/mean", math.nan), looks)))
        told = [Look(**one) for one in history]
        session.books["alarm"] = guards.verdict(self.guard, told, self.free)
        bad = guards.suspects(self.guard, told, self.free)
        if session.books["alarm"] and self.parts.world.main:
            log.warning("this looks like reward hacking: %s", "; ".join(session.books["alarm"]))
        return bad

    def note(self, session: Session, row: Mapping[str, float]) -> None:
        """What the guards want of an iteration's row."""
        if self.watches and "reward/mean" in row:
            kept = {name: v for name, v in row.items() if name == "reward/mean" or name.startswith("look/")}
            session.books.setdefault("recent", []).append(kept)

    def stops(self, session: Session) -> bool:
        return self.guard.act == "stop" and bool(session.books.get("alarm"))

    def leads(self, session: Session) -> bool:
        """Whether the last evaluation is the best so far, where the run may have to go back to it."""
        if self.guard.act != "stop" or not self.watches or math.isnan(session.books["score"]):
            return False
        head = next(iter(self.judges))
        return session.books["score"] >= max(Look(**one).mean(head) for one in session.books["history"])

    def full(self, when: str, session: Session) -> dict[str, Any]:
        """The protocol; images of a few captions are saved under samples/<when>/."""
        clock = time.perf_counter()
        seen = self._judge(self.held, self.spec.images, session, self.features, self.shown)
        with self.parts.world.together():
            if self.parts.world.main:
                pictured = getattr(self.parts.policy, "pictured", False)
                save_images(self.folder, when, self.held, self.tasks, seen, self.parts.policy.fps, pictured)
        self.seconds = time.perf_counter() - clock
        return {"scores": {n: v.tolist() for n, v in seen.scores.items()}, "diversity": seen.diversity, "seconds": self.seconds}


def _mean(values: np.ndarray) -> float:
    """Over what could be scored; NaN where nothing could."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` indices, evenly spaced."""
    return sorted({int(i * count / wanted) for i in range(wanted)}) if wanted < count else list(range(count))
