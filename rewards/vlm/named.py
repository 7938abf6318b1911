"""Judges by name: TEMPLATE@MODEL."""

from __future__ import annotations

from flowrl.rewards.cache import Cached, cached
from flowrl.rewards.forms import Referenced, referenced
from flowrl.rewards.place import Place

from .ask import Backend
from .judge import Against, Pair, Point
from .template import Template, template, templates

FORMS = "TEMPLATE@OWNER/NAME, TEMPLATE@FOLDER or TEMPLATE@http://HOST:PORT/v1#MODEL"


def vlm(variant: str | None = None, place: Place | None = None) -> Cached | Referenced:
    """A vision-language model's score of each image, in [0, 1].

    variant: "TEMPLATE@MODEL": a template's name (or a file.yaml with one) and who is asked: OWNER/NAME on the hub or a folder, run
    in this process; or the address of a server that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp) with the name it serves the
    model by behind "#". So both are in the score's name.
    The server's token is read from the environment variable FLOWRL_VLM_TOKEN, if there is one.

    Templates: unifiedreward-1.5, unifiedreward-2.0, qwen-aesthetics (expected value over digits), qwen-aesthetics-text, vqascore,
    checklist, checklist-soft; beside the first reference of a prompt: rewarddance, unifiedreward-edit.
    Those that compare two images belong to a win rate: winrate:vlm:unifiedreward-think@MODEL.
    An answer that cannot be read is NaN and counted, never 0.

    Raises: ValueError for a name of another form, an unknown template or one of pairs, an address with a password;
    NotLoaded if a model cannot be loaded; FileNotFoundError for a missing file; ModuleNotFoundError without httpx (servers).
    Source: UnifiedReward (2503.05236; CodeGoat24/UnifiedReward `inference_qwen`, `UnifiedReward-Edit`), flow_grpo's Qwen-VL
    score, RewardDance (2509.08826), VQAScore (2404.01291), DSG (2310.18235); their labels, tags and keys, ranges and scales.
    Differs: the words of all templates but VQAScore's are ours, so a model tuned on its authors' words may score a little
    differently: give those as a file.yaml. Images go as PNG at full size (there JPEG, quality 95, or resized to 512). UnifiedReward
    2.0: the mean of three axes; a missing axis is no score (Pref-GRPO puts the batch's mean there). UnifiedReward-Edit leaves open
    how its two grades make one; here the lesser. RewardDance asks one order; here both are averaged, and any model may be asked.
    """
    asked, where = split(variant)
    if asked.shown == "pair":
        raise ValueError(f"template {asked.name!r} compares two images; write winrate:vlm:{variant}")
    made = backend(where, place)
    return referenced(Against(made, asked)) if asked.shown == "reference" else cached(Point(made, asked))


def pair(variant: str, place: Place | None = None) -> Pair:
    """A judge of two images, for `pairs.winrate`. variant: as of `vlm`, with a template that compares.

    Raises: as `vlm`; ValueError for a template that does not compare.
    """
    asked, where = split(variant)
    if not asked.compares:
        known = ", ".join(name for name, one in templates().items() if one.compares)
        raise ValueError(f"template {asked.name!r} judges one image alone; those that compare are {known}")
    return Pair(backend(where, place), asked)


def split(variant: str | None) -> tuple[Template, str]:
    """(template, who is asked) of "TEMPLATE@MODEL".

    Raises: ValueError for another form or an unknown template; FileNotFoundError for a missing file.
    """
    name, _, where = (variant or "").partition("@")
    if not name or not where:
        raise ValueError(f"a judge is written {FORMS}, not {variant or ''!r}; templates: {', '.join(templates())}")
    return template(name), where


def backend(where: str, place: Place | None = None) -> Backend:
    """A server for an address, else a model here."""
    if where.startswith(("http://", "https://")):
        from .server import server

        url, _, model = where.partition("#")
        return server(url, model)
    from .local import local

    return local(where, place)
