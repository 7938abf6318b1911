"""The remote reward by name."""

from __future__ import annotations

from flowrl.rewards.row import Row

HERE = __name__.rpartition(".")[0]

ROWS: dict[str, Row] = {
    "remote": Row(
        f"{HERE}.client:remote",
        "a reward served elsewhere by `flowrl serve`; its token is read from the environment (FLOWRL_TOKEN)",
        "http://HOST:PORT/NAME",
        whole=True,
        licence="Apache-2.0; of what is served, its own",
        range="of the reward that is served",
        hacks="of the reward that is served",
        example="flowrl score images/ --reward remote:http://HOST:PORT/NAME",
    ),
}
