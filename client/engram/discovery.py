"""Where the sidecar is: the argument, else the environment, else the port that every pod has. Pure."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from engram.errors import Refused
from engram_contract import names

PORTS = range(1, 65_536)


def base_url(url: str | None, environ: Mapping[str, str]) -> str:
    """`url`, else ENGRAM_URL, else localhost at ENGRAM_HTTP_PORT, else localhost at 7711; without a slash at the end.

    Raises Refused, naming where the value came from, if it is no http(s) address or no port.
    """
    if url is not None:
        return _checked(url, "url")
    if configured := environ.get(names.ENV_URL):
        return _checked(configured, names.ENV_URL)
    port = environ.get(names.ENV_HTTP_PORT) or str(names.HTTP_PORT)
    if not (port.isascii() and port.isdigit() and int(port) in PORTS):
        raise Refused(f"{names.ENV_HTTP_PORT} is not a port: {port!r}")
    return f"http://localhost:{port}"


def _checked(url: str, source: str) -> str:
    try:
        parts = urlsplit(url)
        bare = not parts.query and not parts.fragment
        usable = bare and parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port in {None, *PORTS}
    except ValueError:  # a port that is none, brackets without an end
        usable = False
    if not usable:
        raise Refused(f"{source} is not the address of a sidecar, like http://localhost:{names.HTTP_PORT}: {url!r}")
    return url.rstrip("/")
