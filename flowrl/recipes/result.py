"""What result.json says of a run: how it went, and what changed on held-out prompts."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowrl import evaluate
from flowrl.folder import RunFolder
from flowrl.loop import Parts, Session

from .engine import notes
from .jury import Jury


def outcome(parts: Parts, session: Session, jury: Jury, folder: RunFolder, after: Mapping[str, Any] | None) -> dict[str, Any]:
    """What result.json holds."""
    recipe = parts.recipe
    result: dict[str, Any] = {
        "method": recipe.method.name,
        "model": recipe.policy.model,
        "seed": recipe.run.seed,
        "iterations": session.iteration,
        "minutes": (session.books.get("elapsed", 0.0) + jury.seconds) / 60,
        "folder": str(folder.path),
        "notes": notes(parts),
        "versions": versions(),
        "timing": {
            "before": session.books.get("before", {}).get("seconds"),
            "train": session.seconds,
            "after": after and after["seconds"],
        },
        "protocol": {
            "captions": len(jury.held),
            "images": recipe.evaluate.images,
            "steps": recipe.evaluate.steps,
            "guidance": parts.policy.guidance if recipe.evaluate.guidance is None else recipe.evaluate.guidance,
            "judge": next(iter(jury.judges)),
        },
    }
    if "stopped" in session.books:
        told = result["stopped"] = session.books["stopped"]
        why = f"Stopped at iteration {told['at']} by its guards, and ended with the checkpoint of iteration {told['kept']}"
        result["notes"] = [*result["notes"], f"{why}: {'; '.join(told['why'])}."]
    if after is not None:
        result |= compared(session.books["before"], after, jury.tasks)
    return result


def compared(before: Mapping[str, Any], after: Mapping[str, Any], tasks: list[str | None]) -> dict[str, Any]:
    """The headline judge's accuracies and paired gain; further judges under "judges", feature distances under "diversity"."""
    out: dict[str, Any] = {}
    for i, name in enumerate(before["scores"]):
        old, new = np.array(before["scores"][name], dtype=float), np.array(after["scores"][name], dtype=float)
        if i and not (np.isfinite(old).any(1) & np.isfinite(new).any(1)).any():
            continue  # a judge beside the headline that was not there
        first, last = evaluate.summarise(old, tasks), evaluate.summarise(new, tasks)
        pair = {"before": first, "after": last, "gain": evaluate.gain(old, new, tasks)}
        if i == 0:
            out |= pair
        else:
            out.setdefault("judges", []).append({"name": name, **{k: v["score"] for k, v in pair.items()}})
    if before["diversity"] is not None:
        out["diversity"] = {"before": before["diversity"], "after": after["diversity"]}
    return out


def versions() -> dict[str, str]:
    """Of the packages whose numbers matter."""
    names = ("flowrl-toolkit", "torch", "diffusers", "transformers", "peft", "numpy")
    out = {}
    for name in names:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out
