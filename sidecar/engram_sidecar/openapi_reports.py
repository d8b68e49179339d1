"""Components of the interface's description: what is said of the tenant and the sidecar as a whole. Pure."""

from engram_sidecar.clearing import Shared
from engram_sidecar.health import CHECKS
from engram_sidecar.openapi_types import (
    COUNT,
    NUMBER,
    PERCENT,
    TEXT,
    TIME,
    YES_OR_NO,
    Schema,
    list_of,
    nullable,
    record,
    ref,
)


def report_schemas(completeness: dict[str, Schema]) -> dict[str, Schema]:
    """What is said of the tenant and the sidecar as a whole, by name."""
    count = COUNT
    share = record({"used": count, "limit": count, "remaining": count, "percent": NUMBER})
    of_type = record({"type": TEXT, "memories": count, "bytes": count})
    key_version = {"type": "integer", "minimum": 0, "description": "0 is under no key."}
    under = record({"key_version": key_version, "memories": count})
    encryption = record(
        {"enabled": YES_OR_NO, "key_version": key_version, "stale": list_of(under)},
        "Under which key memories are stored now, and how many still lie under another one.",
    )
    return {
        "Health": _health(),
        "Cache": _cache(),
        "Cleared": record(
            {
                "dropped": {**count, "description": "Answers that this sidecar kept, and keeps no longer."},
                "shared": {
                    "enum": [each.value for each in Shared],
                    "description": "told: Redis has it, so L2 is out of reach and the tenant's other sidecars hear it. "
                    "waiting: Redis did not answer in time, it is told as soon as it does. none: there is no Redis.",
                },
            }
        ),
        "Metrics": _metrics(completeness),
        "Usage": record(
            {
                "memories": share,
                "bytes": share,
                "types": list_of(of_type),
                "encryption": encryption,
                **completeness,
            },
            "Expired memories count until they are swept.",
        ),
        "Audit": record({"entries": list_of(_entry()), "next": nullable(TEXT), **completeness}),
    }


def _cache() -> Schema:
    rate: Schema = {"type": "number", "minimum": 0, "maximum": 1}
    local = ("hits", "stale", "collapsed", "misses", "stores", "entries", "max_entries", "size_bytes", "capacity_bytes")
    evicted = ("evicted_for_room", "evicted_by_time")
    shared = ("hits", "misses", "stores", "failed", "unreadable")
    return record(
        {
            "since": {**TIME, "description": "The start, or the last DELETE of all at this sidecar."},
            "reads": {**COUNT, "description": "Reads by id that the caches were asked for."},
            "hits": {**COUNT, "description": "For these no shard was asked."},
            "misses": COUNT,
            "hit_rate": rate,
            "local": record(
                {**dict.fromkeys((*local, *evicted), COUNT), "hit_rate": rate},
                "L1. `stale` and `collapsed` are among the hits.",
            ),
            "shared": record(
                {
                    **dict.fromkeys(("configured", "reached", "sound"), YES_OR_NO),
                    **dict.fromkeys(shared, COUNT),
                    "hit_rate": rate,
                },
                "L2; its rate is of what it was asked for. `sound`: all that other sidecars write is heard.",
            ),
        }
    )


def _metrics(completeness: dict[str, Schema]) -> Schema:
    counted = {"calls": COUNT, "errors": COUNT, "error_percent": PERCENT}
    times = dict.fromkeys(("mean_ms", "p50_ms", "p95_ms", "p99_ms"), NUMBER)
    last = record({"calls": COUNT, **times, "error_percent": PERCENT}, "The last 1,000 calls at most.")
    rate: Schema = {"type": "number"}
    growth = record(
        {"memories_per_hour": rate, "bytes_per_hour": rate, "over_s": NUMBER},
        "The mean over `over_s` seconds, a day at most, as this sidecar saw it.",
    )
    of_type = record({"type": {**TEXT, "description": "Empty: all other types."}, "memories": COUNT})
    stored = record(
        {"time": TIME, "memories": COUNT, "bytes": COUNT, "types": list_of(of_type), "growth": nullable(growth)},
        "What the tenant stores, as it was counted at `time`, every five minutes.",
    )
    largest = record({"namespace": list_of(TEXT), "memories": COUNT})
    namespaces = record({"largest": list_of(largest), "exact": YES_OR_NO, **completeness})
    breaker = record(
        {
            **dict.fromkeys(("shard", "node", "operation", "state"), TEXT),
            "failures": COUNT,
            "last_failure": nullable(TIME),
        }
    )
    return record(
        {
            "time": TIME,
            "uptime_s": NUMBER,
            "totals": record(counted),
            "operations": list_of(record({"operation": TEXT, **counted, "last": last})),
            "stored": {**nullable(stored), "description": "Null in the first seconds."},
            "namespaces": {**nullable(namespaces), "description": "Null unless asked for."},
            "cache": ref("Cache"),
            "resources": record(
                {**dict.fromkeys(("cpu_percent", "memory_percent"), nullable(NUMBER)), "database_connections": COUNT}
            ),
            "breakers": {**list_of(breaker), "description": "Those that saw a failure."},
        },
        "What Prometheus is told, since the start of this sidecar.",
    )


def _health() -> Schema:
    status = {"enum": ["healthy", "degraded", "unhealthy"]}
    checks = record(dict.fromkeys(CHECKS, record({"status": status})))
    return record(
        {"status": status, "time": TIME, "age_ms": COUNT, "checks": checks},
        "The worst check counts. `age_ms`: how long ago it was tried.",
    )


def _entry() -> Schema:
    time, name = {"type": "string", "format": "date-time"}, nullable({"type": "string"})
    return {
        "type": "object",
        "description": "One operation: who, on which memory, with which outcome. No content, value or query.",
        "properties": {
            "at": time,
            "recorded": time,
            "operation": {"type": "string"},
            "outcome": {"enum": ["success", "error"]},
            "status": {"type": "integer"},
            **dict.fromkeys(("agent", "pod", "user", "memory", "key"), name),
            "namespace": nullable({"type": "array", "items": {"type": "string"}}),
            "details": {"type": "object"},
        },
        "required": ["at", "recorded", "operation", "outcome", "status"],
    }
