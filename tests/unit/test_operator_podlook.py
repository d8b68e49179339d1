"""Where agents' pods came or went, and nowhere else, the tenants are looked at."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from engram_contract.names import INJECT_LABEL, INJECTED_LABEL, MANAGED_BY, MANAGED_BY_LABEL, TENANT_ANNOTATION
from engram_operator.claims import Claims
from engram_operator.clients.kube import NAMESPACES, OWNED, Manifest, Resource
from engram_operator.errors import ApiUnavailable
from engram_operator.events import Recorder
from engram_operator.metrics import OperatorMetrics
from engram_operator.podlook import PodLook
from tests.operator_stage import Store

LABELLED = {INJECT_LABEL: "true"}


class Listed(Store):
    """A store that lists metadata too."""

    async def fetch_metadata(
        self, resource: Resource, selector: str, *, namespace: str | None = None, timeout_s: float = 10.0
    ) -> AsyncIterator[Manifest]:
        for each in await self.fetch_labelled(resource, namespace, selector, timeout_s=timeout_s):
            yield each["metadata"]

    def pod(self, namespace: str, name: str, **metadata: Any) -> None:  # noqa: ANN401  members of a manifest
        self.put(OWNED["Pod"], {"metadata": {"name": name, "namespace": namespace, **metadata}})


def stage() -> tuple[Listed, PodLook, list[str]]:
    store, told = Listed(), list[str]()
    store.put(NAMESPACES, {"metadata": {"name": "all", "labels": LABELLED}})
    store.pod("all", "a")
    store.pod("some", "a", labels=LABELLED)
    store.pod("some", "other")
    store.pod("once", "a", labels={INJECTED_LABEL: "true"})
    store.pod("never", "a")
    recorder = Recorder(store, lambda: 0.0, "me", lambda: 1.0, lambda: None)
    return store, PodLook(store, told.append, Claims(store, recorder, OperatorMetrics(), lambda: 0.0)), told


async def test_the_first_look_tells_all_and_the_next_nothing() -> None:
    _, look, told = stage()
    await look.look()
    assert told == ["all", "once", "some"]
    await look.look()
    assert told == ["all", "once", "some"]


@pytest.mark.parametrize(
    ("namespace", "name", "metadata", "is_told"),
    [
        ("some", "b", {"labels": LABELLED}, True),
        ("some", "b", {}, False),
        ("all", "b", {}, True),
        ("never", "b", {}, False),
        ("some", "a", {"labels": LABELLED, "deletionTimestamp": "2026-01-01T00:00:00Z"}, True),
        ("all", "a", {"labels": {INJECT_LABEL: "false"}}, True),
        ("some", "a", {"labels": {**LABELLED, "more": "x"}}, False),
        ("once", "a", {}, True),
    ],
)
async def test_a_namespace_is_told_where_something_changed(
    namespace: str, name: str, metadata: dict[str, Any], is_told: bool
) -> None:
    store, look, told = stage()
    await look.look()
    told.clear()
    store.pod(namespace, name, **metadata)
    await look.look()
    assert told == ([namespace] if is_told else [])


async def test_what_pods_without_a_sidecar_name_is_handed_on() -> None:
    store, look, _ = stage()
    store.pod("all", "shard", labels={MANAGED_BY_LABEL: MANAGED_BY})
    store.pod("all", "declines", labels={INJECT_LABEL: "false"})
    store.pod("some", "b", labels=LABELLED, annotations={TENANT_ANNOTATION: "team"})
    store.pod("once", "b", labels=LABELLED | {INJECTED_LABEL: "true"})
    assert await look.look() == {"all": {""}, "some": {"", "team"}}


async def test_a_look_that_failed_is_as_if_it_had_not_been() -> None:
    store, look, told = stage()
    await look.look()
    told.clear()
    store.fault = ApiUnavailable("away")
    with pytest.raises(ApiUnavailable):
        await look.look()
    store.fault = None
    store.pod("some", "b", labels=LABELLED)
    await look.look()
    assert told == ["some"]
