"""The commands together, and how an error reaches the user: one sentence, exit code 2."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

import flowrl

from . import export, methods, models, plan, report, rewards, sample, score, serve, train, vote

# Errors whose text is written for users, as is that of every exception flowrl defines; the rest are faults and keep a traceback.
SPOKEN = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)

app = typer.Typer(
    name="flowrl",
    help="Train image generators with rewards, by online RL. Start with: flowrl train shapes",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    train.train, sample.sample, score.score, serve.serve, methods.methods, models.models, rewards.rewards,
    plan.plan, report.report, export.export, vote.vote,
)  # fmt: skip
for _command in COMMANDS:
    app.command()(_command)


def _version(asked: bool) -> None:
    if asked:
        print(flowrl.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (also FLOWRL_DEBUG=1).")] = False,
) -> None:
    """Train image generators with rewards, by online RL. Start with: flowrl train shapes"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for library in ("DIFFUSERS", "TRANSFORMERS"):  # their advice is for people who write Python, and stands before our sentence
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    debug = "--debug" in given or os.environ.get("FLOWRL_DEBUG", "0") not in ("", "0")
    try:
        with _plain_warnings():
            # --debug is meant for the command wherever it stands on the line
            app([word for word in given if word != "--debug"])
    except KeyboardInterrupt:
        print("stopped; a training run goes on with: flowrl train --resume RUN", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not _spoken(error):
            raise
        if debug:
            traceback.print_exc()
        else:
            print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """What is meant for users comes without the file and line of whoever warned."""
    usual = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
        return f"warning: {message}\n" if category is UserWarning else usual(message, category, *where, **more)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _spoken(error: Exception) -> bool:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "flowrl":
        return False
    # by name: importing torch only to ask would cost every `--help` seconds
    return isinstance(error, SPOKEN) or type(error).__name__ == "OutOfMemoryError" or type(error).__module__.startswith("flowrl.")


def sentence(error: Exception) -> str:
    """What an error says, without the errno notation of OSError."""
    # Python's own words; whoever needs a package says what for
    if isinstance(error, ModuleNotFoundError) and str(error).startswith("No module named"):
        return f"the Python package {error.name!r} is not installed here: pip install it"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error) or f"{type(error).__name__} (FLOWRL_DEBUG=1 shows where)"
