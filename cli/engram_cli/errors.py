"""What ends a command: one line for a person and an exit status.

CliError
├── Misuse    exit 2: the command, a manifest or the data directory named is not right; change it
└── Failure   exit 1: the machine is not as it should be; the line says what to look at
"""


class CliError(Exception):
    """Root of the command's errors. The text is one line, without `engram: error:`."""

    exit_status = 1


class Misuse(CliError):
    """Nothing was changed; the user must ask for something else."""

    exit_status = 2


class Failure(CliError):
    """The command could not be done."""
