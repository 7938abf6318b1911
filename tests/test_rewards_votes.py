"""Votes as rewards: of the images people saw, and learned for any image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl import rewards
from flowrl.rewards.votes.book import Shown, Undo, Vote, content
from flowrl.rewards.votes.reward import known, learned, told


def write(path: Path, votes: list[Vote | Undo]) -> Path:
    path.write_bytes(b"".join(vote.line() for vote in votes))
    return path


def plain(colour: tuple[int, int, int], seed: int) -> np.ndarray:
    """A disc of a colour somewhere on grey, as the embedded CLIP knows them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    cx, cy, r = rng.uniform((20, 20, 9), (44, 44, 14))
    out = np.full((64, 64, 3), int(rng.integers(225, 245)), dtype=np.uint8)
    out[np.hypot(x - cx, y - cy) < r] = colour
    return out


def gallery(folder: Path, prompts: int, noise: bool = False) -> tuple[Path, list[np.ndarray]]:
    """A book in which people like red better than blue, whatever the prompt (or nothing, with noise)."""
    rng = np.random.default_rng(5)
    votes: list[Vote | Undo] = []
    images = []
    for p in range(prompts):
        shown = []
        for colour, name in (((215, 40, 45), "red"), ((45, 75, 215), "blue")):
            images.append(plain(colour, 10 * p + len(name)))
            Image.fromarray(images[-1]).save(folder / f"{p}_{name}.png")
            shown.append(Shown(f"{p}_{name}.png", content(images[-1])))
        ranks = (0, 1) if not noise or rng.random() < 0.5 else (1, 0)
        order = (0, 1) if rng.random() < 0.5 else (1, 0)
        votes.append(
            Vote(f"vote-{p:04d}", "me", f"a circle {p}", tuple(shown[i] for i in order), tuple(ranks[i] for i in order), 1, "")
        )
    return write(folder / "votes.jsonl", votes), images


@pytest.mark.evidence("real", "votes-known")
def test_known_images_score_their_strength_and_no_other_image_scores(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    shown = tuple(Shown(f"{i}.png", content(image)) for i, image in enumerate(images))
    votes: list[Vote | Undo] = [
        Vote("vote-0001", "me", "p", shown[:3], (0, 1, 2), 1, ""),
        Vote("vote-0002", "me", "p", (shown[2], shown[1]), (0, 0), 1, ""),
        Vote("vote-0003", "me", "p", (shown[2], shown[0]), (0, 1), 1, ""),
        Undo("undo-0001", "vote-0003", "me", ""),
        Vote("vote-0004", "me", "p", (shown[3], shown[0]), None, 1, ""),
    ]
    book = write(tmp_path / "votes.jsonl", votes)
    reward = known(str(tmp_path))
    found = reward(images, ["p"] * 4, [{}] * 4)
    values = np.array(found.values)
    assert values[0] > values[1] > values[2] and values[:3].sum() == pytest.approx(0, abs=1e-9)
    assert np.isnan(values[3]), "only voted 'cannot say'"
    assert np.array(found.parts["win_rate"])[:3] == pytest.approx([1, 1.5 / 3, 0.5 / 3])
    assert np.isnan(reward(images, ["another prompt"] * 4, [{}] * 4).values).all()
    made = rewards.make(f"votes-known:{book}")
    pixels = torch.from_numpy(images)[None]
    samples = rewards.Samples(pixels, ["p"], [{}], torch.ones(1, 4, dtype=torch.bool), torch.zeros(4, dtype=torch.long))
    with pytest.warns(UserWarning, match="could not score 1 of 4"):
        scores, _ = made(samples, made.init())
    assert scores.valid.tolist() == [[True, True, True, False]] and scores.values[0, 3].isnan()


@pytest.mark.evidence("real", "votes")
def test_a_taste_is_learned_from_votes_and_scores_images_nobody_saw(tmp_path: Path) -> None:
    book, _ = gallery(tmp_path, 24)
    reward = learned(str(book))
    assert reward.found.heldout.rate > 0.9 and "agrees with" in told(reward.found)
    new = np.stack([plain((215, 40, 45), 901), plain((45, 75, 215), 902), plain((215, 40, 45), 903), plain((45, 75, 215), 904)])
    scores = reward(new, ["a circle"] * 4, [{}] * 4)
    assert min(scores[0], scores[2]) > max(scores[1], scores[3]) and np.isfinite(scores).all()
    video = reward(np.repeat(new[:1, None], 2, 1), ["a circle"], [{}])
    assert video == pytest.approx(scores[:1], abs=1e-5)
    made = rewards.make(f"votes:{tmp_path}")
    assert made.name == f"votes:{tmp_path}"


def test_votes_at_random_are_said_to_teach_nothing(tmp_path: Path) -> None:
    book, _ = gallery(tmp_path, 20, noise=True)
    with pytest.warns(UserWarning, match="may have learned nothing"):
        learned(str(book))


def test_images_that_are_gone_or_changed_are_left_out(tmp_path: Path) -> None:
    book, images = gallery(tmp_path, 12)
    (tmp_path / "0_red.png").unlink()
    Image.fromarray(255 - images[3]).save(tmp_path / "1_blue.png")
    with pytest.warns(UserWarning, match="2 of 24 images voted on are gone or changed since"):
        found = learned(str(book))
    assert found.found.plain.n == 10
    for file in tmp_path.glob("*.png"):
        file.unlink()
    with pytest.warns(UserWarning, match="gone"), pytest.raises(ValueError, match="no vote is left that compares two images"):
        learned(str(book))


def test_what_is_no_book_is_a_sentence(tmp_path: Path) -> None:
    for name in ("votes", "votes-known"):
        with pytest.raises(ValueError, match=f"reward {name} needs a book of votes"):
            rewards.make(name)
        with pytest.raises(FileNotFoundError, match=r"there is no book of votes .*votes.jsonl; make one with: flowrl vote RUN"):
            rewards.make(f"{name}:{tmp_path}")
    write(tmp_path / "votes.jsonl", [Vote("vote-0001", "me", "p", (Shown("a", "a"), Shown("b", "b")), None, 1, "")])
    with pytest.raises(ValueError, match="holds no vote that compares two images"):
        rewards.make(f"votes-known:{tmp_path}")
