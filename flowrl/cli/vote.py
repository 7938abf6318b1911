"""flowrl vote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer


def vote(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a folder of images or videos with prompts as for flowrl score.")],
    rank: Annotated[
        int | None, typer.Option(metavar="K", help="Rank up to K images of a prompt instead of picking one of two.")
    ] = None,
    among: Annotated[bool, typer.Option("--among", help="Of a run: all images of a prompt against each other.")] = False,
    limit: Annotated[int | None, typer.Option(help="At most so many questions a prompt; default two an image.")] = None,
    voter: Annotated[str, typer.Option(help="Who votes; everyone is asked everything.")] = "me",
    host: Annotated[str, typer.Option(help="0.0.0.0 for a phone in the same network.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Default 8642, or a free one.")] = None,
    seed: Annotated[int, typer.Option(help="Order of questions and sides.")] = 0,
    result: Annotated[bool, typer.Option("--result", help="Print what the votes say and end.")] = False,
    learn: Annotated[bool, typer.Option("--learn", help="Print how well the votes can be learned, and end.")] = False,
) -> None:
    """Pick the better of two images on a local page; the votes are a judge and a reward.

    Votes are kept in votes.jsonl in the folder, from the moment they are given; go on whenever you like.

    Examples:

        flowrl vote runs/some-run                    # before or after training?

        flowrl vote runs/some-run --host 0.0.0.0     # on a phone

        flowrl vote images --rank 4

        flowrl vote runs/some-run --result

        flowrl train shapes --reward votes:runs/some-run
    """
    _check(rank, limit, voter)
    if result:
        return _result(run)
    if learn:
        return _learn(run)
    from flowrl.vote import pairs
    from flowrl.vote.serve import serve

    found = pairs.pictures(run)
    same = 0
    if among or rank or not any(picture.pair for picture in found):
        asked = pairs.among(found, rank or 2, limit)
    else:
        asked, same = pairs.facing(found)
        asked = [questions[:limit] for questions in asked]
    questions = pairs.dealt(asked, seed)
    if not questions:
        raise ValueError(f"all {same} pairs before and after are the same to the pixel, so there is nothing to vote on")
    print(f"{len(questions)} questions on {len(asked)} prompts" + (f"; {same} pairs are the same to the pixel" if same else ""))
    desk = serve(run, questions, host, port, seed, voter)
    state = desk.state(voter)
    print(f"{state['done']} of {state['total']} answered; look with: flowrl vote {run} --result")


def _check(rank: int | None, limit: int | None, voter: str) -> None:
    if rank is not None and not 2 <= rank <= 9:
        raise ValueError(f"--rank is {rank}; 2 to 9 images can be ranked")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}; ask at least 1 question a prompt")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", voter):
        raise ValueError(f"--voter is {voter!r}; give 1 to 40 letters, digits, dots, dashes or underscores")


def _result(folder: Path) -> None:
    from flowrl.rewards.votes.book import locate, read
    from flowrl.vote.result import sentences, summary

    for sentence in sentences(summary(read(locate(str(folder))))):
        print(sentence)


def _learn(folder: Path) -> None:
    import warnings

    from flowrl.rewards.votes.reward import learned, told

    with warnings.catch_warnings():
        # what it warns of is said in the sentence itself
        warnings.filterwarnings("ignore", message="reward votes:")
        print(told(learned(str(folder)).found))
