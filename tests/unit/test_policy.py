"""The policy: complete, the strictest rule wins, JSON gives it back, bad texts name their fault."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_contract.caching import Caching
from engram_contract.policy import (
    DAY_S,
    FOREVER_S,
    OBLIGATIONS,
    PLAN_QUOTAS,
    Agent,
    BadPolicy,
    Duty,
    Embedder,
    Framework,
    Isolation,
    Limits,
    Plan,
    Policy,
    Quota,
    strictest,
)

GDPR, HIPAA, SOX, PCI = Framework
POLICY = Policy(
    namespace="default",
    name="clinic",
    isolation=Isolation.STRICT,
    plan=Plan.PRO,
    quota=Quota(memories=1000, storage_bytes=10**9, requests_per_second=100),
    retention_s=30 * DAY_S,
    audit_retention_s=365 * DAY_S,
    encryption=True,
    audit=True,
    compliance=(GDPR, HIPAA),
    allowed_agents=(Agent("planner"), Agent("coder", "coder.v2")),
    residency="eu",
    embedder=Embedder("https://models.example/v1", "small", 384),
)


@pytest.mark.parametrize(
    ("own_s", "frameworks", "days"),
    [
        (30 * DAY_S, [], 30),
        (30 * DAY_S, [GDPR], 365),
        (30 * DAY_S, [PCI], 365),
        (30 * DAY_S, [GDPR, HIPAA], 2555),
        (30 * DAY_S, [SOX, PCI], 2555),
        (3000 * DAY_S, [SOX], 3000),
        (FOREVER_S, [HIPAA], 0),
        (FOREVER_S, [], 0),
    ],
)
def test_the_longest_retention_counts(own_s: int, frameworks: list[Framework], days: int) -> None:
    assert strictest(own_s, frameworks).retention_s == days * DAY_S


@given(st.integers(1, 10**9), st.sets(st.sampled_from(Framework)))
def test_a_framework_more_never_asks_for_less(own_s: int, frameworks: set[Framework]) -> None:
    all_of_them = strictest(own_s, frameworks)
    for framework in frameworks:
        fewer = strictest(own_s, frameworks - {framework})
        assert fewer.retention_s <= all_of_them.retention_s
        assert fewer.duties <= all_of_them.duties
        assert OBLIGATIONS[framework].duties <= all_of_them.duties


def test_the_duties_are_those_of_the_requirements() -> None:
    assert strictest(1, [GDPR]).duties == {Duty.ERASURE, Duty.PORTABILITY, Duty.CONSENT}
    assert strictest(1, [HIPAA]).duties == {Duty.ENCRYPTION, Duty.ACCESS_LOGGING, Duty.DATA_INTEGRITY}
    assert strictest(1, [SOX]).duties == {Duty.IMMUTABLE_AUDIT, Duty.ACCESS_CONTROL, Duty.CHANGE_TRACKING}
    assert strictest(1, [PCI]).duties == {Duty.ENCRYPTION, Duty.ACCESS_MONITORING, Duty.MASKING}
    assert POLICY.duties == strictest(1, [GDPR, HIPAA]).duties


def test_the_plans_have_the_asked_numbers() -> None:
    assert [PLAN_QUOTAS[plan].memories for plan in Plan] == [100, 1_000, 10_000]
    assert {PLAN_QUOTAS[plan].storage_bytes for plan in Plan} == {1_000_000_000}


@pytest.mark.parametrize(
    ("isolation", "users", "agents"),
    [(Isolation.STRICT, True, True), (Isolation.MODERATE, True, False), (Isolation.MINIMAL, False, False)],
)
def test_isolation_says_who_is_apart(isolation: Isolation, users: bool, agents: bool) -> None:
    assert (isolation.separates_users, isolation.separates_agents) == (users, agents)


@pytest.mark.parametrize(
    ("agent", "account", "is_admitted"),
    [
        ("planner", "planner", True),
        ("planner", "coder.v2", False),
        ("coder", "coder.v2", True),
        ("coder", "coder", False),
        ("stranger", "stranger", False),
    ],
)
def test_an_agent_is_admitted_with_the_account_it_is_tied_to(agent: str, account: str, is_admitted: bool) -> None:
    assert POLICY.admits(agent, account) is is_admitted


def test_without_a_list_an_agent_is_its_account() -> None:
    opened = replace(POLICY, allowed_agents=())
    assert opened.admits("anyone", "anyone")
    assert not opened.admits("someone", "else")


@pytest.mark.parametrize(
    ("allowed", "agent", "account", "is_admitted"),
    [
        (Agent("crew-*", "crew"), "crew-one", "crew", True),
        (Agent("crew-*", "crew"), "crew-one", "crew-one", False),
        (Agent("crew-*", "crew"), "pilot", "crew", False),
        (Agent("crew-*"), "crew-one", "crew-one", True),
        (Agent("crew-*"), "crew-one", "crew-two", False),
        (Agent("*", "team.*"), "anyone", "team.a", True),
        (Agent("*", "team.*"), "anyone", "teams", False),
    ],
)
def test_a_pattern_admits_what_it_matches(allowed: Agent, agent: str, account: str, is_admitted: bool) -> None:
    assert replace(POLICY, allowed_agents=(allowed,)).admits(agent, account) is is_admitted


@pytest.mark.parametrize(
    "policy", [POLICY, replace(POLICY, generation=7, embedder=None, allowed_agents=(), compliance=())]
)
def test_json_gives_the_same_policy_back(policy: Policy) -> None:
    assert Policy.from_json(policy.to_json()) == policy


GOOD = json.loads(POLICY.to_json())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": 0}, "format"),
        ({"isolation": "strict"}, "isolation"),
        ({"plan": None}, "plan"),
        ({"quota": {}}, "quota.memories"),
        ({"quota": GOOD["quota"] | {"storage_bytes": "1G"}}, "quota.storage_bytes"),
        ({"retention_s": -1}, "retention_s"),
        ({"retention_s": "30d"}, "retention_s"),
        ({"encryption": "true"}, "encryption"),
        ({"compliance": ["GDPR", "GDPR"]}, "compliance[1]"),
        ({"compliance": ["PCI"]}, "compliance[0]"),
        ({"allowed_agents": [{"name": "a"}, {"name": "a"}]}, "allowed_agents[1].name"),
        ({"residency": "EU"}, "residency"),
        ({"embedder": {"url": "models", "model": "m", "dimensions": 1}}, "embedder.url"),
        ({"embedder": {"url": "http://m", "model": "m", "dimensions": 0}}, "embedder.dimensions"),
        ({"resilience": {"deadline_seconds": 0}}, "resilience.deadline_seconds"),
        ({"resilience": {"retry_percent": 100}}, "resilience.retry_percent"),
        ({"cache": []}, "cache"),
        ({"cache": {"local_entries": -1}}, "cache.local_entries"),
        ({"cache": {"local_capacity_bytes": "32Mi"}}, "cache.local_capacity_bytes"),
        ({"cache": {"local_capacity_bytes": (1 << 20) - 1}}, "cache.local_capacity_bytes"),
        ({"cache": {"local_ttl_s": 0.5}}, "cache.local_ttl_s"),
        ({"cache": {"shared_ttl_s": -1}}, "cache.shared_ttl_s"),
    ],
)
def test_a_bad_policy_names_its_fault(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(BadPolicy) as caught:
        Policy.from_json(json.dumps(GOOD | change))
    assert caught.value.path == fault


def test_a_policy_of_an_older_operator_has_the_asked_breakers() -> None:
    older = {name: value for name, value in GOOD.items() if name != "resilience"}
    tuned = Policy.from_json(json.dumps(older)).resilience
    assert (tuned.store_failures, tuned.retrieve_failures, tuned.search_failures) == (3, 5, 5)
    assert (tuned.recovery_seconds, tuned.failover_seconds, tuned.retry_percent) == (60, 10, 10)


def test_a_policy_of_an_older_operator_has_the_caches_by_default() -> None:
    older = {name: value for name, value in GOOD.items() if name != "cache"}
    assert Policy.from_json(json.dumps(older)).cache == Caching(100_000, 32 << 20, 300, 3600)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, '{"format":1,"format":1}', "Infinity"])
def test_a_text_that_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(BadPolicy):
        Policy.from_json(text)


def test_the_limits_are_those_of_the_interface() -> None:
    limits = Limits()
    assert (limits.body_bytes, limits.content_bytes, limits.value_bytes) == (8 << 20, 1 << 20, 1 << 20)
    assert (limits.batch_operations, limits.key_bytes, limits.name_bytes) == (1000, 1024, 256)
    assert (limits.namespace_segments, limits.namespace_segment_bytes, limits.namespace_bytes) == (16, 256, 1024)
    assert (limits.query_bytes, limits.json_depth) == (4096, 64)
