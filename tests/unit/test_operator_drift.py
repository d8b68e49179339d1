"""When an object is as its manifest says."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_operator.plan.drift import first_difference, plan_apply, stamped

MANIFEST: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "x", "namespace": "ns", "labels": {"a": "1"}},
    "spec": {"ports": [{"name": "one", "port": 1}, {"name": "two", "port": 2}], "types": ["In", "Out"], "on": True},
}


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("metadata", "labels", "b"), "2", None),
        (("spec", "clusterIP"), "10.0.0.1", None),
        (("spec", "ports", 0, "nodePort"), 3, None),
        (("metadata", "labels", "a"), "2", ".metadata.labels.a"),
        (("spec", "ports", 1, "port"), 3, ".spec.ports[two].port"),
        (("spec", "types"), ["In"], ".spec.types"),
        (("spec", "types"), ["Out", "In"], ".spec.types[0]"),
        (("spec", "on"), 1, ".spec.on"),
        (("spec",), None, ".spec"),
    ],
)
def test_what_others_add_is_theirs_and_what_they_change_is_found(path: tuple[Any, ...], value: Any, place: str) -> None:  # noqa: ANN401
    live = stamped(MANIFEST)
    at = live
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    assert first_difference(MANIFEST, live) == place


@pytest.mark.parametrize(
    ("desired", "live", "place"),
    [
        ({"selector": {"a": "1"}}, {"selector": {"a": "1", "foo": "bar"}}, ".selector"),
        (
            {"podSelector": {"matchLabels": {"a": "1"}}},
            {"podSelector": {"matchLabels": {"a": "1", "b": "2"}}},
            ".podSelector.matchLabels",
        ),
        ({"subjects": [{"name": "a"}]}, {"subjects": [{"name": "a"}, {"name": "default"}]}, ".subjects"),
        ({"ingress": [{"ports": [{"port": 1}]}]}, {"ingress": [{"ports": [{"port": 1}, {"port": 2}]}]}, ".ingress"),
    ],
)
def test_what_counts_as_a_whole_may_have_nothing_more(desired: Any, live: Any, place: str) -> None:  # noqa: ANN401
    assert first_difference(desired, live) == place


def test_items_with_a_name_may_stand_in_another_order_among_others() -> None:
    live = copy.deepcopy(MANIFEST)
    live["spec"]["ports"] = [{"name": "own", "port": 9}, *reversed(live["spec"]["ports"])]
    assert first_difference(MANIFEST, live) is None


def test_an_object_that_was_applied_is_settled_until_its_manifest_changes() -> None:
    step = plan_apply(MANIFEST, None)
    assert step is not None
    assert step.because == "it is missing"
    assert plan_apply(MANIFEST, copy.deepcopy(step.manifest)) is None
    fewer = copy.deepcopy(MANIFEST)
    del fewer["spec"]["on"]
    again = plan_apply(fewer, step.manifest)
    assert again is not None, "a field that was taken out of the manifest has to go"
    assert "applied" in again.because


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_everything_is_as_itself(value: Any) -> None:  # noqa: ANN401
    assert first_difference(value, copy.deepcopy(value)) is None
