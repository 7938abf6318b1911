"""flowrl serve."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Annotated

import typer

LOCAL = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")


def serve(
    reward: Annotated[list[str], typer.Option(metavar="NAME", help="A name, module:name or file.py:function; repeatable.")],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    token_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="The environment variable with the token clients must show.")
    ] = "FLOWRL_TOKEN",
    device: Annotated[str, typer.Option(help="Where rewards with a network run.")] = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="Most images a call, where waiting requests are joined.")] = 64,
    waiting: Annotated[int, typer.Option(min=1, help="Most requests at once; further ones are told to come back.")] = 16,
    images: Annotated[int, typer.Option(min=1, help="Most pictures a request, frames of videos counted.")] = 1024,
    megapixels: Annotated[int, typer.Option(min=1, help="Most pixels a request, in millions.")] = 67,
    megabytes: Annotated[int, typer.Option(min=1, help="Largest request, in millions of bytes.")] = 134,
    patience: Annotated[float, typer.Option(min=0.1, help="Seconds a request may take to arrive.")] = 60.0,
) -> None:
    """Serve rewards to training runs on other machines, or in other environments of this one.

    Requests are JSON with PNG pictures. Other addresses than this machine's own need a token in the environment, here and where
    the training runs; it stands in no file, no message and no command.

    Examples:

        flowrl serve --reward clip:ViT-L-14/openai --device cuda

        FLOWRL_TOKEN=... flowrl serve --reward mine.py:judge --reward jpeg_compressibility --host 0.0.0.0
    """
    from flowrl import rewards
    from flowrl.rewards.remote.pictures import Limits
    from flowrl.rewards.remote.token import token

    try:
        from flowrl.rewards.remote import server
    except ModuleNotFoundError as error:
        raise ValueError(f"serving needs the package {error.name!r}; pip install 'flowrl-toolkit[serve]'") from error
    secret = token(token_env)
    if secret is None and host not in LOCAL:
        raise ValueError(f"serving on {host} without a token would let anyone use this machine; put one into {token_env}")
    names = served(reward)
    bound = server.bind(host, port)
    made = {name: rewards.make(spec, name, device) for name, spec in names.items()}
    limits = Limits(body=megabytes * 10**6, images=images, pixels=megapixels * 10**6)
    app = server.app(made, server.Rules(secret, limits, waiting, patience), batch)
    bound.listen(128)  # before anybody is told of it
    where = socket.gethostname() if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    for name in made:
        print(f"train with: --reward remote:http://{where}:{bound.getsockname()[1]}/{name}", flush=True)
    print(f"clients {'need the token in ' + token_env if secret else 'need no token'}; stop with Ctrl-C or SIGTERM", flush=True)
    server.run(app, bound, patience)


def served(given: Sequence[str]) -> dict[str, str]:
    """The name each reward is served under: its spec, or for file.py:function its function.

    Raises: ValueError for a weight, or two rewards of one name.
    """
    from flowrl import rewards
    from flowrl.rewards.load import FILE

    names: dict[str, str] = {}
    for text in given:
        spec, weight = rewards.parse(text)
        if weight != 1:
            raise ValueError(f"reward {text!r} has a weight, which belongs to the training run; write {spec}")
        found = FILE.fullmatch(spec)
        name = found["name"] if found else spec
        if name in names:
            raise ValueError(f"two rewards would be served as {name!r}; serve them on two ports, or rename a function")
        names[name] = spec
    return names
