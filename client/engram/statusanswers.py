"""What a sidecar answered about itself, as a typed value. The promises are those of answers.py. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime
from http import HTTPStatus
from typing import Any, TypeVar

from engram.answers import Answer, decode, failed_shards, parse
from engram.status import (
    CacheStatistics,
    Calls,
    Check,
    Cleared,
    Growth,
    Health,
    LocalCache,
    Metrics,
    Namespaces,
    OperationMetrics,
    SharedCache,
    Stored,
)

Record = TypeVar("Record")


def parse_health(answer: Answer) -> Health:
    """The health, also where it is answered by 503: an unhealthy sidecar still says what is wrong."""
    if answer.status == HTTPStatus.SERVICE_UNAVAILABLE and _is_health(answer):
        answer = Answer(HTTPStatus.OK, answer.headers, answer.body)
    return parse(answer, _health)


def parse_cache(answer: Answer) -> CacheStatistics:
    """How the caches do."""
    return parse(answer, _cache)


def parse_cleared(answer: Answer) -> Cleared:
    """What a clear did."""
    return parse(answer, lambda body: _plain(Cleared, body))


def parse_metrics(answer: Answer) -> Metrics:
    """The sidecar's metrics."""
    return parse(answer, _metrics)


def _is_health(answer: Answer) -> bool:
    try:
        body = decode(answer.body)
    except ValueError:
        return False
    return isinstance(body, dict) and "checks" in body


def _health(body: Mapping[str, Any]) -> Health:
    checks = {
        name: Check(check["status"], {key: value for key, value in check.items() if key != "status"})
        for name, check in body["checks"].items()
    }
    return Health(body["status"], datetime.fromisoformat(body["time"]), body["age_ms"], checks)


def _cache(body: Mapping[str, Any]) -> CacheStatistics:
    return CacheStatistics(
        datetime.fromisoformat(body["since"]),
        body["reads"],
        body["hits"],
        body["misses"],
        body["hit_rate"],
        _plain(LocalCache, body["local"]),
        _plain(SharedCache, body["shared"]),
    )


def _metrics(body: Mapping[str, Any]) -> Metrics:
    totals, stored, namespaces = body["totals"], body["stored"], body["namespaces"]
    return Metrics(
        time=datetime.fromisoformat(body["time"]),
        uptime_s=body["uptime_s"],
        calls=totals["calls"],
        errors=totals["errors"],
        error_percent=totals["error_percent"],
        operations=tuple(_operation(each) for each in body["operations"]),
        stored=None if stored is None else _stored(stored),
        namespaces=None if namespaces is None else _namespaces(namespaces),
        cache=_cache(body["cache"]),
        resources=body["resources"],
        breakers=tuple(body["breakers"]),
    )


def _operation(body: Mapping[str, Any]) -> OperationMetrics:
    last = _plain(Calls, body["last"])
    return OperationMetrics(body["operation"], body["calls"], body["errors"], body["error_percent"], last)


def _stored(body: Mapping[str, Any]) -> Stored:
    growth = body["growth"]
    return Stored(
        datetime.fromisoformat(body["time"]),
        body["memories"],
        body["bytes"],
        {each["type"]: each["memories"] for each in body["types"]},
        None if growth is None else _plain(Growth, growth),
    )


def _namespaces(body: Mapping[str, Any]) -> Namespaces:
    largest = {tuple(each["namespace"]): each["memories"] for each in body["largest"]}
    return Namespaces(largest, body["exact"], body["complete"], failed_shards(body))


def _plain(record: Callable[..., Record], body: Mapping[str, Any]) -> Record:
    """A record whose members are those of the document; others are of a newer sidecar."""
    return record(**{field.name: body[field.name] for field in fields(record)})  # type: ignore[arg-type]
