"""Which objects a watch has not delivered, judged by looks at what the API server has.

    heard --a look lists another version, or none at all--> unheard since that look
    unheard --delivered, or the next look agrees--> heard
    unheard --for more than GRACE_S, by the looks--> the watch is deaf

Invariants
1. Versions are compared for equality only: they have no order for us.
2. Any delivery for an object after a look began is a sign of life of its watch, whatever it brings. So what changes all
   the time, and is listed at another version at each look, is never called unheard for long.
3. A look that failed proves nothing: what was unheard before it is unheard since the next one.

Must never: call a watch deaf because the API server was away.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

LOOK_S: Final = 20.0  # so an edit that no watch delivers is applied within this
GRACE_S: Final = (
    30.0  # a watch that reconnects after a fault is heard of again within 10 s; with LOOK_S the end is at 60 s
)

Place = tuple[str, str]  # namespace (empty for what has none) and name
Version = tuple[str, str]  # uid and resourceVersion


@dataclass(frozen=True, slots=True)
class Watched:
    """A resource that is watched in all namespaces, and the labels (a selector of the API) that its objects have."""

    group: str
    version: str
    plural: str
    selector: str = ""

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


def plan_look(
    listed: Mapping[Place, Version],
    heard: Mapping[Place, Version],
    delivered: AbstractSet[Place],
    unheard: Mapping[Place, float],
    asked_s: float,
) -> dict[Place, float]:
    """The objects that are unheard after a look, each with since when.

    `delivered` are those of which anything was delivered since the look was asked for, at `asked_s`; `unheard` is what
    this function said at the look before, without those of which anything was delivered since.
    """
    differ = (place for place in listed.keys() | heard.keys() if listed.get(place) != heard.get(place))
    return {place: unheard.get(place, asked_s) for place in differ if place not in delivered}


def deaf_fault(watched: Watched, unheard: Mapping[Place, float], asked_s: float) -> str | None:
    """Why the watch is deaf as of the look at `asked_s`, or None."""
    if not unheard:
        return None
    place, since_s = min(unheard.items(), key=lambda item: (item[1], item[0]))
    if asked_s - since_s <= GRACE_S:
        return None
    name = "/".join(part for part in place if part)
    return f"the watch of {watched} has not delivered {name} for {asked_s - since_s:.0f} s ({len(unheard)} unheard)"
