"""The verbs of `kubectl engram`: look at a MemoryCluster, ask something of it, wait until it is so.

Promises
1. Nothing is changed but what the verb is called after, and that by one write: `spec.paused`, `spec.planOnly`, or the
   ConfigMap in which Patroni is asked for a switchover.
2. A verb that asks for something ends well only after it was seen to be so. Asked again, it says that it is so already.
3. A wait outlives an API server that does not answer; its own end is a deadline.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final, TypeVar

from engram_cli.clusterlines import (
    cluster_line,
    cluster_sign,
    list_row,
    member_row,
    member_sign,
    shard_row,
    shard_sign,
)
from engram_cli.clusterscreen import ClusterScreen
from engram_cli.clusterview import ClusterView, cluster_json, notices, read_cluster, to_json
from engram_cli.errors import Failure, Forbidden, Misuse, NotThere, Unreachable
from engram_cli.handover import (
    ENDS,
    STEPS,
    Handover,
    LiveShard,
    Stage,
    choose_shard,
    fate,
    judge,
    lead_notices,
    plan_handover,
    read_shard,
)
from engram_cli.kubectl import RESOURCE, Kubectl
from engram_contract.names import CLUSTER_LABEL, SCOPE_LABEL
from engram_operator.manifests.dcs import build_switchover

WATCH_S: Final = 2.0
WAIT_S: Final = 1.0
HANDOVER_S: Final = 0.3  # a switchover takes a few seconds, and its time is told to a tenth
NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LIST_COLUMNS: Final = ("cluster", "phase", "ready", "generation", "waits for")
SHARD_COLUMNS: Final = ("shard", "state", "primary", "slots", "schema", "postgres", "size", "waits for")
MEMBER_COLUMNS: Final = ("shard", "member", "role", "ready", "timeline", "lag", "waits for")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hands:
    """What the verbs work with. Clocks in seconds: one that tells the time of day, one that only goes forward."""

    kubectl: Kubectl
    screen: ClusterScreen
    as_json: bool = False
    now_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = field(default=time.sleep)


def run_status(hands: Hands, cluster: str | None, *, everywhere: bool, watch: bool) -> bool:
    """Shows one cluster, or all of a namespace or of all; whether every one of them is ready."""
    if cluster and everywhere:
        raise Misuse("-A shows the clusters of all namespaces: name no cluster, or a namespace with -n")
    if watch:
        return _watch(hands, cluster, everywhere=everywhere)
    if cluster is None:
        return _show_list(hands, _list(hands, everywhere=everywhere), everywhere=everywhere)
    view = _fetch(hands, cluster)
    said = _said(hands, view)
    if hands.as_json:
        hands.screen.json(cluster_json(view, said))
    else:
        hands.screen.tree(cluster_line(view, said, hands.now_s()))
    return view.is_ready


def run_shards(hands: Hands, cluster: str) -> None:
    """Shows the shards of a cluster and their members."""
    view = _fetch(hands, cluster)
    for each in _said(hands, view):
        hands.screen.note(each)
    if hands.as_json:
        hands.screen.json({**_place(view), "shards": to_json(view.shards)})
    elif not view.shards:
        hands.screen.say(f"{view.name} has no shards yet")
    else:
        shards = [(shard_sign(each), shard_row(each)) for each in view.shards]
        members = [(member_sign(each), member_row(shard, each)) for shard in view.shards for each in shard.members]
        hands.screen.tables((SHARD_COLUMNS, shards), *([(MEMBER_COLUMNS, members)] if members else []))


def run_plan(hands: Hands, cluster: str, turn: bool | None, timeout_s: float) -> None:  # noqa: FBT001  None is not asked
    """Shows what the operator would do, after spec.planOnly was set or taken away if that was asked."""
    view = _fetch(hands, cluster)
    if turn is not None and view.is_plan_only != turn:
        view = _patch(hands, view, {"planOnly": turn})
    if not view.is_current:
        why = f"the operator has not looked at generation {view.generation} of {view.name}"
        view = _until(hands, view, lambda seen: seen.is_current, why, timeout_s)
    steps = view.plan if view.is_plan_only or view.is_paused else None
    if hands.as_json:
        flags = {"planOnly": view.is_plan_only, "paused": view.is_paused}
        hands.screen.json({**_place(view), **flags, "steps": to_json(steps)})
        return
    _show_plan(hands, view, steps)


def run_pause(hands: Hands, cluster: str, *, paused: bool, timeout_s: float) -> None:
    """The operator leaves the cluster as it is, or works on it again, and says so."""
    word = "paused" if paused else "resumed"
    began_s = hands.monotonic_s()
    view = _fetch(hands, cluster)
    is_new = view.is_paused != paused
    if is_new:
        view = _patch(hands, view, {"paused": paused})
    if not _says_paused(view, paused):
        why = f"spec.paused of {view.name} is {str(paused).lower()}, and the operator has not said that it obeys"
        view = _until(hands, view, lambda seen: _says_paused(seen, paused), why, timeout_s)
    took_s = hands.monotonic_s() - began_s
    if hands.as_json:
        hands.screen.json({**_place(view), "paused": paused, "changed": is_new, "seconds": round(took_s, 1)})
    elif is_new:
        hands.screen.print(f"{view.name} is {word}; the operator says so after {took_s:.1f} s")
    else:
        hands.screen.print(f"{view.name} is paused already" if paused else f"{view.name} is not paused")
    if paused and is_new:
        hands.screen.say(f"Patroni still fails over by itself. To go on: kubectl engram resume {view.name}")


def run_switchover(hands: Hands, cluster: str, shard: str, to: str | None, *, yes: bool, timeout_s: float) -> None:
    """Another member of the shard is the primary. Works without the operator: Patroni does it."""
    if not yes and not sys.stdin.isatty():
        raise Misuse("nobody is there to confirm this: say --yes")
    view = _fetch(hands, cluster)
    scope = choose_shard(view, shard)
    handover = plan_handover(view, shard, _live(hands, view.namespace, scope), to)
    _show_handover(hands, handover)
    if not yes and not hands.screen.confirms("Switch over?"):
        raise Failure("nothing was changed")
    ask = build_switchover(view.namespace, view.name, scope, handover.primary, handover.candidate)
    began_s = hands.monotonic_s()
    hands.kubectl.apply(ask)
    _follow(hands, handover, began_s, timeout_s)
    took_s = hands.monotonic_s() - began_s
    if hands.as_json:
        who = {"shard": shard, "from": handover.primary, "to": handover.candidate}
        hands.screen.json({**_place(view), **who, "seconds": round(took_s, 1)})
    else:
        hands.screen.print(f"{handover.candidate} is the primary of {shard}; it took {took_s:.1f} s")


# ------------------------------------------------------------------------------------------------------------- looking


def _fetch(hands: Hands, cluster: str) -> ClusterView:
    """The cluster as it is. Raises NotThere with the names that are like it."""
    if not NAME.fullmatch(cluster):
        raise Misuse(f"{cluster!r} is not a name of a MemoryCluster")
    try:
        return read_cluster(hands.kubectl.fetch(RESOURCE, cluster, "--show-managed-fields"))
    except NotThere as error:
        names: list[str] = []
        with suppress(Failure, Misuse):  # the first error is the one to tell
            names = [each.name for each in _list(hands, everywhere=False)]
        near = get_close_matches(cluster, names, n=3) or sorted(names)[:3]
        hint = f"; did you mean {' or '.join(near)}?" if near else "; there is none in this namespace, see -A and -n"
        raise NotThere(f"there is no MemoryCluster {cluster}{hint}") from error


def _list(hands: Hands, *, everywhere: bool) -> list[ClusterView]:
    scope = ("--all-namespaces",) if everywhere else ()
    found = hands.kubectl.fetch(RESOURCE, "--show-managed-fields", *scope)["items"]
    return sorted((read_cluster(each) for each in found), key=lambda each: (each.namespace, each.name))


def _said(hands: Hands, view: ClusterView) -> tuple[str, ...]:
    """The notices over a cluster; those that need a look at Patroni are left out where we may not look."""
    now_s = hands.now_s()
    maps: list[dict[str, Any]] = []
    with suppress(Forbidden):
        those = ("-l", f"{CLUSTER_LABEL}={view.name},{SCOPE_LABEL}")
        maps = hands.kubectl.fetch("configmaps", *those, namespace=view.namespace)["items"]
    return (*notices(view, now_s), *lead_notices(view, maps, now_s))


def _live(hands: Hands, namespace: str, scope: str) -> LiveShard:
    found = hands.kubectl.fetch("pods,configmaps", "-l", f"{SCOPE_LABEL}={scope}", namespace=namespace)
    return read_shard(found["items"], scope)


def _place(view: ClusterView) -> dict[str, object]:
    return {"namespace": view.namespace, "cluster": view.name}


# ------------------------------------------------------------------------------------------------------------- showing


def _show_list(hands: Hands, views: Sequence[ClusterView], *, everywhere: bool) -> bool:
    said = [tuple(notices(each, hands.now_s())) for each in views]
    if hands.as_json:
        hands.screen.json({"clusters": [cluster_json(*each) for each in zip(views, said, strict=True)]})
    elif not views:
        hands.screen.say("there is no MemoryCluster" + ("" if everywhere else " in this namespace; see -A and -n"))
    elif everywhere:
        rows = [(cluster_sign(v), (v.namespace, *list_row(v, s))) for v, s in zip(views, said, strict=True)]
        hands.screen.tables((("namespace", *LIST_COLUMNS), rows))
    else:
        hands.screen.tables(
            (LIST_COLUMNS, [(cluster_sign(v), list_row(v, s)) for v, s in zip(views, said, strict=True)])
        )
    return all(each.is_ready for each in views)


def _watch(hands: Hands, cluster: str | None, *, everywhere: bool) -> bool:
    """Shows what changes until Ctrl-C; whether all was ready at last. As JSON: one line for each change."""
    views: list[ClusterView] = []
    shown: object = None
    with suppress(KeyboardInterrupt), hands.screen.watching() as show:
        while True:
            try:
                views = _list(hands, everywhere=everywhere) if cluster is None else [_fetch(hands, cluster)]
            except Unreachable as error:
                hands.screen.note(str(error))
                hands.sleep(WATCH_S)
                continue
            said = [_said(hands, each) for each in views]
            present = [cluster_json(*each) for each in zip(views, said, strict=True)]
            if hands.as_json and present != shown:
                hands.screen.json(present[0] if cluster else {"clusters": present}, indent=None)
            elif not hands.as_json and (present != shown or hands.screen.is_terminal):
                show([cluster_line(v, s, hands.now_s()) for v, s in zip(views, said, strict=True)])
            shown = present
            hands.sleep(WATCH_S)
    return all(each.is_ready for each in views)


def _show_plan(hands: Hands, view: ClusterView, steps: Sequence[str] | None) -> None:
    screen, ready = hands.screen, view.condition("Ready")
    if steps is None:
        now = "nothing is left to do" if view.is_ready or ready is None else ready.message
        screen.print(f"{view.name} carries out its plan at once; now: {now}")
        screen.say(
            f"To see steps before they are taken: kubectl engram plan {view.name} --turn-on, then change the spec"
        )
        return
    for number, step in enumerate(steps, 1):
        screen.print(f"{number:3}. {step}")
    if not steps:
        screen.print("nothing is left to do")
    if view.is_plan_only:
        screen.say(f"Nothing is carried out; to let it: kubectl engram plan {view.name} --turn-off")
    if view.is_paused:
        screen.say(f"Nothing is carried out while it is paused; to let it: kubectl engram resume {view.name}")


def _show_handover(hands: Hands, handover: Handover) -> None:
    lag = f"{handover.lag_bytes} bytes behind"
    how = (
        f"synchronous, {lag}"
        if handover.is_synchronous
        else f"asynchronous, {lag}: what it does not have yet it waits for"
    )
    hands.screen.say(f"{handover.shard} of {handover.namespace}/{handover.cluster}: primary {handover.primary}")
    hands.screen.say(f"  its place takes {handover.candidate} ({how})")
    hands.screen.say("  writes to this shard wait or fail for some seconds, and connections to the old primary end")


# ------------------------------------------------------------------------------------------------------------- waiting


def _patch(hands: Hands, view: ClusterView, spec: dict[str, object]) -> ClusterView:
    return read_cluster(hands.kubectl.patch_spec(view.namespace, view.name, spec))


def _says_paused(view: ClusterView, paused: bool) -> bool:  # noqa: FBT001  what is asked of the status
    said = view.condition("Paused")
    return view.is_current and said is not None and said.status == str(paused) and said.generation >= view.generation


def _until(
    hands: Hands, view: ClusterView, is_so: Callable[[ClusterView], bool], why: str, timeout_s: float
) -> ClusterView:
    """The cluster once `is_so` holds. Raises Failure with `why` after `timeout_s`, or what the operator refuses."""
    deadline_s = hands.monotonic_s() + timeout_s
    with hands.screen.spinning(f"waiting for the operator to look at {view.name}"):
        for seen in _looks(hands, deadline_s, WAIT_S, lambda: _fetch(hands, view.name)):
            if is_so(seen):
                return seen
            ready = seen.condition("Ready")
            if seen.is_current and ready is not None and ready.reason == "BadSpec":
                raise Failure(f"the operator refuses the spec of {view.name}: {ready.message}")
    raise Failure(f"not so within {timeout_s:.0f} s: {why}; is the operator at work?")


def _follow(hands: Hands, handover: Handover, began_s: float, timeout_s: float) -> None:
    """Returns once the candidate is the primary; raises Failure if it does not become it."""
    stage, live = Stage.ASKED, None
    with hands.screen.steps(len(STEPS) - 1) as show:
        show(0, stage.value)
        looks = _looks(hands, began_s + timeout_s, HANDOVER_S, lambda: _live(hands, handover.namespace, handover.scope))
        for live in looks:
            stage = judge(handover, live)
            if stage in STEPS:
                show(STEPS.index(stage), stage.value)
            if stage in ENDS:
                break
    if live is None:
        raise Unreachable(f"the API server has not answered for {timeout_s:.0f} s; the request was written before")
    if stage is not Stage.DONE:
        raise fate(handover, stage, live, timeout_s)


def _looks(hands: Hands, deadline_s: float, pause_s: float, look: Callable[[], T]) -> Iterator[T]:
    """What is seen until the deadline, as often as `pause_s` allows; looks that met no API server are left out."""
    while True:
        with suppress(Unreachable):
            yield look()
        if hands.monotonic_s() >= deadline_s:
            return
        hands.sleep(pause_s)
