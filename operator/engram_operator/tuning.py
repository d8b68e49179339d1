"""How a pod tunes its own sidecar: annotations to one checked value, over what the installation decides. Pure.

Promise: what comes out is taken by every API server and understood by the sidecar; what cannot be is BadAnnotation.
docs/sidecar.md has the annotations as a table.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from engram_contract.names import (
    ADMIN_PORT,
    ADMIN_PORT_ANNOTATION,
    CPU_LIMIT_ANNOTATION,
    CPU_REQUEST_ANNOTATION,
    DRAIN_ANNOTATION,
    HTTP_PORT,
    HTTP_PORT_ANNOTATION,
    LOG_LEVEL_ANNOTATION,
    MEMORY_LIMIT_ANNOTATION,
    MEMORY_REQUEST_ANNOTATION,
)
from engram_contract.quantities import bytes_of, millicores_of
from engram_operator.errors import BadAnnotation

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
MAX_DRAIN_S: Final = 120
LOWEST_PORT: Final = 1024  # below it a process needs a right that the sidecar has not
HIGHEST_PORT: Final = 65_535
SHOWN_CHARS: Final = 20
# An annotation, and the amount that it sets: the part of a ResourceRequirements, the resource, how it is read.
AMOUNTS: Final[Mapping[str, tuple[str, str, Callable[[str], int]]]] = {
    CPU_REQUEST_ANNOTATION: ("requests", "cpu", millicores_of),
    CPU_LIMIT_ANNOTATION: ("limits", "cpu", millicores_of),
    MEMORY_REQUEST_ANNOTATION: ("requests", "memory", bytes_of),
    MEMORY_LIMIT_ANNOTATION: ("limits", "memory", bytes_of),
}


@dataclass(frozen=True, slots=True)
class Tuning:
    """One pod's sidecar. `resources` is a whole ResourceRequirements; None and empty leave it to the sidecar."""

    resources: Mapping[str, Any]
    log_level: str = ""
    drain_s: int | None = None
    http_port: int = HTTP_PORT
    admin_port: int = ADMIN_PORT

    @classmethod
    def from_annotations(cls, annotations: Mapping[str, str], resources: Mapping[str, Any]) -> "Tuning":
        """What the annotations make of the installation's `resources`. Raises BadAnnotation."""
        tuning = cls(
            resources=_resources(annotations, resources),
            log_level=_log_level(annotations),
            drain_s=_number(annotations, DRAIN_ANNOTATION, 0, MAX_DRAIN_S),
            http_port=_number(annotations, HTTP_PORT_ANNOTATION, LOWEST_PORT, HIGHEST_PORT) or HTTP_PORT,
            admin_port=_number(annotations, ADMIN_PORT_ANNOTATION, LOWEST_PORT, HIGHEST_PORT) or ADMIN_PORT,
        )
        if tuning.http_port == tuning.admin_port:
            name = HTTP_PORT_ANNOTATION if HTTP_PORT_ANNOTATION in annotations else ADMIN_PORT_ANNOTATION
            raise BadAnnotation(name, f"{tuning.http_port} is the port of both HTTP and probes; choose two")
        return tuning


def _resources(annotations: Mapping[str, str], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The given resources with the annotated amounts in their place."""
    result = {part: dict(amounts) for part, amounts in given.items()}
    for name, (part, resource, read) in AMOUNTS.items():
        if name in annotations:
            _check_amount(name, annotations[name], read)
            result.setdefault(part, {})[resource] = annotations[name]
    for name, reason in _flaws(annotations, result):
        raise BadAnnotation(name, reason)
    return result


def _check_amount(name: str, text: str, read: Callable[[str], int]) -> None:
    try:
        if read(text) == 0:
            raise BadAnnotation(name, "must be more than 0")
    except ValueError as error:
        raise BadAnnotation(name, str(error)) from error


def _flaws(annotations: Mapping[str, str], resources: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Annotated requests above their limits: the API server would refuse the whole pod."""
    for name, (_, resource, read) in AMOUNTS.items():
        request = resources.get("requests", {}).get(resource)
        limit = resources.get("limits", {}).get(resource)
        if name in annotations and None not in (request, limit) and read(str(request)) > read(str(limit)):
            yield name, f"the sidecar's request of {resource} would be {request}, above its limit {limit}; set both"


def _log_level(annotations: Mapping[str, str]) -> str:
    level = annotations.get(LOG_LEVEL_ANNOTATION, "")
    if LOG_LEVEL_ANNOTATION in annotations and level not in LOG_LEVELS:
        raise BadAnnotation(LOG_LEVEL_ANNOTATION, f"{_shown(level)} is none of {', '.join(LOG_LEVELS)}")
    return level


def _number(annotations: Mapping[str, str], name: str, lowest: int, highest: int) -> int | None:
    """The annotation's whole number; None without the annotation."""
    text = annotations.get(name)
    if text is None:
        return None
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(highest))
    if not (is_number and lowest <= int(text) <= highest):
        raise BadAnnotation(name, f"{_shown(text)} is no whole number from {lowest} to {highest}")
    return int(text)


def _shown(text: str) -> str:
    return repr(text[:SHOWN_CHARS])
