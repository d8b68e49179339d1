"""How many requests are admitted in a second: one count of each second for all sidecars of a tenant, taken in leases.

    request --> Lease.take --nothing left--> the count of this second (Redis) --what is left of the rate--> Lease

Promises, for sidecars that share a count and agree on the time
1. In no second of the clock do they admit more than `rate` requests together: the overshoot is 0, as a lease ends with
its second. In any second that lies across two of the clock's it is at most one more rate.
2. A second begins with the whole rate: a tenant that was idle may ask for all of it at once.
3. A sidecar that cannot reach the count counts alone until the second ends: it admits at most `rate` itself.
4. What a sidecar took of the count and did not use is at most one and a half leases, each LEASE_RATIO of its own
requests in a second.

Pure: the second is an argument, whole Unix seconds. Source: token leases of a shared bucket (Envoy's rate limit quota
service, Stripe's limiters), here without a script in Redis.
"""

from typing import Final

LEASE_RATIO: Final = 0.05  # some twenty leases a second, however many requests
LOW_RATIO: Final = 0.5  # of a lease: the next one is taken before this one is used up
NO_RATE: Final = 0  # nothing is counted
# Who looks why requests are refused must not be refused; and what no pod may ask is no request of the tenant.
UNCOUNTED: Final = frozenset({"health", "openapi", "audit", "cache", "refused"})


class Lease:
    """What one sidecar may admit in the second that it saw last."""

    def __init__(self) -> None:
        self._second = 0
        self._left = 0
        self._admitted = 0
        self._before = 0  # admitted in the second before
        self._is_spent = False
        self.is_alone = False  # the last request was admitted or refused without the shared count

    def take(self, second: int) -> bool:
        """True if a request is admitted without asking anybody."""
        self._turn(second)
        if self._left < 1:
            return False
        self._left -= 1
        self._admitted += 1
        return True

    def is_spent(self, second: int) -> bool:
        """True if nothing more is admitted in this second, whoever is asked."""
        self._turn(second)
        return self._is_spent and not self._left

    def asks(self, rate: int, waiting: int) -> int:
        """How many requests the next lease is for: what waits, or a part of what was admitted of late."""
        return min(max(waiting, self._part), rate)

    def is_low(self) -> bool:
        """True if it is time to take the next lease, before anybody has to wait for it.

        Who asks too seldom for a lease of two never takes one ahead: nobody might use it.
        """
        return not self._is_spent and self._part > 1 and self._left <= self._part * LOW_RATIO

    def grant(self, second: int, asked: int, counted: int, rate: int) -> None:
        """So many were counted in this second, with the `asked` ones; an answer of another second is of no use."""
        self._turn(max(second, self._second))
        if second != self._second or self.is_alone:
            return
        granted = min(max(rate - (counted - asked), 0), asked)
        self._left += granted
        self._is_spent = granted < asked

    def go_alone(self, second: int, rate: int) -> None:
        """The count cannot be reached: until the second ends this sidecar admits what is left of the whole rate."""
        self._turn(max(second, self._second))
        if second == self._second and not self._is_spent:
            self._left = max(rate - self._admitted, 0)
            self._is_spent = self.is_alone = True

    @property
    def _part(self) -> int:
        return max(int(max(self._admitted, self._before) * LEASE_RATIO), 1)

    def _turn(self, second: int) -> None:
        """Another second begins; also an earlier one, if the clock was set back."""
        if second == self._second:
            return
        self._before = self._admitted if second == self._second + 1 else 0
        self._second, self._left, self._admitted = second, 0, 0
        self._is_spent = self.is_alone = False
