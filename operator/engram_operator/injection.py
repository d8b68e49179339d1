"""What the injector adds to a pod: one native sidecar, its volume, and the address of the memory for everybody else.

    pod, sidecar         --find_obstacle--> why not, in words for whoever made the pod
    pod, tenant, sidecar --build_patch-->   operations of RFC 6902, none if the pod has it all

The sidecar is the installation's, tuned by the pod's annotations (tuning.py).

Promises
1. The patch adds; of what is there it changes only what an earlier injection put there.
2. After the patch there is nothing left to add: a second run gives no operations.
3. Only the sidecar mounts the tenant's credentials: a container that mounts a volume of that name is an obstacle.

Pure. Must never refuse a pod: what cannot be injected starts without memory, and is told why.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engram_contract.names import (
    ADMIN_PORT,
    ADMIN_PORT_NAME,
    AGENT_LABEL,
    CONFIG_DIR,
    CONFIG_VOLUME,
    CREDENTIALS_FILE,
    ENV_ADMIN_PORT,
    ENV_AGENT,
    ENV_CONFIG_DIR,
    ENV_DRAIN_S,
    ENV_HOST,
    ENV_HTTP_PORT,
    ENV_LOG_LEVEL,
    ENV_OTLP_ENDPOINT,
    ENV_POD_NAME,
    ENV_POD_UID,
    ENV_SERVICE_ACCOUNT,
    ENV_URL,
    HTTP_PORT,
    INJECTED_LABEL,
    KEYS_FILE,
    MAP_FILE,
    POLICY_FILE,
    SIDECAR_CONTAINER,
    SIDECAR_HASH_ANNOTATION,
    tenant_objects,
)
from engram_operator.errors import BadAnnotation
from engram_operator.tuning import Tuning

Manifest = Mapping[str, Any]
Operation = dict[str, Any]

# Who the pod is, as the sidecar tells it to whoever asks: fields of the pod, which no agent can choose for itself.
IDENTITY: Final = {
    ENV_AGENT: f"metadata.labels['{AGENT_LABEL}']",
    ENV_SERVICE_ACCOUNT: "spec.serviceAccountName",
    ENV_POD_NAME: "metadata.name",
    ENV_POD_UID: "metadata.uid",
}
SIDECAR_USER: Final = 65_532  # "nonroot" of the usual base images
READABLE: Final = 0o444  # by any user: the sidecar's is not the volume's owner, and the app may need its own fsGroup
STARTUP_TRIES: Final = 120  # seconds: as long as a tenant's Secret may take to come, and longer than any image pull
HASH_CHARS: Final = 16
MIRROR_ANNOTATION: Final = "kubernetes.io/config.mirror"


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What an installation decides about each sidecar. `resources`: ResourceRequirements; no endpoint, no traces."""

    image: str
    pull_policy: str
    resources: Manifest
    otlp_endpoint: str = ""


def build_container(sidecar: Sidecar, tuning: Tuning) -> dict[str, Any]:
    """The sidecar: an init container that goes on running, so the app starts when its memory is there."""
    port = tuning.admin_port
    return {
        "name": SIDECAR_CONTAINER,
        "image": sidecar.image,
        "imagePullPolicy": sidecar.pull_policy,
        "restartPolicy": "Always",
        "env": _sidecar_environment(sidecar, tuning),
        "ports": [{"name": ADMIN_PORT_NAME, "containerPort": port, "protocol": "TCP"}],
        "startupProbe": _probe("/readyz", port, period_s=1, tries=STARTUP_TRIES),
        # Lax: a stall is no reason for a restart, which would only drop warm connections and caches.
        "livenessProbe": _probe("/healthz", port, period_s=10, tries=6, timeout_s=5),
        "readinessProbe": _probe("/readyz", port, period_s=2, tries=2),
        "resources": dict(tuning.resources),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": SIDECAR_USER,
            "runAsGroup": SIDECAR_USER,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": CONFIG_VOLUME, "mountPath": CONFIG_DIR, "readOnly": True}],
    }


def _sidecar_environment(sidecar: Sidecar, tuning: Tuning) -> list[dict[str, Any]]:
    """What the sidecar is told; what it is not told has the sidecar's own default."""
    tuned = {
        ENV_HTTP_PORT: str(tuning.http_port) if tuning.http_port != HTTP_PORT else "",
        ENV_ADMIN_PORT: str(tuning.admin_port) if tuning.admin_port != ADMIN_PORT else "",
        ENV_LOG_LEVEL: tuning.log_level,
        ENV_DRAIN_S: "" if tuning.drain_s is None else str(tuning.drain_s),
        ENV_OTLP_ENDPOINT: sidecar.otlp_endpoint,
    }
    return [
        {"name": ENV_CONFIG_DIR, "value": CONFIG_DIR},
        # Probes and metrics are asked from outside the pod; the interface itself stays on loopback.
        _field(ENV_HOST, "status.podIP"),
        *(_field(name, path) for name, path in IDENTITY.items()),
        *({"name": name, "value": value} for name, value in tuned.items() if value),
    ]


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _probe(path: str, port: int, *, period_s: int, tries: int, timeout_s: int = 1) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "failureThreshold": tries,
        "timeoutSeconds": timeout_s,
    }


def build_volume(tenant: str) -> dict[str, Any]:
    """The sidecar's folder: the tenant's Secret and ConfigMap in one. A new version replaces all files at once."""
    return _volume_of(tenant_objects(tenant))


def _volume_of(name: str) -> dict[str, Any]:
    return {
        "name": CONFIG_VOLUME,
        "projected": {
            "defaultMode": READABLE,
            "sources": [
                {"secret": {"name": name, "items": _items(CREDENTIALS_FILE)}},
                {"configMap": {"name": name, "items": _items(MAP_FILE, POLICY_FILE)}},
                # A source of its own: only a tenant with encryption has keys, and a key that is missing fails the whole
                # mount unless its source is optional, which the credentials must not be.
                {"secret": {"name": name, "items": _items(KEYS_FILE), "optional": True}},
            ],
        },
    }


def _items(*files: str) -> list[dict[str, str]]:
    return [{"key": file, "path": file} for file in files]


def sidecar_hash(container: Manifest, volume: Manifest) -> str:
    """Which sidecar this is: the same for the same container and volume, in whatever order their members stand."""
    text = json.dumps([container, volume], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARS]


def find_obstacle(pod: Manifest, sidecar: Sidecar) -> str | None:
    """Why this pod cannot have the sidecar, in words for whoever made it; None if it can."""
    spec = pod.get("spec") or {}
    try:
        tuning = _tuning(pod, sidecar)
    except BadAnnotation as bad:
        return str(bad)
    if MIRROR_ANNOTATION in _annotations(pod):
        return "a static pod cannot use the tenant's Secret; run the agent as a Deployment"
    for field in ("hostNetwork", "hostPID", "shareProcessNamespace"):
        if spec.get(field):
            return f"with {field} others could reach the tenant's memory or credentials; remove {field}"
    if (spec.get("os") or {}).get("name") == "windows":
        return "the sidecar runs on Linux only; remove the label or choose a Linux node"
    if any((spec.get("resources") or {}).values()):
        # Their rules compare sums over all containers; a mistake of ours would have the whole pod refused.
        return "resources of the pod as a whole (spec.resources) leave the sidecar no room; give them to its containers"
    return next(_conflicts(pod, spec, tuning), None)


def _tuning(pod: Manifest, sidecar: Sidecar) -> Tuning:
    return Tuning.from_annotations(_annotations(pod), sidecar.resources)


def _conflicts(pod: Manifest, spec: Manifest, tuning: Tuning) -> Iterator[str]:
    """Names, ports and mounts of the pod's own that are the sidecar's."""
    has_ours = _has_ours(pod, spec)
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            if has_ours and kind == "initContainers" and is_sidecar(container):
                continue
            if container.get("name") == SIDECAR_CONTAINER:
                yield f"a container of yours has the sidecar's name {SIDECAR_CONTAINER}; rename it"
            yield from _port_conflicts(container, tuning)
            yield from _mount_conflicts(container)
    if not has_ours and _position(spec.get("volumes"), CONFIG_VOLUME) is not None:
        yield f"a volume of yours has the sidecar's name {CONFIG_VOLUME}; rename it"


def _port_conflicts(container: Manifest, tuning: Tuning) -> Iterator[str]:
    for port in container.get("ports") or ():
        is_named = port.get("name") == ADMIN_PORT_NAME
        if is_named or port.get("containerPort") in (tuning.http_port, tuning.admin_port):
            shown = ADMIN_PORT_NAME if is_named else port.get("containerPort")
            yield f"container {container.get('name')} declares port {shown}, which the sidecar needs; choose another"


def _mount_conflicts(container: Manifest) -> Iterator[str]:
    for kind, field in (("volumeMounts", "mounts"), ("volumeDevices", "uses")):
        if _position(container.get(kind), CONFIG_VOLUME) is not None:
            yield (
                f"container {container.get('name')} {field} {CONFIG_VOLUME}, which holds the tenant's credentials and "
                "is the sidecar's alone; rename your volume"
            )


def _has_ours(pod: Manifest, spec: Manifest) -> bool:
    """Whether an earlier injection made this pod's sidecar and volume. Anybody can copy the annotation alone."""
    volumes = [each for each in spec.get("volumes") or () if each.get("name") == CONFIG_VOLUME]
    return (
        SIDECAR_HASH_ANNOTATION in _annotations(pod)
        and len(volumes) == 1
        and _is_volume(volumes[0])
        and any(is_sidecar(container) for container in spec.get("initContainers") or ())
    )


def _is_volume(volume: Manifest) -> bool:
    """Whether this is what `build_volume` makes for some tenant."""
    try:
        name = volume["projected"]["sources"][0]["secret"]["name"]
    except (KeyError, IndexError, TypeError):
        return False
    return str(name).startswith(tenant_objects("")) and volume == _volume_of(name)


def is_sidecar(container: Manifest) -> bool:
    """Whether this init container is a sidecar of ours, of whatever version."""
    mount = {"name": CONFIG_VOLUME, "mountPath": CONFIG_DIR, "readOnly": True}
    return (
        container.get("name") == SIDECAR_CONTAINER
        and container.get("restartPolicy") == "Always"
        and mount in (container.get("volumeMounts") or ())
    )


def build_patch(pod: Manifest, tenant: str, sidecar: Sidecar) -> tuple[Operation, ...]:
    """The operations that give the pod its sidecar. The pod has no obstacle; none if it has everything."""
    tuning = _tuning(pod, sidecar)
    container, volume = build_container(sidecar, tuning), build_volume(tenant)
    digest = sidecar_hash(container, volume)
    is_current = _annotations(pod).get(SIDECAR_HASH_ANNOTATION) == digest
    spec = pod.get("spec") or {}
    return (
        *_environment(spec, sidecar_url(tuning.http_port)),  # first: the sidecar's insertion moves the init containers
        *_placed(spec, "volumes", volume, is_current=is_current),
        *_placed(spec, "initContainers", container, is_current=is_current),
        *_marks(pod, digest),
    )


def sidecar_url(http_port: int | str) -> str:
    """Where the containers beside a sidecar find it."""
    return f"http://127.0.0.1:{http_port}"


def _environment(spec: Manifest, url: str) -> Iterator[Operation]:
    """The memory's address for each container that has none of its own; one that an earlier injection gave follows."""
    variable, earlier = {"name": ENV_URL, "value": url}, {"name": ENV_URL, "value": _earlier_url(spec)}
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or ()):
            if container.get("name") == SIDECAR_CONTAINER:
                continue
            place, env = f"/spec/{kind}/{index}/env", container.get("env")
            position = _position(env, ENV_URL)
            if not env:
                yield _add(place, [variable])
            elif position is None:
                yield _add(f"{place}/-", variable)
            elif env[position] == earlier != variable:
                yield {"op": "replace", "path": f"{place}/{position}", "value": variable}


def _earlier_url(spec: Manifest) -> str:
    """The address of the sidecar that is in the pod already; empty if there is none."""
    for container in spec.get("initContainers") or ():
        if is_sidecar(container):
            env = container.get("env") or ()
            told = (each.get("value") for each in env if each.get("name") == ENV_HTTP_PORT)
            return sidecar_url(next(told, None) or HTTP_PORT)
    return ""


def _placed(spec: Manifest, kind: str, thing: Manifest, *, is_current: bool) -> Iterator[Operation]:
    """The thing in its list: at index 0 if it is not there (the first init container starts before all others)."""
    present = spec.get(kind)
    position = _position(present, thing["name"])
    if position is not None:
        if not is_current:
            yield {"op": "replace", "path": f"/spec/{kind}/{position}", "value": thing}
    elif present:
        yield _add(f"/spec/{kind}/0" if kind == "initContainers" else f"/spec/{kind}/-", thing)
    else:
        yield _add(f"/spec/{kind}", [thing])


def _marks(pod: Manifest, digest: str) -> Iterator[Operation]:
    """The label that the pod has a sidecar, and the annotation which one."""
    labels, annotations = {INJECTED_LABEL: "true"}, {SIDECAR_HASH_ANNOTATION: digest}
    metadata = pod.get("metadata")
    if not metadata:
        yield _add("/metadata", {"labels": labels, "annotations": annotations})
        return
    for kind, marks in (("labels", labels), ("annotations", annotations)):
        present = metadata.get(kind)
        if not present:
            yield _add(f"/metadata/{kind}", marks)
            continue
        for name, value in marks.items():
            if present.get(name) != value:
                yield _add(f"/metadata/{kind}/{name.replace('~', '~0').replace('/', '~1')}", value)


def _add(path: str, value: object) -> Operation:
    return {"op": "add", "path": path, "value": value}


def _annotations(pod: Manifest) -> Manifest:
    return (pod.get("metadata") or {}).get("annotations") or {}


def _position(things: Sequence[Manifest] | None, name: str) -> int | None:
    """Where the thing of this name stands in a list of the pod's."""
    return next((index for index, thing in enumerate(things or ()) if thing.get("name") == name), None)
