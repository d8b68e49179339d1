"""Errors of the data plane: one leaf per different reaction of the caller; `problems.py` maps each to a status.

SidecarError
├── BadConfig            the process cannot start: mend the named file or variable
├── PortTaken            the process cannot start: choose another port
├── BadRequest           400: the request's form is wrong, mend the caller
├── Unprocessable        422: members are wrong, each named
├── TooLarge             413: send less
├── AgentNotAllowed      403: the policy does not admit this pod
├── NotFound             404
├── PreconditionFailed   412: read again, then decide
├── IdempotencyKeyInUse  409: a request under the same idempotency key is under way; try again in a moment
├── IdempotencyKeyReused 422: the idempotency key is another request's, use a new one
├── FailedDependency     424: another operation of the batch failed on the same shard, so this one did not happen
├── ShardReadOnly        409: this memory takes no change until its shard is Active again
├── ShardUnavailable     503: try again later
├── KeyMissing           503: give the sidecar the key that the memory was encrypted with
├── SealBroken           500: the stored memory is not what was stored; somebody must look at the shard
├── QuotaExceeded        507: remove memories, or ask for a larger quota
├── RateLimited          429: wait until the next second; nobody was asked
├── NodeRefused          503: the node answered, and will not do it; repeating it at once is of no use
├── BreakerOpen          503: the node failed again and again and is left alone; nobody was asked
├── Shed                 503: too many wait already; nobody was asked
├── OutcomeUnknown       503: the write may have happened; read before trying again
├── DeadlineExceeded     504: the time was over before an answer
├── CacheUnavailable     never leaves the caches: go on without Redis
└── SlotMoved            never leaves the pipeline: read the map anew and ask the new owner
"""

from dataclasses import dataclass


class SidecarError(Exception):
    """Root of the data plane's errors."""


class BadConfig(SidecarError):
    """A file or a variable of the configuration is missing or wrong; the message names it."""


class PortTaken(SidecarError):
    """Another process listens on the port."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"{host}:{port} is in use")
        self.port = port


class BadRequest(SidecarError):
    """The request is not of the form that the interface takes."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """One wrong member: a JSON pointer into the body (RFC 6901) or the name of a query parameter, and the reason."""

    place: str
    detail: str
    is_parameter: bool = False


def pointer(place: str, member: str) -> str:
    """The JSON pointer (RFC 6901) of a member of the object at `place`; of a long name the first 100 characters."""
    return f"{place}/{member[:100].replace('~', '~0').replace('/', '~1')}"


class Unprocessable(SidecarError):
    """Well-formed, but members are wrong."""

    def __init__(self, *flaws: Flaw) -> None:
        super().__init__("; ".join(f"{flaw.place or 'body'}: {flaw.detail}" for flaw in flaws))
        self.flaws = flaws


class TooLarge(SidecarError):
    """More than `limit` of `what` (a unit in it)."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"at most {limit} {what}")
        self.limit = limit


class AgentNotAllowed(SidecarError):
    """The tenant's policy does not let a pod of this ServiceAccount be this agent."""

    def __init__(self, agent: str, service_account: str) -> None:
        super().__init__(f"the tenant does not allow agent {agent} in a pod of the ServiceAccount {service_account}")
        self.agent = agent
        self.service_account = service_account


class NotFound(SidecarError):
    """No such memory, or none any more."""


class PreconditionFailed(SidecarError):
    """If-Match or If-None-Match did not hold."""


class IdempotencyKeyInUse(SidecarError):
    """Another request with this idempotency key has not ended."""

    def __init__(self) -> None:
        super().__init__("Idempotency-Key: a request with this key is under way")


class IdempotencyKeyReused(SidecarError):
    """Another request was done with this idempotency key."""

    def __init__(self) -> None:
        super().__init__("Idempotency-Key: another request was done with this key, within the last 24 hours")


class FailedDependency(SidecarError):
    """Not done, because another write of the batch to the same shard failed."""


class ShardReadOnly(SidecarError):
    """The memory's shard takes no writes."""

    def __init__(self, shard: str) -> None:
        super().__init__(f"shard {shard} is read-only")
        self.shard = shard


class QuotaExceeded(SidecarError):
    """The write would exceed the tenant's quota: `what` is "memories" or "bytes", of which `limit` are allowed.

    `life` is what the shard has loans addressed to.
    """

    def __init__(self, shard: str, what: str, limit: int, life: str = "") -> None:
        super().__init__(f"the tenant's quota of {limit} {what} is used up")
        self.shard = shard
        self.what = what
        self.limit = limit
        self.life = life


class RateLimited(SidecarError):
    """The tenant asked more than `limit` requests in this second."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the tenant's quota of {limit} requests a second is used up")
        self.limit = limit


class KeyMissing(SidecarError):
    """The keyring has not the key that data was encrypted with; `version` None: there is no keyring to encrypt with."""

    def __init__(self, version: int | None) -> None:
        which = "no key to encrypt with" if version is None else f"no key of version {version}"
        super().__init__(f"the tenant's keyring has {which}")
        self.version = version


class SealBroken(SidecarError):
    """Encrypted data is not what was sealed for its place: `reason` is "authentication", "truncated" or "scheme"."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"what is stored was not sealed for this memory, or was changed since ({reason})")
        self.reason = reason


class ShardUnavailable(SidecarError):
    """The memory's shard does not answer. `reason` is short and holds no secret.

    `again_s`: when what failed so may be asked again, on the loop's clock; inf if never, None if nobody asked yet.
    """

    def __init__(self, shard: str, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(f"shard {shard}: {reason}")
        self.again_s: float | None = None
        self.shard = shard
        self.reason = reason
        self.retry_after_s = retry_after_s


class NodeRefused(ShardUnavailable):
    """The node answers, and does not do what it is asked: a login that is locked, a query that it cannot run."""


class BreakerOpen(ShardUnavailable):
    """The breaker of the node is open: it is tried again in `retry_after_s`."""


class Shed(ShardUnavailable):
    """The queue in front of the node is full."""


class OutcomeUnknown(ShardUnavailable):
    """The connection was lost between a write and its answer."""


class DeadlineExceeded(ShardUnavailable):
    """The shard did not answer in time."""


class CacheUnavailable(SidecarError):
    """Redis does not answer, or refuses. The message is short and holds no address and no secret."""


class SlotMoved(SidecarError):
    """The shard does not own the slot: our map is old."""

    def __init__(self, shard: str) -> None:
        super().__init__(f"shard {shard} does not own the slot")
        self.shard = shard


class Collision(Exception):
    """Two transactions waited for each other and this one was rolled back: it may be run again as it is."""
