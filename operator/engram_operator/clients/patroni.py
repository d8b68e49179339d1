"""What Patroni takes over its REST API alone: to restart Postgres in place, to read files. All else goes by ConfigMaps.

Source: Patroni, REST API (`POST /restart`, `POST /reload`).
"""

import asyncio
from typing import Final

import aiohttp

from engram_contract.names import PATRONI_PORT
from engram_operator.errors import DatabaseUnreachable

TIMEOUT_S: Final = 60.0  # it answers when Postgres is back; a shutdown checkpoint comes first
REASON_CHARS: Final = 200


async def restart_postgres(ip: str, user: str, password: str, *, role: str) -> None:
    """Postgres in this pod has started anew, if it still has this role. Raises DatabaseUnreachable."""
    await _post(ip, "restart", user, password, {"role": role, "restart_pending": True})


async def reload_files(ip: str, user: str, password: str) -> None:
    """Patroni and Postgres in this pod read their files anew, soon. Raises DatabaseUnreachable."""
    await _post(ip, "reload", user, password, {})


async def _post(ip: str, what: str, user: str, password: str, body: dict[str, object]) -> None:
    host = f"[{ip}]" if ":" in ip else ip
    place = f"Patroni at {ip}: {what}"
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            aiohttp.ClientSession(auth=aiohttp.BasicAuth(user, password)) as session,
            session.post(f"http://{host}:{PATRONI_PORT}/{what}", json=body) as answer,
        ):
            text = await answer.text()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise DatabaseUnreachable(f"{place}: {str(error) or type(error).__name__}") from error
    if answer.status >= 300:  # noqa: PLR2004  the class of success ends there
        raise DatabaseUnreachable(f"{place}: {answer.status} {text[:REASON_CHARS]}")
