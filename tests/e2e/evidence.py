"""What a cluster shows after a test failed on it, cut to what a person reads: pods, logs, events, the audit log.

It is gathered after the fact and for reading alone: whatever goes wrong here becomes a line of it, never an error.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.e2e.cluster import Cluster, holds

AUDIT_VARIABLE: Final = "ENGRAM_E2E_AUDIT_LOG"
SYSTEM_NAMESPACE: Final = "engram-system"
TOTAL_LINES: Final = 200
LOG_LINES: Final = 40  # of each container
EVENT_LINES: Final = 30
AUDIT_LINES: Final = 40
LINE_CHARS: Final = 240
AUDIT_TAIL_BYTES: Final = 4 << 20  # metadata lines are about 1 KiB: some thousand requests
REQUEST_S: Final = 10.0  # an API server that hangs is news too, but not worth minutes
READING_VERBS: Final = {"get", "list", "watch"}
CLIENT_ERROR: Final = 400
Json = dict[str, Any]


def evidence(cluster: Cluster, since: datetime) -> str:
    """The text of the section that the report of a failed test gets, which began at `since`."""
    requests = partial(_requests, since=since)
    parts = (("pods", _pods), ("events", _events), ("requests", requests), ("logs", _logs))
    hasty = replace(cluster, timeout_s=REQUEST_S)
    lines: list[str] = []
    for title, look in parts:
        try:
            lines += [f"--- {title}", *look(hasty)]
        except Exception as error:  # noqa: BLE001  the test's own failure must stay the news
            lines.append(f"({title} could not be read: {error!r})")
    return "\n".join(cut(lines, TOTAL_LINES))


def cut(lines: list[str], most: int) -> list[str]:
    """At most so many lines, each short; what is left out is counted."""
    kept = lines if len(lines) <= most else [*lines[: most - 1], f"... {len(lines) - most + 1} more lines"]
    return [line if len(line) <= LINE_CHARS else line[: LINE_CHARS - 3] + "..." for line in kept]


def pod_lines(pod: Json) -> Iterator[str]:
    """One line of a pod, and one of each container that waits, was killed or was started again."""
    meta, status = pod["metadata"], pod.get("status", {})
    is_ready = {each["type"]: each["status"] for each in status.get("conditions", ())}.get("Ready", "Unknown")
    where = pod["spec"].get("nodeName", "no node")
    yield f"{meta['namespace']}/{meta['name']} {status.get('phase')} Ready={is_ready} on {where}"
    for each in status.get("conditions", ()):
        if each["status"] != "True" and each.get("message"):
            yield f"  {each['type']}={each['status']}: {each.get('reason')}: {each['message']}"
    for each in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        states = {**each.get("lastState", {}), **each.get("state", {})}
        troubles = [f"{name} {state}" for name, state in states.items() if name != "running"]
        if troubles or each["restartCount"]:
            yield f"  {each['name']} restarted {each['restartCount']} times: {'; '.join(troubles)}"


def audit_lines(log: Iterable[str], since: datetime) -> list[str]:
    """The last changes since then that were refused, or asked for by Engram, one line each."""
    first = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    found = []
    for line in log:
        try:
            event = json.loads(line)
            who, code = event["user"]["username"], event.get("responseStatus", {}).get("code", 0)
            told = event.get("responseStatus", {}).get("message", "")
        except (ValueError, KeyError, TypeError):
            continue  # the first line of a tail is half a line
        if "because it is being terminated" in told:  # every controller runs into a namespace on its way out
            continue
        is_ours = f":{SYSTEM_NAMESPACE}:" in who or "fieldManager=engram" in event["requestURI"]
        when = event["requestReceivedTimestamp"]
        if when >= first and event["verb"] not in READING_VERBS and (is_ours or code >= CLIENT_ERROR):
            found.append(f"{when} {code} {event['verb']} {event['requestURI']} {who} {told}".rstrip())
    return found[-AUDIT_LINES:]


def _pods(cluster: Cluster) -> list[str]:
    return [line for pod in _all_pods(cluster) for line in pod_lines(pod)]


def _events(cluster: Cluster) -> list[str]:
    found = []
    for name in _namespaces(cluster):
        for each in cluster.request("GET", f"/api/v1/namespaces/{name}/events")[1].get("items", ()):
            when = each.get("lastTimestamp") or each.get("eventTime") or each["metadata"]["creationTimestamp"]
            thing = each["involvedObject"]
            told = f"{each['reason']}: {each.get('message')}"
            found.append(f"{when} {each.get('type')} {name}/{thing.get('kind')}/{thing.get('name')} {told}")
    return sorted(found)[-EVENT_LINES:]


def _requests(_cluster: Cluster, since: datetime) -> list[str]:
    name = os.environ.get(AUDIT_VARIABLE)
    if not name:
        return [f"({AUDIT_VARIABLE} names no audit log)"]
    with Path(name).open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - AUDIT_TAIL_BYTES))
        return audit_lines(log.read().decode(errors="replace").splitlines(), since)


def _logs(cluster: Cluster) -> list[str]:
    """The last lines of every container; pods that are not ready come first, for the end is what is cut."""
    lines = []
    for pod in sorted(_all_pods(cluster), key=partial(holds, condition="Ready")):
        name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/log"
        status = pod.get("status", {})
        for each in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
            for previous in ("true", "false") if each["restartCount"] else ("false",):
                query = {"container": each["name"], "tailLines": LOG_LINES, "previous": previous}
                text = cluster.fetch("GET", path, **query)[1].splitlines()
                lines += [f"{name} {each['name']}{' before its restart' * (previous == 'true')}:", *text]
    return lines


def _all_pods(cluster: Cluster) -> list[Json]:
    return [
        pod
        for name in _namespaces(cluster)
        for pod in cluster.request("GET", f"/api/v1/namespaces/{name}/pods")[1].get("items", ())
    ]


def _namespaces(cluster: Cluster) -> list[str]:
    return [*sorted(cluster.namespaces), SYSTEM_NAMESPACE]
