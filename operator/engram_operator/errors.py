"""Errors of the control plane: one leaf per different reaction of the caller.

OperatorError
├── DatabaseUnreachable   wait and try again
├── LoginRefused          try the other password; if there is none, tell the user
├── ForeignDatabase       never touch it; tell the user
├── StaleEpoch            somebody published a newer map: read it and plan anew
├── FenceBusy             writers hold the tenant's lock: try again
├── BadDsn                the user must mend a Secret
├── StatementRefused      tell the user: the server will not do it, however often it is asked
├── DatabaseMissing       make it, or say that there is nothing in it
├── KeyUnreadable         never make a new one over it: tell the user
├── CacheUnreachable      go on without: a cache costs speed, nothing else
├── CacheRefused          the same, and tell the user, who must mend the login or its Secret
├── NameTaken             an object of this name is somebody else's: tell the user, never touch it
├── BadSettings           the process cannot start: mend the named variable
├── PortTaken             the process cannot start: choose another port
├── LostLease             stop writing at once and end the process: another replica may lead
├── DeafWatch             end the process: a new one lists and watches anew
├── BadCertificate        the stored certificates are of no use: make new ones
├── BadReview             400: what came is no AdmissionReview
├── BadAnnotation         the pod starts without a memory, and its maker is told which annotation to mend
├── TooBusy               503: there is no memory for one more review
└── ApiError              the API server; at the next round all of them are tried again, and the log says which it was
    ├── ApiUnavailable    no answer, or not now: try again
    ├── ApiNotFound       the object is not there: create it, or say that it is missing
    ├── ApiConflict       somebody else wrote it: read again
    ├── ApiHeld           a disruption budget keeps the pod: say so, and ask again later
    └── ApiRefused        the request is not allowed or not valid: tell the user
"""


class OperatorError(Exception):
    """Root of the control plane's errors."""


class DatabaseUnreachable(OperatorError):
    """No answer from the database: it may come back."""


class LoginRefused(OperatorError):
    """The database does not take this login."""


class ForeignDatabase(OperatorError):
    """The database belongs to somebody or something else, so nothing in it was changed."""


class StaleEpoch(OperatorError):
    """The shard has a newer map than the one to publish."""


class FenceBusy(OperatorError):
    """The tenant's writers did not leave the fence's lock in time; nothing was changed."""


class BadDsn(OperatorError):
    """The Secret of an External shard holds no DSN that can be used. The message never repeats it."""


class StatementRefused(OperatorError):
    """The server does not carry out a statement of ours; the message has its SQLSTATE and its reason."""


class DatabaseMissing(OperatorError):
    """The server has no such database."""


class KeyUnreadable(OperatorError):
    """A wrapped key does not open: another cluster's key, or damage. The message holds neither."""


class CacheUnreachable(OperatorError):
    """No answer from Redis, or a refusal."""


class CacheRefused(OperatorError):
    """Redis lets the login not make users, or there is no such login. The message holds no password."""


class NameTaken(OperatorError):
    """An object that we would make is there already and is not ours."""


class BadSettings(OperatorError):
    """A variable of the environment is missing or wrong; the message names it."""


class PortTaken(OperatorError):
    """Another process listens on the port."""

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} is in use")
        self.port = port


class LostLease(OperatorError):
    """This process does not lead any more, or cannot prove that it does."""


class DeafWatch(OperatorError):
    """A watch does not deliver what the API server has, or it broke; the message names the resource."""


class BadCertificate(OperatorError):
    """What should be a certificate or its key is none, or they do not belong together. Holds no key."""


class BadReview(OperatorError):
    """The body is no AdmissionReview of admission.k8s.io/v1."""


class BadAnnotation(OperatorError):
    """An annotation of a pod asks for what its sidecar cannot have; the message names it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"annotation {name}: {reason}")
        self.name = name


class TooBusy(OperatorError):
    """The reviews under way take all the memory that they may."""


class ApiError(OperatorError):
    """Root of what goes wrong between us and the API server. The message says verb, path and reason."""


class ApiUnavailable(ApiError):
    """No answer in time, no connection, or an answer that says: not now; `retry_after_s` if it says for how long."""

    retry_after_s = 0.0


class ApiNotFound(ApiError):
    """There is no such object."""


class ApiConflict(ApiError):
    """The object is not any more what the request took it for, or it is already there."""


class ApiHeld(ApiError):
    """A PodDisruptionBudget does not let the pod go now."""


class ApiRefused(ApiError):
    """The API server will not do this, however often it is asked."""
