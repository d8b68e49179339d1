"""`kubectl engram`: the commands. The second file that knows typer, as the plugin is a program of its own.

Exit status: 0 done or ready, 1 not ready or the cluster is not as it should be, 2 the command is wrong. Errors are one
line. The options that choose a cluster may stand anywhere, as with kubectl's own verbs.
"""

import importlib.metadata
import sys
from collections.abc import Sequence
from enum import Enum
from itertools import islice
from typing import Annotated, Final

import typer

from engram_cli.clusterscreen import ClusterScreen
from engram_cli.errors import CliError
from engram_cli.kubectl import Kubectl
from engram_cli.pluginverbs import Hands, run_pause, run_plan, run_shards, run_status, run_switchover

GLOBAL_OPTIONS: Final = frozenset({"--context", "--kubeconfig", "--namespace", "-n"})
ANYWHERE: Final = "--context, --kubeconfig and --namespace (-n) may stand before or after the verb."

app = typer.Typer(
    name="kubectl engram",
    help="Memory clusters on Kubernetes: what they are doing, and what a person may ask of them.",
    epilog=ANYWHERE,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Output(Enum):
    """Forms of the result."""

    JSON = "json"


Cluster = Annotated[str, typer.Argument(help="Name of the MemoryCluster.")]
OutputOption = Annotated[Output | None, typer.Option("--output", "-o", help="Write the result as JSON.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait for.", min=1)]


def _print_version(asked: bool) -> None:  # noqa: FBT001  as typer calls it
    if asked:
        try:
            ClusterScreen().print(importlib.metadata.version("engram"))
        except importlib.metadata.PackageNotFoundError:
            ClusterScreen().print("unknown: engram is not installed, it runs from a checkout")
        raise typer.Exit


@app.callback()
def choose(
    context: typer.Context,
    kube_context: Annotated[str | None, typer.Option("--context", help="As kubectl's.")] = None,
    kubeconfig: Annotated[str | None, typer.Option("--kubeconfig", help="As kubectl's.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="As kubectl's.")] = None,
    version: Annotated[  # noqa: ARG001, FBT002  its callback does it
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Memory clusters on Kubernetes: what they are doing, and what a person may ask of them."""
    chosen = {"--context": kube_context, "--kubeconfig": kubeconfig, "--namespace": namespace}
    context.obj = Kubectl([f"{name}={value}" for name, value in chosen.items() if value])


@app.command(epilog=ANYWHERE)
def status(
    context: typer.Context,
    cluster: Annotated[str | None, typer.Argument(help="Name of a MemoryCluster; without it, all.")] = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")] = False,  # noqa: FBT002
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until Ctrl-C.")] = False,  # noqa: FBT002
    output: OutputOption = None,
) -> None:
    """Show a cluster as a tree, or all in short. Exit status 0 if ready for the present spec, 1 if not."""
    if not run_status(_hands(context, output), cluster, everywhere=everywhere, watch=watch):
        raise typer.Exit(1)


@app.command(epilog=ANYWHERE)
def shards(context: typer.Context, cluster: Cluster, output: OutputOption = None) -> None:
    """Show the shards and their members."""
    run_shards(_hands(context, output), cluster)


@app.command(epilog=ANYWHERE)
def plan(
    context: typer.Context,
    cluster: Cluster,
    turn: Annotated[
        bool | None, typer.Option("--turn-on/--turn-off", help="Set spec.planOnly first, or take it away.")
    ] = None,
    timeout: Timeout = 60,
    output: OutputOption = None,
) -> None:
    """Show what the operator would do: its steps stand in the status while spec.planOnly or spec.paused is set."""
    run_plan(_hands(context, output), cluster, turn, timeout)


@app.command(epilog=ANYWHERE)
def pause(context: typer.Context, cluster: Cluster, timeout: Timeout = 60, output: OutputOption = None) -> None:
    """Make the operator leave the cluster as it is."""
    run_pause(_hands(context, output), cluster, paused=True, timeout_s=timeout)


@app.command(epilog=ANYWHERE)
def resume(context: typer.Context, cluster: Cluster, timeout: Timeout = 60, output: OutputOption = None) -> None:
    """Let the operator work on the cluster again."""
    run_pause(_hands(context, output), cluster, paused=False, timeout_s=timeout)


@app.command(epilog=ANYWHERE)
def switchover(  # noqa: PLR0913, PLR0917  the options of a command are its parameters
    context: typer.Context,
    cluster: Cluster,
    shard: Annotated[str, typer.Argument(help="Which shard, such as s0.")],
    to: Annotated[str | None, typer.Option("--to", help="The pod to lead; without it, the best one.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,  # noqa: FBT002
    timeout: Timeout = 60,
    output: OutputOption = None,
) -> None:
    """Make another member of a shard its primary. Patroni does it, also while the operator is down."""
    run_switchover(_hands(context, output), cluster, shard, to, yes=yes, timeout_s=timeout)


def hoist(arguments: Sequence[str]) -> list[str]:
    """The arguments with the options that choose a cluster first, where typer wants those of all verbs."""
    chosen: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for each in left:
        name = each.partition("=")[0]
        if each == "--":
            rest += [each, *left]
        elif name not in GLOBAL_OPTIONS and not (each.startswith("-n") and len(each) > len("-n")):
            rest.append(each)
        else:
            chosen.append(each)
            chosen += islice(left, 0 if "=" in each or name not in GLOBAL_OPTIONS else 1)
    return [*chosen, *rest]


def main() -> None:
    """Runs the verb that the arguments ask for and ends the process."""
    try:
        app(hoist(sys.argv[1:]), prog_name="kubectl engram")
    except CliError as error:
        ClusterScreen().fail(" ".join(str(error).split()))
        sys.exit(error.exit_status)


def _hands(context: typer.Context, output: Output | None) -> Hands:
    return Hands(context.obj, ClusterScreen(), as_json=output is Output.JSON)


if __name__ == "__main__":
    main()
