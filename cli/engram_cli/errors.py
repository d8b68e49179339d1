"""What ends a command: one line for a person and an exit status.

CliError
├── Misuse            exit 2: the command, a manifest or the data directory named is not right; change it
│   └── NotThere      the object named is not there
└── Failure           exit 1: the machine is not as it should be; the line says what to look at
    ├── Unreachable   the API server did not answer
    └── Forbidden     the API server refuses us
"""


class CliError(Exception):
    """Root of the command's errors. The text is one line, without `engram: error:`."""

    exit_status = 1


class Misuse(CliError):
    """Nothing was changed; the user must ask for something else."""

    exit_status = 2


class Failure(CliError):
    """The command could not be done."""


class NotThere(Misuse):
    """The object named is not there; what is there may have a name like it."""


class Unreachable(Failure):
    """The API server did not answer: the next try may."""


class Forbidden(Failure):
    """The API server knows us and says no: a look that is not needed may be left out."""
