"""`engram`: the commands. The only file that knows typer.

Exit status: 0 done, 1 the machine is not as it should be, 2 the command or a file is wrong. Errors are one line.
Commands that need the planes import them when they run: the others, and --help, answer at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from engram_cli.datadir import open_path
from engram_cli.down import run_down, run_start, run_stop
from engram_cli.errors import CliError
from engram_cli.screen import Screen
from engram_cli.settings import default_data_dir
from engram_contract.names import HTTP_PORT

app = typer.Typer(
    name="engram",
    help="Agent memory on this machine: Postgres shards and a sidecar, from the manifests that a cluster takes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataDirOption = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        help="Where the memories lie.",
        default_factory=lambda: default_data_dir(os.environ, os.geteuid()),
        show_default="/var/lib/engram as root, else ~/.local/share/engram",
    ),
]


@app.command()
def up(
    file: Annotated[
        list[str], typer.Option("--file", "-f", help="A manifest: one MemoryCluster and its MemoryTenants; - is stdin.")
    ],
    data_dir: DataDirOption,
    port: Annotated[int, typer.Option(help="Of the first tenant; each further one has ten more.")] = HTTP_PORT,
    tenant: Annotated[list[str] | None, typer.Option(help="Serve only this tenant, as NAMESPACE/NAME.")] = None,
    postgres_version: Annotated[int | None, typer.Option(help="16 or 18, instead of the manifest's.")] = None,
) -> None:
    """Start the shards and serve the tenants until Ctrl-C."""
    if postgres_version not in (None, 16, 18):
        raise typer.BadParameter("16 or 18", param_hint="--postgres-version")
    from engram_cli.up import UpOptions, run_up  # noqa: PLC0415  see the module's docstring

    run_up(UpOptions(tuple(file), data_dir, port, tuple(tenant or ()), postgres_version), Screen())


@app.command()
def down(data_dir: DataDirOption) -> None:
    """Stop all that runs of a data directory; the memories stay."""
    run_down(open_path(data_dir), Screen())


@app.command()
def status(
    data_dir: DataDirOption,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,  # noqa: FBT002
) -> None:
    """Show shards and tenants."""
    from engram_cli.status import gather_report  # noqa: PLC0415  see the module's docstring

    Screen().status(gather_report(open_path(data_dir)), as_json=json)


@app.command()
def stop(shard: str, data_dir: DataDirOption) -> None:
    """Stop one shard, as if its machine were lost."""
    run_stop(open_path(data_dir), shard, Screen())


@app.command()
def start(shard: str, data_dir: DataDirOption) -> None:
    """Start one shard again."""
    run_start(open_path(data_dir), shard, Screen())


@app.command()
def version() -> None:
    """Show the version."""
    import importlib.metadata  # noqa: PLC0415  see the module's docstring

    try:
        Screen().print(importlib.metadata.version("engram"))
    except importlib.metadata.PackageNotFoundError:
        Screen().print("unknown: engram is not installed, it runs from a checkout")


def main() -> None:
    """Runs the command that the arguments ask for and ends the process."""
    try:
        app()
    except CliError as error:
        Screen().fail(" ".join(str(error).split()))
        sys.exit(error.exit_status)
    except OSError as error:  # a full disk, a directory that went: the rooms translate what they expect
        Screen().fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        sys.exit(1)


if __name__ == "__main__":
    main()
