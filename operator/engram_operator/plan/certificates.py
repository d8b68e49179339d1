"""What to do about the injector's certificates: decided from what is in the Secret, what is published, and the time.

    nothing usable --START_OVER--> one CA, one serving certificate
    CA near its end --ROTATE_CA--> new CA in the bundle before the old; the serving certificate stays the old one's
        bundle published --RENEW_SERVING--> signed by the new CA
        a day later --PRUNE--> the bundle holds the new CA alone

Invariants
1. A serving certificate is signed by a CA that was published before, save when there is no other way to serve at all.
2. A CA leaves the bundle only a day after the last serving certificate of its own was replaced.
3. A CA outlives every certificate that it signs: it is rotated while it has more left than a serving certificate lasts.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

DAY_S: Final = 86_400.0
SERVING_S: Final = 90 * DAY_S  # what public authorities give: short enough that renewal is practised, not remembered
RENEW_SERVING_S: Final = 30 * DAY_S  # left when renewed: a month of failing rounds before anybody notices
CA_S: Final = 365 * DAY_S  # its key lies in a Secret of the cluster, so a year is all that a stolen copy is worth
OVERLAP_S: Final = DAY_S  # injectors read the Secret every ten seconds; a day also outlasts a broken node
BACKDATE_S: Final = 3_600.0  # API servers whose clocks are behind ours must take a new certificate too
SHORTEST_SERVING_S: Final = (
    120.0  # below it a round of the leader and a read of the injectors, 10 s each, come too late
)
SHORTEST_OVERLAP_S: Final = 30.0  # three reads of the injectors


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long certificates live, and what follows from it; in seconds. The defaults are for use."""

    serving_s: float = SERVING_S
    renew_serving_s: float = RENEW_SERVING_S  # left when renewed
    ca_s: float = CA_S
    overlap_s: float = OVERLAP_S
    backdate_s: float = BACKDATE_S

    @property
    def rotate_ca_s(self) -> float:
        """What a CA has left when it is rotated: more than the longest that it signs."""
        return self.serving_s + self.renew_serving_s

    @classmethod
    def of_serving(cls, serving_s: float) -> "Lifetimes":
        """All of them in the usual proportions, for a serving certificate of so many seconds, 120 at least.

        What has to outlast rounds and clocks is not shortened below what these need.
        """
        share = serving_s / SERVING_S
        return cls(
            serving_s=serving_s,
            renew_serving_s=RENEW_SERVING_S * share,
            ca_s=CA_S * share,
            overlap_s=min(OVERLAP_S, max(OVERLAP_S * share, SHORTEST_OVERLAP_S)),
            backdate_s=min(BACKDATE_S, serving_s / 12),  # counts in the lifetime, so it must stay a small part of it
        )


LIFETIMES: Final = Lifetimes()


@dataclass(frozen=True, slots=True)
class Certificate:
    """What matters of one certificate. `signer` is the fingerprint of the CA in the bundle that signed it, if any."""

    fingerprint: str
    not_before_s: float
    not_after_s: float
    dns_names: tuple[str, ...] = ()
    signer: str = ""

    def is_valid_at(self, now_s: float) -> bool:
        """Whether a client whose clock says `now_s` (Unix seconds) takes it."""
        return self.not_before_s <= now_s < self.not_after_s

    def age_s(self, now_s: float) -> float:
        """The seconds since it was made."""
        return now_s - self.not_before_s - BACKDATE_S


@dataclass(frozen=True, slots=True)
class Stored:
    """What the Secret holds. `bundle` begins with the CA whose key is there; `serving` is None if it is of no use."""

    bundle: tuple[Certificate, ...]
    serving: Certificate | None

    @property
    def ca(self) -> Certificate:
        """The CA that signs."""
        return self.bundle[0]


class Step(Enum):
    """One change of the Secret."""

    KEEP = "keep"
    START_OVER = "start-over"
    ROTATE_CA = "rotate-ca"
    RENEW_SERVING = "renew-serving"
    PRUNE = "prune"


def plan_certificates(
    stored: Stored | None,
    published: frozenset[str],
    dns_names: tuple[str, ...],
    now_s: float,
    lifetimes: Lifetimes = LIFETIMES,
) -> Step:
    """The next step. `published` are the fingerprints that every API server was told before this round."""
    if stored is None or not stored.ca.is_valid_at(now_s):
        return Step.START_OVER
    serving = stored.serving
    if serving is None or not (serving.signer and serving.dns_names == dns_names and serving.is_valid_at(now_s)):
        return Step.RENEW_SERVING  # first of all: nothing can be served
    if stored.ca.not_after_s - now_s < lifetimes.rotate_ca_s:
        return Step.ROTATE_CA
    is_due = serving.signer != stored.ca.fingerprint or serving.not_after_s - now_s < lifetimes.renew_serving_s
    if is_due:
        return Step.RENEW_SERVING if stored.ca.fingerprint in published else Step.KEEP
    is_settled = now_s - serving.not_before_s >= lifetimes.overlap_s + lifetimes.backdate_s
    return Step.PRUNE if len(stored.bundle) > 1 and is_settled else Step.KEEP
