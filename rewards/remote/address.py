"""Addresses of served rewards: what they may hold, and what they must not."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

SECRETS = "an address with credentials in it (user@, ? or #) is refused, as it would be written to run.yaml and logs"
REMEDY = "put the token into the environment (FLOWRL_TOKEN for remote:, FLOWRL_VLM_TOKEN for vlm:) and leave it out of the address"


def open_only(text: str) -> None:
    """Refuse text with an address that can hold credentials, without repeating it.

    Raises: ValueError for user:password@, a query or, of a remote reward, a fragment behind "://"; `vlm` names its model by one.
    """
    start, scheme, rest = text.partition("://")
    if scheme and ("@" in rest.partition("/")[0] or "?" in rest or ("#" in rest and start.startswith("remote:"))):
        raise ValueError(f"{SECRETS}; {REMEDY}")


def address(text: str) -> str:
    """The address as given, known to be one of a served reward.

    Raises: ValueError for credentials, another scheme than http and https, or a missing host or name.
    """
    open_only(text)
    if "#" in text:
        raise ValueError(f"{SECRETS}; {REMEDY}")
    parts = _split(text)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.strip("/"):
        raise ValueError(
            f"remote reward {text!r} is no address of one; write remote:http://HOST:PORT/NAME, as flowrl serve prints it"
        )
    return text


def loopback(text: str) -> bool:
    """Whether the address is of this machine, where no proxy helps."""
    parts = _split(text)
    host = (parts.hostname if parts else None) or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    return parts
