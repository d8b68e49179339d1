"""Whether what is in a namespace is what the pure builders make of a spec. The judge is not the operator's plan.

Two ways, because each sees what the other cannot: field by field, everything that a builder gives is in the live
object; and the API server is asked, in a dry run, what an apply of the builder's manifest would change: nothing, so
that no field is left of an earlier spec either.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any, Final

from engram_contract.names import CLUSTER_LABEL, TENANT_LABEL
from engram_contract.spec import ClusterSpec
from engram_operator.clients.kube import OWNED
from engram_operator.manifests.cluster import Present, build_cluster, build_shard
from engram_operator.manifests.credentials import Credentials, KeyPair
from engram_operator.manifests.meta import Owner
from engram_operator.manifests.names import ClusterNames
from engram_operator.manifests.site import Site
from engram_operator.plan.drift import first_difference, stamped
from engram_operator.plan.shape import inputs_of, plan_shape
from tests.e2e import memory
from tests.e2e.cluster import Cluster
from tests.e2e.operators import LABELS, Operators
from tests.e2e.releases import image

MADE: Final = tuple(kind for kind in OWNED if kind not in {"Pod", "PersistentVolumeClaim"})
MADE_BY_PATRONI: Final = ("-leader", "-failover", "-sync")
VOLATILE: Final = ("managedFields", "resourceVersion", "generation")
Json = dict[str, Any]
Place = tuple[str, str]


def site_of(operators: Operators) -> Site:
    """What the operators of a block know of their installation."""
    labels = tuple((name, value) for name, _, value in (each.partition("=") for each in LABELS.split(",")))
    return Site(operators.namespace, labels, image("postgres"), image("redis"))


def live_objects(cluster: Cluster, namespace: str, name: str = "memory", *kinds: str) -> dict[Place, Json]:
    """What bears the cluster's label, but for what Patroni makes for itself."""
    found: dict[Place, Json] = {}
    selector = f"{CLUSTER_LABEL}={name},!{TENANT_LABEL}"
    for kind in kinds or MADE:
        items = cluster.request("GET", OWNED[kind].path(namespace), labelSelector=selector)[1].get("items") or ()
        for item in items:
            if not item["metadata"]["name"].endswith(MADE_BY_PATRONI):
                found[kind, item["metadata"]["name"]] = item
    return found


def wanted_objects(body: Json, live: dict[Place, Json], site: Site) -> dict[Place, Json]:
    """What the builders make of the spec as it is."""
    spec = ClusterSpec.from_resource(body)
    owner, names = Owner(spec.namespace, spec.name, body["metadata"]["uid"]), ClusterNames(spec.name, spec.namespace)
    credentials = Credentials.from_data(live["Secret", names.credentials]["data"])
    pair = KeyPair.from_data(live["Secret", names.ca]["data"]) if spec.postgres.tls.enabled else None
    shards = [shard.id for shard in spec.shards]
    objects = list(
        build_cluster(spec, owner, site, credentials, Present(pair, dict.fromkeys(shards, spec.replicas + 1)))
    )
    for shard in shards:
        *parts, statefulset = build_shard(spec, shard, owner, site)
        twin = live.get(("StatefulSet", statefulset["metadata"]["name"]))
        assert first_difference(statefulset["spec"]["template"], (twin or statefulset)["spec"]["template"]) is None
        inputs = inputs_of(spec, body["metadata"].get("annotations") or {})
        objects += [*parts, plan_shape(statefulset, twin, inputs, spec.update_policy)[0]]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def differences(operators: Operators, namespace: str, name: str = "memory") -> list[str]:
    """What of the live objects is not as the builders make it, one line each; nothing if all is."""
    cluster = operators.cluster
    body, live = memory.fetch(cluster, namespace, name), live_objects(cluster, namespace, name)
    names = ClusterNames(name, namespace)
    if ("Secret", names.credentials) not in live or ("Secret", names.ca) not in live:
        return ["there are no Secrets yet"]
    try:
        wanted = wanted_objects(body, live, site_of(operators))
    except AssertionError as error:
        return [f"the template of a StatefulSet differs: {error}"]
    kept = wanted.keys() | {("Secret", names.ca)}
    found = [f"{kind} {each} is too much" for kind, each in live.keys() - kept]
    found += [f"{kind} {each} is missing" for kind, each in wanted.keys() - live.keys()]
    for place in wanted.keys() & live.keys():
        found += _differences(cluster, wanted[place], live[place])
    return sorted(found)


def _differences(cluster: Cluster, wanted: Json, live: Json) -> Iterator[str]:
    kind, metadata = wanted["kind"], wanted["metadata"]
    place = first_difference({**wanted, "apiVersion": None, "kind": None}, {**live, "apiVersion": None, "kind": None})
    if place is not None:
        yield f"{kind} {metadata['name']} differs at {place}"
        return
    path = OWNED[kind].path(metadata["namespace"], metadata["name"])
    query = {"fieldManager": "engram-operator", "force": "true", "dryRun": "All"}
    status, after = cluster.request("APPLY", path, stamped(wanted), **query)
    if status != 200:
        yield f"{kind} {metadata['name']}: {after}"
    elif (told := first_difference(settled(after), settled(live))) or (
        told := first_difference(settled(live), settled(after))
    ):
        yield f"{kind} {metadata['name']}: an apply would change {told}"


def settled(manifest: Json) -> Json:
    """The object without what every write or every controller changes."""
    result = copy.deepcopy(manifest)
    for each in ("apiVersion", "kind", "status"):
        result.pop(each, None)
    for each in VOLATILE:
        result["metadata"].pop(each, None)
    return result


def snapshot(cluster: Cluster, namespace: str, name: str = "memory") -> dict[Place, str]:
    """The live objects as texts, each with its uid: equal snapshots are the same objects, untouched."""
    return {
        place: json.dumps(settled(each), sort_keys=True)
        for place, each in live_objects(cluster, namespace, name).items()
    }
