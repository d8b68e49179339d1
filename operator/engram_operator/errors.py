"""Errors of the control plane: one leaf per different reaction of the caller.

OperatorError
├── DatabaseUnreachable   wait and try again
├── ForeignDatabase       never touch it; tell the user
├── StaleEpoch            somebody published a newer map: read it and plan anew
└── FenceBusy             writers hold the tenant's lock: try again
"""


class OperatorError(Exception):
    """Root of the control plane's errors."""


class DatabaseUnreachable(OperatorError):
    """No answer from the database: it may come back."""


class ForeignDatabase(OperatorError):
    """The database belongs to somebody or something else, so nothing in it was changed."""


class StaleEpoch(OperatorError):
    """The shard has a newer map than the one to publish."""


class FenceBusy(OperatorError):
    """The tenant's writers did not leave the fence's lock in time; nothing was changed."""
