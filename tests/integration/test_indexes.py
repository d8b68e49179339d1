"""No query reads the whole table: asked of Postgres at 100,000 memories, of which a tenth is the tenant's.

Named queries are explained; what runs inside functions is counted by the server's own statistics.
"""

import asyncio
import json
from typing import Any

import pytest

from engram_sidecar.queries import QUERIES
from engram_sidecar.terms import Lexer, to_tsvector_text
from tests.harness import INDEX_KEY, RealServer, Tenant, create_tenant

ROWS = 100_000
OTHERS = 9  # tenants beside ours, each as large
COMMON, MIDDLING, RARE = "weather", "umbrella", "zeppelin"


@pytest.fixture(scope="module")
def full(servers: tuple[RealServer, RealServer], tmp_path_factory: pytest.TempPathFactory) -> tuple[RealServer, Tenant]:
    """One shard with ROWS memories of ten tenants in one database, and its statistics up to date."""
    server = servers[0]

    async def stage() -> Tenant:
        folders = [tmp_path_factory.mktemp(f"big{n}") for n in range(OTHERS + 1)]
        tenants = [await create_tenant(f"big{n}", [server], f, database="indexes") for n, f in enumerate(folders)]
        for tenant in tenants:
            await fill(server, tenant.role, ROWS // len(tenants))
        async with server.session("indexes") as connection:
            await connection.execute("VACUUM (ANALYZE) engram.memories")
            assert await connection.fetchval("SELECT count(*) FROM engram.memories") == ROWS
        return tenants[0]

    return server, asyncio.run(stage())


async def fill(server: RealServer, role: str, rows: int) -> None:
    lexer = Lexer(role, INDEX_KEY)
    texts = [f"{COMMON} report", f"{COMMON} {MIDDLING}", f"{RARE} {COMMON}"]
    terms = [to_tsvector_text(lexer.count([text])) for text in texts]
    async with server.session("indexes") as connection:
        await connection.execute(
            "INSERT INTO engram.memories (tenant, slot, id, namespace, type, user_id, agent_id, session_id, content,"
            " value, created, updated, version, terms, term_count)"
            " SELECT $1, (n * 7919) % 16384, gen_random_uuid(), ARRAY['p', 'q' || n % 500], 'episodic', 'u' || n % 500,"
            " 'a' || n % 500, 's' || n % 500, repeat('some text ', 40), jsonb_build_object('n', n),"
            " now() - n * interval '1 s', now(), 1,"
            " (CASE WHEN n % 1000 = 0 THEN $4 WHEN n % 20 = 0 THEN $3 ELSE $2 END)::text::tsvector, 2"
            " FROM generate_series(1, $5::int) n",
            role,
            *terms,
            rows,
        )


def plan_nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in plan_nodes(child))]


ARGUMENTS: dict[str, tuple[str, ...]] = {
    "get_memories": ("ARRAY[5, 6]", "ARRAY[gen_random_uuid(), gen_random_uuid()]"),
    "put_memory": (
        "5", "gen_random_uuid()", "'{}'", "NULL", "'episodic'", "NULL", "NULL", "NULL", "'c'", "'null'", "NULL", "''",
        "0", "NULL", "false", "true", "false", "ARRAY['1-1']", "'{}'", "NULL",
    ),
    "put_memories": (
        "ARRAY[5]", "ARRAY[gen_random_uuid()]", "ARRAY['{}']", "'{NULL}'", "ARRAY['episodic']", "'{NULL}'", "'{NULL}'",
        "'{NULL}'", "ARRAY['c']", "ARRAY['null']", "'{NULL}'", "ARRAY['']", "'{0}'", "'{NULL}'", "'{false}'",
        "'{true}'", "'{false}'", "ARRAY['{1-1}']", "ARRAY['{}']", "'{NULL}'",
    ),
    "lock_memories": ("ARRAY[5, 6]", "ARRAY[gen_random_uuid(), gen_random_uuid()]"),
    "count_memories": (),
    "count_namespaces": ("1001",),
    "count_stale": ("1",),
    "list_stale": ("2", "ARRAY[gen_random_uuid()]", "64"),
    "lock_stale": ("2", "ARRAY[5, 6]", "ARRAY[gen_random_uuid(), gen_random_uuid()]"),
    "reseal_memories": (
        "ARRAY[5]", "ARRAY[gen_random_uuid()]", "ARRAY['c']", "ARRAY['null']", "'{NULL}'", "'{NULL}'", "'{NULL}'",
    ),
    "get_map": (),
    "look_node": (),
}  # fmt: skip
IN_FUNCTIONS = {"delete_memory", "list_memories", "search_memories", "count_lexemes", "tenant_size"}
BESIDE: dict[str, tuple[object, ...]] = {
    "tenant_usage": (),
    "node_position": (),
    "is_standby": (),
    "claim_key": ("6f8b3a52-8f5c-4f0e-9d43-0d6c6f0f2a12", [5]),
    "keep_outcomes": ("6f8b3a52-8f5c-4f0e-9d43-0d6c6f0f2a12", "6f8b3a52-8f5c-4f0e-9d43-0d6c6f0f2a13", [5], ["[]"]),
    "try_reseal": (),
    "lend_quota": ("s9", 1, 1),
    "loan_token": ("s9", "6f8b3a52-8f5c-4f0e-9d43-0d6c6f0f2a11"),
    "report_sidecar": ("web-0", "u", "bot", 1, 1, 1, 0),
    "record_audit": ('[{"at": "2026-05-31T12:00:00Z"}]',),
    "list_audit": (101, None, None),
}
BY_TOKEN = {"borrow_quota"}  # takes what lend_quota gives; test_quotas.py


def test_every_named_query_is_looked_at() -> None:
    assert set(ARGUMENTS) | IN_FUNCTIONS | set(BESIDE) | BY_TOKEN == set(QUERIES)


@pytest.mark.parametrize("name", BESIDE)
async def test_what_is_kept_beside_the_memories_reads_none_of_them(full: tuple[RealServer, Tenant], name: str) -> None:
    assert await touched(*full, name, *BESIDE[name]) == (0, 0, 0)


async def test_a_page_of_the_audit_reads_what_it_answers(full: tuple[RealServer, Tenant]) -> None:
    server, tenant = full
    async with server.session("indexes") as connection:
        await connection.execute(
            "INSERT INTO engram.audit (tenant, at, entry) SELECT CASE WHEN n % 10 = 0 THEN $1 ELSE 't_other' END,"
            " now() - n * interval '1 s', '{}' FROM generate_series(1, 20000) n",
            tenant.role,
        )
        await connection.execute("ANALYZE engram.audit")
    async with server.session("indexes", tenant.role) as connection:
        *_, last = await connection.fetch(QUERIES["list_audit"], 1000, None, None)
    for before in ((None, None), (last["at"], last["number"])):
        scans, _, fetched = await touched(server, tenant, "list_audit", 101, *before, table="audit")
        assert scans == 0
        assert fetched <= 110


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
async def test_a_named_query_never_scans_a_table(full: tuple[RealServer, Tenant], name: str, mode: str) -> None:
    """Also as the generic plan that a prepared statement may come to."""
    server, tenant = full
    async with server.session("indexes", tenant.role) as connection:
        await connection.execute(f"SET plan_cache_mode = {mode}")
        await connection.execute(f"PREPARE asked AS {QUERIES[name]}")
        arguments = f"({', '.join(ARGUMENTS[name])})" if ARGUMENTS[name] else ""
        text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE asked{arguments}")
        nodes = plan_nodes(json.loads(text)[0]["Plan"])
        scanned = [n for n in nodes if n["Node Type"] == "Seq Scan" and n.get("Relation Name") == "memories"]
        assert scanned == []
        reads = [n for n in nodes if n.get("Relation Name") == "memories" and "Index" in n["Node Type"]]
        assert all("tenant" in node["Index Cond"] for node in reads), "an index scan over all tenants"


def lexemes(tenant: Tenant, *words: str) -> list[str]:
    return list(Lexer(tenant.role, INDEX_KEY).count(words))


def selection(**chosen: object) -> tuple[object, ...]:
    names = ("user", "agent", "session", "type", "namespace", "end", "filter", "fields", "vars", "tokens")
    return tuple(chosen.get(name, "{}" if name == "vars" else None) for name in names)


PREFIX: dict[str, object] = {"namespace": ["p", "q7"], "end": ["p", "q7\x01"]}
SELECTIONS: list[tuple[dict[str, object], int]] = [
    ({}, 150),
    ({"user": "u7"}, 150),
    ({"agent": "a7"}, 150),
    ({"session": "s7"}, 150),
    ({"type": "episodic"}, 150),
    ({"type": "working"}, 10),
    (PREFIX, 150),
    ({"namespace": ["p", "none"], "end": ["p", "none\x01"]}, 10),
    ({"user": "u7", "filter": 'strict ($.value."n" > $v0)', "vars": '{"v0": 5000}'}, 150),
    ({"user": "nobody"}, 10),
]


async def touched(
    server: RealServer, tenant: Tenant, query: str, *arguments: object, table: str = "memories"
) -> tuple[int, int, int]:
    """(sequential scans, rows read by them, rows read by index) of the table while the query ran, and nothing else."""
    counters = "SELECT seq_scan, seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = $1"
    async with server.session("indexes", tenant.role) as connection, connection.transaction():
        await connection.fetch(QUERIES[query], *arguments)
        row = await connection.fetchrow(counters, table)
        return tuple(row) if row else (0, 0, 0)


async def test_a_delete_reads_the_memory_that_it_removes(full: tuple[RealServer, Tenant]) -> None:
    server, tenant = full
    async with server.session("indexes") as connection:
        place = await connection.fetchrow("SELECT slot, id FROM engram.memories WHERE tenant = $1 LIMIT 1", tenant.role)
    refused = (*place, ["1-1"], [])
    assert await touched(server, tenant, "delete_memory", *refused) == (0, 0, 1)


@pytest.mark.parametrize(("chosen", "most"), SELECTIONS, ids=str)
async def test_a_list_reads_what_it_answers(
    full: tuple[RealServer, Tenant], chosen: dict[str, object], most: int
) -> None:
    server, tenant = full
    scans, _, fetched = await touched(
        server, tenant, "list_memories", *selection(**chosen), None, None, 101, 8 << 20, 1
    )
    assert scans == 0
    assert fetched <= most


async def test_a_later_page_does_not_read_the_earlier_ones(full: tuple[RealServer, Tenant]) -> None:
    server, tenant = full
    async with server.session("indexes", tenant.role) as connection:
        arguments = (*selection(), None, None, 5001, 8 << 20, 1)
        *_, last = await connection.fetch(QUERIES["list_memories"], *arguments)
    page = (*selection(), last["created"], last["id"], 101, 8 << 20, 1)
    scans, _, fetched = await touched(server, tenant, "list_memories", *page)
    assert scans == 0
    assert fetched <= 150


@pytest.mark.parametrize(
    ("words", "chosen", "most"),
    [
        ((RARE,), {}, 50),  # 10 of ours hold it
        ((MIDDLING,), {}, 1100),  # 500 of ours, each looked at twice
        ((MIDDLING,), {"user": "u20"}, 600),
        ((COMMON,), {}, 10_100),  # in all 10,000 of ours, of which the newest 5,000 are scored
        ((COMMON,), PREFIX, 150),
    ],
    ids=str,
)
async def test_a_search_reads_the_tenants_candidates_and_no_other_row(
    full: tuple[RealServer, Tenant], words: tuple[str, ...], chosen: dict[str, object], most: int
) -> None:
    server, tenant = full
    found = lexemes(tenant, *words)
    arguments = (
        " | ".join(f"'{lexeme}'" for lexeme in found), [f"'{lexeme}'" for lexeme in found], [1.0 for _ in found],
        2.0, 5000, *selection(**chosen), 10, 8 << 20, 1,
    )  # fmt: skip
    scans, _, fetched = await touched(server, tenant, "search_memories", *arguments)
    assert scans == 0
    assert fetched <= most


async def test_counting_lexemes_stops_at_the_cap(full: tuple[RealServer, Tenant]) -> None:
    server, tenant = full
    words = lexemes(tenant, COMMON, MIDDLING, RARE)
    scans, _, fetched = await touched(server, tenant, "count_lexemes", words, 2000, 1)
    assert scans == 0
    assert fetched <= 2000 + 500 + 10 + 50
    async with server.session("indexes", tenant.role) as connection:
        rows = await connection.fetch(QUERIES["count_lexemes"], words, 2000, 1)
        counts = {row["lexeme"]: row["memories"] for row in rows}
    assert counts[words[2]] == 10
    assert counts[words[1]] == 490
    assert 8_000 <= counts[words[0]] <= 12_000, "beyond the cap the planner's estimate"


async def test_the_size_of_a_tenant_is_read_from_its_own_index_entries(full: tuple[RealServer, Tenant]) -> None:
    server, tenant = full
    scans, _, fetched = await touched(server, tenant, "tenant_size")
    assert scans == 0
    assert fetched <= 11_100
    async with server.session("indexes", tenant.role) as connection:
        [size] = await connection.fetch(QUERIES["tenant_size"])
    assert size["memories"] == pytest.approx(ROWS / (OTHERS + 1), rel=0.1)
    assert size["mean_terms"] == 2
