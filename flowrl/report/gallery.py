"""Images before and after, and contact sheets over the run."""

from __future__ import annotations

from html import escape
from pathlib import Path

from flowrl.report.data import Pair, Run
from flowrl.report.images import tag
from flowrl.report.marks import section, tone

PROMPTS, SHEETS = 24, 12


def brief(value: float | None) -> str:
    """The score of one image: three digits, no trailing zeros."""
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def images(run: Run) -> str:
    groups: dict[str, list[Pair]] = {}
    for pair in run.pairs:
        groups.setdefault(pair.prompt, []).append(pair)
    sides = [
        name
        for name, any_made in (("before", any(p.before for p in run.pairs)), ("after", any(p.after for p in run.pairs)))
        if any_made
    ]
    if not sides:
        return _sheets(run, "Samples")
    more = f" The first {PROMPTS} of {len(groups)} prompts." if len(groups) > PROMPTS else ""
    cards = "".join(_prompt(prompt, pairs, sides) for prompt, pairs in list(groups.items())[:PROMPTS])
    title = " and ".join(sides).capitalize()
    what = "video" if any(p.suffix == ".webp" for pair in run.pairs for p in (pair.before, pair.after) if p) else "image"
    sub = f"Held-out prompts, always drawn from the same starting noise, with the score of each {what}.{more}"
    return section(title, sub, f'<div class="prompts{" videos" if what == "video" else ""}">{cards}</div>')


def progress(run: Run) -> str:
    return _sheets(run, "Samples over the run") if run.pairs and len(run.sheets) > 1 else ""


def _sheets(run: Run, title: str) -> str:
    last = len(run.sheets) - 1
    if last < 0:
        return ""
    picked = range(last + 1) if last < SHEETS else sorted({round(i * last / (SHEETS - 1)) for i in range(SHEETS)})
    cards = ""
    for label, file in (run.sheets[i] for i in picked):
        cards += f"<figure>{tag(file, f'samples, {label}', 1024)}<figcaption>{escape(label)}</figcaption></figure>"
    return section(title, "Contact sheets as they were written.", f'<div class="sheets">{cards}</div>')


def _prompt(prompt: str, pairs: list[Pair], sides: list[str]) -> str:
    panels = ""
    if "before" in sides:
        panels += _side("before", prompt, [(p.before, p.before_score, "same") for p in pairs])
    if "after" in sides:
        moves = [None if p.before_score is None or p.after_score is None else p.after_score - p.before_score for p in pairs]
        panels += _side("after", prompt, [(p.after, p.after_score, tone(m)) for p, m in zip(pairs, moves, strict=True)])
    head = f'<h3>{escape(prompt)}</h3><p class="task">{escape((pairs[0].task or "").replace("_", " "))}</p>'
    return f'<article class="prompt">{head}<div class="sides">{panels}</div></article>'


def _side(name: str, prompt: str, tiles: list[tuple[Path | None, float | None, str]]) -> str:
    """The images of one prompt, before or after: (file, score, which way the score moved)."""
    valid = [score for _, score, _ in tiles if score is not None]
    mean = brief(sum(valid) / len(valid)) if valid else "not scored"
    shown = ""
    for file, score, moved in tiles:
        arrow = {"up": "▲ ", "down": "▼ ", "same": ""}[moved]
        picture = tag(file, f"{name}: {prompt}, score {brief(score)}")
        shown += f'<figure>{picture}<figcaption class="{moved}">{arrow}{brief(score)}</figcaption></figure>'
    return f'<div class="side {name}"><header><span>{name}</span><span>{mean}</span></header><div class="tiles">{shown}</div></div>'
