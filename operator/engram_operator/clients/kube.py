"""The control plane's door to the API server: plain manifests in and out, one deadline per call, errors of ours.

Promises
1. No call outlives its `timeout_s`, whatever the network does; nothing is retried here: the rounds above do that.
2. Every call is counted by verb and code, and every answer, a refusal too, is proof that the API server is there.
3. A path is made only from names that were checked: none can reach into another path.

Must never: log or repeat a manifest in an error, because Secrets pass here. Manifests instead of the client's models:
the models drop fields they do not know, and a patch is a manifest anyway.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration

from engram_contract.kinds import SUBDOMAIN_PATTERN
from engram_contract.names import CLUSTERS, GROUP, TENANTS, VERSION
from engram_operator.errors import ApiConflict, ApiError, ApiHeld, ApiNotFound, ApiRefused, ApiUnavailable, BadSettings

CALL_TIMEOUT_S: Final = 10.0  # an API server that takes longer is overloaded, and more patience would not help it
REASON_CHARS: Final = 200
NAME_CHARS: Final = 253
APPLY_TYPE: Final = "application/apply-patch+yaml"  # JSON is YAML
JSON_PATCH_TYPE: Final = "application/json-patch+json"
METADATA_TYPE: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
CHUNK: Final = 500  # objects per answer, as kubectl asks for them
# 429 and 5xx pass; 408 and 504 are the server's own timeouts.
TOO_MANY: Final = 429
UNAVAILABLE: Final = frozenset({408, TOO_MANY, 500, 502, 503, 504})

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API's paths spell it."""

    prefix: str
    plural: str

    @property
    def api_version(self) -> str:
        """As a manifest has it; the items of a list have none."""
        return self.prefix.removeprefix("/apis/").removeprefix("/api/")

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """The path of the collection, or of one object. Raises ValueError for what is no name."""
        parts = [self.prefix]
        if namespace is not None:
            parts += ["namespaces", _checked(namespace)]
        parts.append(self.plural)
        if name is not None:
            parts.append(_checked(name))
        return "/".join(parts)


LEASES: Final = Resource("/apis/coordination.k8s.io/v1", "leases")
SECRETS: Final = Resource("/api/v1", "secrets")
WEBHOOK_CONFIGS: Final = Resource("/apis/admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations")
CRDS: Final = Resource("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions")
EVENTS: Final = Resource("/apis/events.k8s.io/v1", "events")
MEMORY_TENANTS: Final = Resource(f"/apis/{GROUP}/{VERSION}", TENANTS)


MEMORY_CLUSTERS: Final = Resource(f"/apis/{GROUP}/{VERSION}", CLUSTERS)
NAMESPACES: Final = Resource("/api/v1", "namespaces")
DAEMON_SETS: Final = Resource("/apis/apps/v1", "daemonsets")
DEPLOYMENTS: Final = Resource("/apis/apps/v1", "deployments")
REPLICA_SETS: Final = Resource("/apis/apps/v1", "replicasets")
STORAGE_CLASSES: Final = Resource("/apis/storage.k8s.io/v1", "storageclasses")
# What a cluster is made of, by the kind in a manifest.
OWNED: Final = {
    "ConfigMap": Resource("/api/v1", "configmaps"),
    "NetworkPolicy": Resource("/apis/networking.k8s.io/v1", "networkpolicies"),
    "PersistentVolumeClaim": Resource("/api/v1", "persistentvolumeclaims"),
    "Pod": Resource("/api/v1", "pods"),
    "PodDisruptionBudget": Resource("/apis/policy/v1", "poddisruptionbudgets"),
    "Role": Resource("/apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": Resource("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "Secret": SECRETS,
    "Service": Resource("/api/v1", "services"),
    "ServiceAccount": Resource("/api/v1", "serviceaccounts"),
    "StatefulSet": Resource("/apis/apps/v1", "statefulsets"),
}


def _checked(name: str) -> str:
    if len(name) > NAME_CHARS or re.fullmatch(SUBDOMAIN_PATTERN, name) is None:
        raise ValueError(f"{name[:60]!r} is no name of an object")
    return name


@dataclass(frozen=True, slots=True)
class _Call:
    """One request as it goes out."""

    verb: str
    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: Any = None
    content_type: str = "application/json"
    accept: str = "application/json"

    def __str__(self) -> str:
        return f"{self.verb} {self.path}"


class Kube:
    """The API server, for one process. `answered_s` is when it last answered (seconds of `clock`), None before."""

    def __init__(
        self, client: ApiClient, count_request: Callable[[str, str], None], clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._count = count_request
        self._clock = clock
        self.answered_s: float | None = None

    async def fetch(
        self, resource: Resource, namespace: str | None, name: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Manifest:
        """One object. Raises ApiError, as each method here."""
        return await self._send(_Call("get", "GET", resource.path(namespace, name)), timeout_s)

    async def find(
        self, resource: Resource, namespace: str | None, name: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Manifest | None:
        """One object, None if there is none of this name."""
        try:
            return await self.fetch(resource, namespace, name, timeout_s=timeout_s)
        except ApiNotFound:
            return None

    async def fetch_some(
        self, resource: Resource, namespace: str | None, *, limit: int, timeout_s: float = CALL_TIMEOUT_S
    ) -> list[Manifest]:
        """The first `limit` objects of a namespace, or of all without one, in order of their names."""
        call = _Call("list", "GET", resource.path(namespace), (("limit", str(limit)),))
        answer = await self._send(call, timeout_s)
        return list(answer.get("items") or ())

    async def fetch_labelled(
        self, resource: Resource, namespace: str | None, selector: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> list[Manifest]:
        """Every object that the labels select, in a namespace or in all; without its managedFields."""
        query: list[tuple[str, str]] = [("limit", str(CHUNK))]
        query += [("labelSelector", selector)] if selector else []
        token, found = "", list[Manifest]()
        while True:
            rest = [("continue", token)] if token else []
            answer = await self._send(_Call("list", "GET", resource.path(namespace), (*query, *rest)), timeout_s)
            for item in answer.get("items") or ():
                item["metadata"].pop("managedFields", None)
                found.append(item)
            token = (answer.get("metadata") or {}).get("continue") or ""
            if not token:
                return found

    async def fetch_all(self, resource: Resource, namespace: str | None) -> list[Manifest]:
        """Every object of a namespace, or of all; without its managedFields."""
        return await self.fetch_labelled(resource, namespace, "")

    async def fetch_metadata(
        self, resource: Resource, selector: str, *, namespace: str | None = None, timeout_s: float = CALL_TIMEOUT_S
    ) -> AsyncIterator[Manifest]:
        """The metadata of every object that the labels select, in a namespace or in all, as of the first answer.

        Only one answer of CHUNK objects is held at a time; `timeout_s` is for each of them. An ApiRefused on the way
        may mean that the whole took longer than the server keeps that moment.
        """
        query = [("limit", str(CHUNK))] + ([("labelSelector", selector)] if selector else [])
        token = ""
        while True:
            rest = [("continue", token)] if token else []
            call = _Call("list", "GET", resource.path(namespace), (*query, *rest), accept=METADATA_TYPE)
            answer = await self._send(call, timeout_s)
            for item in answer.get("items") or ():
                yield item["metadata"]
            token = (answer.get("metadata") or {}).get("continue") or ""
            if not token:
                return

    async def create(
        self, resource: Resource, namespace: str | None, manifest: Manifest, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Manifest:
        """The object as it was made. Raises ApiConflict if there is one of this name."""
        call = _Call("create", "POST", resource.path(namespace), body=manifest)
        return await self._send(call, timeout_s)

    async def replace(
        self, resource: Resource, namespace: str | None, manifest: Manifest, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Manifest:
        """The object as it is now. Raises ApiConflict if it is not any more at the manifest's resourceVersion."""
        path = resource.path(namespace, manifest["metadata"]["name"])
        return await self._send(_Call("update", "PUT", path, body=manifest), timeout_s)

    async def apply(
        self, resource: Resource, manifest: Manifest, field_manager: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Manifest:
        """The object after a server-side apply, which takes the manifest's fields from whoever had them.

        One field manager per writer: two under one name delete each other's fields. With a resourceVersion in the
        manifest it is a compare-and-set: ApiConflict.
        """
        metadata = manifest["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"])
        query = (("fieldManager", field_manager), ("force", "true"))
        return await self._send(_Call("patch", "PATCH", path, query, manifest, APPLY_TYPE), timeout_s)

    async def apply_status(
        self, resource: Resource, manifest: Manifest, field_manager: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Manifest:
        """As `apply`, of the status subresource: the spec stays. Raises ApiNotFound if the object is gone."""
        metadata = manifest["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"]) + "/status"
        query = (("fieldManager", field_manager), ("force", "true"))
        return await self._send(_Call("patch", "PATCH", path, query, manifest, APPLY_TYPE), timeout_s)

    async def patch(
        self,
        resource: Resource,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        field_manager: str,
        *,
        namespace: str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Manifest:
        """The object after a JSON patch (RFC 6902). A `test` that fails is an ApiRefused.

        One that replaces the resourceVersion by the one that was read is a compare-and-set: ApiConflict.
        """
        path = resource.path(namespace, name)
        query = (("fieldManager", field_manager),)
        return await self._send(_Call("patch", "PATCH", path, query, list(operations), JSON_PATCH_TYPE), timeout_s)

    async def delete(
        self, resource: Resource, namespace: str | None, name: str, uid: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        """Deletes the object if it is still the one with this uid. Raises ApiConflict if it is another."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        await self._send(_Call("delete", "DELETE", resource.path(namespace, name), body=body), timeout_s)

    async def evict(
        self, resource: Resource, namespace: str, name: str, uid: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        """Deletes a pod as a drain does, if it is still the one with this uid. Raises ApiHeld, ApiConflict."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        await self._send(_Call("create", "POST", resource.path(namespace, name) + "/eviction", body=body), timeout_s)

    async def _send(self, call: _Call, timeout_s: float) -> Manifest:
        try:
            async with asyncio.timeout(timeout_s):
                status, text = await self._exchange(call, timeout_s)
        except TimeoutError as error:
            self._count(call.verb, "timeout")
            raise ApiUnavailable(f"{call}: no answer within {timeout_s:.1f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            self._count(call.verb, "unreachable")
            raise ApiUnavailable(f"{call}: {str(error) or type(error).__name__}") from error
        self._count(call.verb, str(status))
        self.answered_s = self._clock()
        return _read_answer(call, status, text)

    async def _exchange(self, call: _Call, timeout_s: float) -> tuple[int, bytes]:
        """The answer to one request, whatever its status."""
        method, url, headers, body, form = await self._client.param_serialize(
            call.method,
            call.path,
            query_params=list(call.query),
            header_params={"Accept": call.accept, "Content-Type": call.content_type},
            body=call.body,
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(method, url, headers, body, form, _request_timeout=timeout_s)
        text: bytes = await answer.read()  # type: ignore[no-untyped-call]
        return answer.status, text


def _read_answer(call: _Call, status: int, text: bytes) -> Manifest:
    """The object in an answer, or the error that its status means."""
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if 200 <= status < 300 and isinstance(answer, dict):  # noqa: PLR2004  the class of success
        return answer
    reason = str(answer.get("message", "")) if isinstance(answer, dict) else ""
    is_held = isinstance(answer, dict) and status == TOO_MANY and _names_a_budget(answer)
    raise (ApiHeld if is_held else _error_of(status))(f"{call}: {status} {reason[:REASON_CHARS]}".rstrip())


def _names_a_budget(answer: Manifest) -> bool:
    """Whether a 429 is of a disruption budget; else the API server has too much to do."""
    causes = (answer.get("details") or {}).get("causes") or ()
    return any(each.get("reason") == "DisruptionBudget" for each in causes)


def _error_of(status: int) -> type[ApiError]:
    known: dict[int, type[ApiError]] = {404: ApiNotFound, 409: ApiConflict}
    if status in UNAVAILABLE or status < 300:  # noqa: PLR2004  a success without an object came from something between
        return ApiUnavailable
    return known.get(status, ApiRefused)


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """Where the API server is and who we are there, for a client that is not this one. Paths are of PEM files."""

    server: str
    ca_path: str | None = None
    is_verified: bool = True
    scheme: str | None = None
    token: str | None = field(default=None, repr=False)
    certificate_path: str | None = None
    private_key_path: str | None = None
    proxy_url: str | None = None


async def fetch_access(kubeconfig: str) -> ApiAccess:
    """What `connected` would use, read anew from its files: tokens and certificates there are rotated.

    Raises BadSettings.
    """
    loaded = await _loaded(kubeconfig)
    scheme, _, token = (loaded.api_key.get("BearerToken") or "").strip().partition(" ")
    return ApiAccess(
        server=loaded.host,
        ca_path=loaded.ssl_ca_cert,
        is_verified=loaded.verify_ssl,
        scheme=scheme.capitalize() or None,
        token=token.strip() or None,
        certificate_path=loaded.cert_file,
        private_key_path=loaded.key_file,
        proxy_url=loaded.proxy,
    )


async def _loaded(kubeconfig: str) -> Configuration:
    configuration = Configuration()
    try:
        if kubeconfig:
            await kube_config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            kube_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (kube_config.ConfigException, OSError) as error:
        raise BadSettings(f"{'KUBECONFIG' if kubeconfig else 'no KUBECONFIG and not in a cluster'}: {error}") from error
    return configuration


@asynccontextmanager
async def connected(
    kubeconfig: str, count_request: Callable[[str, str], None], clock: Callable[[], float]
) -> AsyncIterator[Kube]:
    """The API server that `kubeconfig` names, or without one the cluster's own, as the pod's ServiceAccount.

    Raises BadSettings if there is neither.
    """
    client = ApiClient(await _loaded(kubeconfig))
    client.user_agent = "engram-operator"
    try:
        yield Kube(client, count_request, clock)
    finally:
        await client.close()  # type: ignore[no-untyped-call]
