"""Style from a folder: the recipe, its captions, what it refuses, and a run of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl import settings
from flowrl.cli.train import build as asked
from flowrl.data import Prompts
from flowrl.recipe import Recipe, StyleSpec
from flowrl.recipes import build, named, style
from flowrl.recipes.style import SHOWN, captions, prompts
from flowrl.shapes import styles, verify, world

BASE = (
    Prompts(("a red circle", "a blue square"), ({"tag": "colors", "n": 1}, {}), (None, None)),
    Prompts(("a green cross",), ({"tag": "colors", "n": 2},), (None,)),
)


def folder(path: Path, count: int = 12, written: int = 4) -> Path:
    """`count` pictures in the style, `written` of them with captions."""
    path.mkdir(parents=True, exist_ok=True)
    rows = world.captions("train")[:: len(world.captions("train")) // count][:count]
    for i, (row, image) in enumerate(zip(rows, styles.draw(rows, 0), strict=True)):
        Image.fromarray(image).save(path / f"{i:02d}.png")
        if i < written:
            (path / f"{i:02d}.txt").write_text(f" {row['prompt']} \n")
    return path


def test_every_prompt_that_is_trained_on_has_the_trigger_and_keeps_its_caption(tmp_path: Path) -> None:
    where = folder(tmp_path / "style")
    train, shown = prompts(StyleSpec(str(where), "zorb"), BASE, 0.1)
    texts = [t for t in captions(where) if t]
    assert len(texts) == 4 and captions(where)[4:] == [""] * 8
    assert train.text == (*(f"zorb {t}" for t in texts), "zorb a red circle", "zorb a blue square", "zorb")
    assert [m.get("caption") for m in train.metadata] == [*texts, "a red circle", "a blue square", None]
    assert train.metadata[4]["n"] == 1, "what else was told of a prompt stays"
    assert shown.text == ("zorb a green cross", "a green cross")
    assert [m["tag"] for m in shown.metadata] == ["with trigger", "without"]
    assert {m["caption"] for m in shown.metadata} == {"a green cross"}


def test_captions_that_have_the_trigger_already_get_it_once(tmp_path: Path) -> None:
    where = folder(tmp_path / "style")
    (where / "00.txt").write_text("zorb, a red circle")
    train, _ = prompts(StyleSpec(str(where), "zorb"), BASE, 0.1)
    assert train.text[0] == "zorb a red circle" and train.metadata[0]["caption"] == "a red circle"


def test_a_folder_can_stand_alone(tmp_path: Path) -> None:
    where = folder(tmp_path / "style", 12, 12)
    spec = style(str(where), "zorb", "some/model").data
    train, shown = build.prompts(spec)
    kept = {m["caption"] for m in shown.metadata}
    assert kept and not kept & {m.get("caption") for m in train.metadata}
    assert len(train) + len(kept) == len(set(captions(where)))
    bare, shown = prompts(StyleSpec(str(folder(tmp_path / "bare", 12, 0)), "zorb"), None, 0.1)
    assert bare.text == shown.text == ("zorb",)


def test_the_prompts_shown_are_few_and_come_in_pairs(tmp_path: Path) -> None:
    spec = style(str(folder(tmp_path / "style")), "zorb").data
    train, shown = build.prompts(spec)
    assert len(shown) == 2 * SHOWN and len(set(shown.text)) == 2 * SHOWN
    assert all(a == f"zorb {b}" for a, b in zip(shown.text[::2], shown.text[1::2], strict=True))
    assert all(text.startswith("zorb") for text in train.text) and len(train) > 1000


@pytest.mark.parametrize(("count", "words"), [(0, "holds 0 images"), (9, "holds 9 images")])
def test_too_few_images_are_refused(tmp_path: Path, count: int, words: str) -> None:
    (tmp_path / "style").mkdir()
    where = folder(tmp_path / "style", count) if count else tmp_path / "style"
    with pytest.raises(ValueError, match=words):
        prompts(StyleSpec(str(where), "zorb"), BASE, 0.1)


def test_many_images_are_a_warning_and_bad_words_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = folder(tmp_path / "style", 51, 0)
    with caplog.at_level(logging.WARNING, "flowrl"):
        captions(where)
    assert "holds 51 images" in caplog.text
    with pytest.raises(ValueError, match="is no word"):
        prompts(StyleSpec(str(where), " "), BASE, 0.1)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        captions(tmp_path / "none")


def test_the_recipe_survives_its_file(tmp_path: Path) -> None:
    for model in ("shapes", "some/model"):
        recipe = style(str(tmp_path), "zorb", model)
        assert settings.load(settings.dump(recipe, tmp_path / "run.yaml")) == recipe
    assert settings.load(settings.dump(Recipe(), tmp_path / "plain.yaml")).data.style is None


def test_the_command_line_builds_it(tmp_path: Path) -> None:
    looks = {"images": str(tmp_path), "trigger": "zorb"}
    recipe = asked("style", {"policy.model": "some/model", "run.seed": 3}, looks=looks)
    assert (recipe.policy.model, recipe.run.seed, recipe.method.name) == ("some/model", 3, "adv_grpo")
    assert recipe.data.prompts == str(tmp_path), "without --prompts the captions of the images are all there are"
    assert asked("style", {"data.prompts": "p.txt"}, looks=looks).data.prompts == "p.txt"
    assert asked("style", {}, looks=looks).data.prompts == "shapes"
    for name, given in (("style", {"images": "x"}), ("style", {}), ("shapes", looks), (None, looks)):
        with pytest.raises(ValueError, match="flowrl train style --images FOLDER --trigger WORD"):
            asked(name, {}, looks=given)
    with pytest.raises(ValueError, match="flowrl train style"):
        named("style")


def test_the_drawn_style_keeps_what_a_row_asks_for() -> None:
    rows = world.captions("heldout")[::3]
    assert verify.score(styles.draw(rows, 0), rows).mean() > 0.97
    plain = styles.paint(styles.scene(rows[0], np.random.default_rng(0)), 0.0)
    assert (plain == styles_plain(rows[0])).all(), "strength 0 is the world's own picture"


def styles_plain(row: world.Row) -> np.ndarray:
    from flowrl.shapes.render import render

    return render(row, np.random.default_rng(0))


def test_the_embedded_models_take_any_trigger() -> None:
    """An unknown word is one token, so the captions still fit."""
    from flowrl.shapes.tokenizer import LENGTH
    from flowrl.shapes.tokenizer import build as tokenizer

    told = tokenizer()
    longest = max((row["prompt"] for row in world.captions("train")), key=lambda text: len(text.split()))
    ids = told(f"mystyle {longest}")["input_ids"]
    assert len(ids) == len(told(longest)["input_ids"]) + 1 <= LENGTH
    assert ids[1] == told.unk_token_id and ids[2:] == told(longest)["input_ids"][1:]


@pytest.mark.ci
def test_a_style_is_trained_shown_and_resumed(tmp_path: Path) -> None:
    import tinyrun

    from flowrl.recipes.run import train

    where = folder(tmp_path / "style", 10)
    small = {
        "policy.model": tinyrun.model(),
        "policy.dtype": "float32",
        "policy.steps": 2,
        "sizes.prompts": 2,
        "sizes.group": 3,
        "sizes.slice": 6,
        "sizes.batch": 6,
        "evaluate.steps": 1,
        "evaluate.images": 1,
        "evaluate.every": 2,
        "run.save_every": 1,
        "run.device": "cpu",
        "data.prompts": str(tinyrun.prompt_file()),
    }
    recipe = settings.resolve(style(str(where), "zorb"), small)
    rows = {}
    for name, stops in (("whole", [3]), ("parts", [1, 3])):
        for i, stop in enumerate(stops):
            now = settings.resolve(recipe, {"run.iterations": stop, "run.folder": str(tmp_path / name)})
            train(now, resume=tmp_path / name if i else None)
        rows[name] = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    first = rows["whole"][0]
    assert first["policy/skipped"] == 1 and first["adversarial/updated"] == 1
    assert all(0 <= row["adversarial/accuracy"] <= 1 for row in rows["whole"])
    timeless = [{n: v for n, v in row.items() if not n.startswith("seconds/")} for row in rows["whole"]]
    assert timeless == [{n: v for n, v in row.items() if not n.startswith("seconds/")} for row in rows["parts"]]
    assert (tmp_path / "whole" / "samples" / "000002.png").is_file()
    states = [torch.load(p, weights_only=True) for p in sorted((tmp_path / "whole").glob("checkpoints/*/state.pt"))]
    held = next(iter(states[-1]["states"]["rewards"].values()))
    assert held["iteration"] == 3 and held["buffer"].dtype == torch.uint8
