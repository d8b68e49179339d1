"""Requests and logins that mean harm: one of them never stops the others from being answered.

Where a request is slow by its size, it is compared with a plain one of the same size in the same run.
"""

import asyncio
import http.client
import socket
import time
import uuid
import zlib
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from engram_sidecar.terms import Lexer
from tests.harness import INDEX_KEY, Http, RealServer, SidecarThread, Tenant, create_tenant


def seconds(http: Http, raw: bytes) -> float:
    started = time.perf_counter()
    assert http("POST", "/v1/memories", raw=raw).status in {201, 400, 422}
    return time.perf_counter() - started


def members(count: int) -> str:
    return ",".join(f'"k{n}":0' for n in range(count))


@pytest.mark.parametrize(
    ("hostile", "plain"),
    [
        ('{"value":{' + members(30_000) + ',"k29999":1}}', '{"value":{' + members(30_000) + "}}"),
        ("{" + members(100_000) + "}", '{"value":{' + members(60_000) + "}}"),
        ('{"content":"a' + "\u0300\u0327" * 100_000 + '"}', '{"content":"a' + "xý z" * 100_000 + '"}'),
        ('{"content":"' + "\ufdfa" * 100_000 + '"}', '{"content":"' + "xý z" * 75_000 + '"}'),
        ('{"content":"' + "x" * 1_000_000 + '"}', '{"content":"' + "xy z" * 250_000 + '"}'),
    ],
    ids=["a name twice", "unknown members", "marks", "one character of many words", "one endless word"],
)
def test_a_hostile_body_costs_no_more_than_ten_plain_ones(http: Http, hostile: str, plain: str) -> None:
    ordinary = min(seconds(http, plain.encode()) for _ in range(3))
    assert seconds(http, hostile.encode()) < 10 * ordinary


def test_flaws_are_named_up_to_a_number(http: Http) -> None:
    answer = http("POST", "/v1/memories", {f"m{n}": n for n in range(1000)})
    assert (answer.status, len(answer.json["errors"])) == (422, 20)


@pytest.mark.parametrize("pointer", ["/a" * 20_000, "/0" * 20_000, "x" * 100_000])
def test_a_name_in_a_filter_is_bounded(http: Http, pointer: str) -> None:
    http("POST", "/v1/memories", {"value": {"a": 1}})
    assert http("POST", "/v1/search", {"filter": {"value": {pointer: 1}}}).status == 422


@pytest.mark.parametrize(
    "wanted", [{"x" * 1_000_000: 1}, {"value": {"a": {"x" * 1_000_000: 1}}}], ids=["field", "operator"]
)
def test_a_long_wrong_name_in_a_filter_is_not_sent_back_whole(http: Http, wanted: dict[str, object]) -> None:
    answer = http("POST", "/v1/search", {"filter": wanted})
    assert answer.status == 422
    assert len(answer.body) < 10_000


def test_a_value_counts_as_the_store_prints_it(http: Http) -> None:
    """5e-324 is 326 digits there, so a list of them would come back a hundred times as long."""
    answer = http("POST", "/v1/memories", {"value": [5e-324] * 140_000})
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/value")


def test_what_was_read_can_be_written_back(http: Http) -> None:
    key = uuid.uuid4().hex
    http("PUT", "/v1/items", {"value": [1e22, 5e-324, -0.0, 2**63 - 1, "12345678901234567890"]}, key=key)
    first = http("GET", "/v1/items", key=key).json["value"]
    assert http("PUT", "/v1/items", {"value": first}, key=key).status == 200
    assert http("GET", "/v1/items", key=key).json["value"] == first


def test_a_page_of_large_memories_is_cut_by_bytes_and_goes_on(http: Http) -> None:
    user = uuid.uuid4().hex
    for number in range(12):
        http("POST", "/v1/memories", {"user": user, "content": f"{number:02} " + "x" * 1_000_000})
    seen: list[str] = []
    pages = 0
    query: dict[str, Any] = {"user": user}
    while True:
        answer = http("GET", "/v1/memories", **query)
        assert len(answer.body) < 10 << 20
        seen += [memory["content"][:2] for memory in answer.json["memories"]]
        pages += 1
        if answer.json["next"] is None:
            break
        query["cursor"] = answer.json["next"]
    assert seen == [f"{number:02}" for number in reversed(range(12))]
    assert pages == 2
    found = http("POST", "/v1/search", {"user": user, "query": "11", "limit": 100})
    assert len(found.body) < 10 << 20


def test_a_client_that_waits_to_be_told_is_told(sidecar: SidecarThread) -> None:
    with socket.create_connection(("127.0.0.1", sidecar.ports.http_port), timeout=10) as connection:
        head = (
            b"POST /v1/memories HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
        )
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{}")
        assert connection.recv(100).startswith(b"HTTP/1.1 201 ")


def test_another_expectation_is_417(http: Http) -> None:
    assert http("POST", "/v1/memories", {}, headers={"Expect": "banana"}).status == 417
    http.close()


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 201), ("deflate", 201), ("foo", 415), ("identity", 201)])
def test_an_encoding_is_undone_or_refused(http: Http, encoding: str, status: int) -> None:
    packers = {"gzip": zlib.compressobj(wbits=31), "deflate": zlib.compressobj(wbits=15)}
    raw = b"{}"
    if encoding in packers:
        raw = packers[encoding].compress(raw) + packers[encoding].flush()
    assert http("POST", "/v1/memories", raw=raw, headers={"Content-Encoding": encoding}).status == status


def test_a_bomb_ends_at_the_limit(sidecar: SidecarThread) -> None:
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(b'{"content": "' + b"x" * (64 << 20)) + packer.flush()
    http = Http(sidecar.ports.http_port)
    try:
        assert http("POST", "/v1/memories", raw=bomb, headers={"Content-Encoding": "gzip"}).status == 413
    finally:
        http.close()


def test_a_half_sent_request_leaves_nothing(sidecar: SidecarThread, http: Http) -> None:
    key = uuid.uuid4().hex
    broken = http_connection(sidecar)
    broken.putrequest("PUT", f"/v1/items?key={key}")
    broken.putheader("Content-Type", "application/json")
    broken.putheader("Content-Length", "100")
    broken.endheaders(b'{"content": "ha')
    broken.close()
    assert http("GET", "/v1/items", key=key).status == 404


def http_connection(sidecar: SidecarThread) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", sidecar.ports.http_port, timeout=10)


def test_a_bad_patch_in_a_batch_is_named_by_its_place(http: Http) -> None:
    key = uuid.uuid4().hex
    http("PUT", "/v1/items", {}, key=key)
    operations = [{"op": "get", "key": key}, {"op": "patch", "key": key, "memory": {"content": 1}}]
    results = http("POST", "/v1/batch", {"operations": operations}).json["results"]
    assert results[1]["problem"]["errors"][0]["pointer"] == "/operations/1/memory/content"


def test_if_match_of_a_read_is_judged(http: Http) -> None:
    key = uuid.uuid4().hex
    tag = http("PUT", "/v1/items", {}, key=key).headers["etag"]
    assert http("GET", "/v1/items", headers={"If-Match": tag}, key=key).status == 200
    assert http("GET", "/v1/items", headers={"If-Match": '"1-1"'}, key=key).status == 412


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("日本語テキストを検索する", "検索"),
        ("日本語テキスト", "日本語"),
        ("cafe\u0301 au lait", "café"),
        ("हिन्दी में लिखा", "हिन्दी"),
        ("ภาษาไทย", "ภาษาไทย"),
        ("Straße nach Köln", "STRASSE"),
        ("ﬁne ligatures", "fine"),
    ],
)
def test_words_of_other_writings_are_found(http: Http, stored: str, asked: str) -> None:
    user = uuid.uuid4().hex
    http("POST", "/v1/memories", {"user": user, "content": stored})
    assert len(http("POST", "/v1/search", {"user": user, "query": asked}).json["results"]) == 1


# A tenant's login, used by somebody who means harm to a neighbour in the same database


INSERT = """INSERT INTO engram.memories
    (tenant, slot, id, namespace, type, content, value, created, updated, version, terms, term_count)"""


@pytest.fixture
def neighbours(servers: tuple[RealServer, RealServer], tmp_path: Path) -> tuple[RealServer, Tenant, Tenant]:
    async def stage() -> list[Tenant]:
        names = (f"{side}{abs(hash(str(tmp_path)))}" for side in "ab")
        return [await create_tenant(name, servers[:1], tmp_path / name, database="hostile") for name in names]

    first, second = asyncio.run(stage())
    return servers[0], first, second


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_advisory_lock(hashtextextended('{b}', 7711))",
        "SELECT pg_try_advisory_xact_lock(1)",
        "SELECT pg_advisory_unlock_all()",
        "SELECT lo_from_bytea(0, 'x')",
        "SELECT lo_create(0)",
        "SELECT engram.fence_key('{b}')",
        "SELECT engram.check_epoch(1)",
        f"{INSERT} SELECT current_user, 1, gen_random_uuid(), '{{{{}}}}', 'a', '', 'null', now(), '1-1-1 BC', 1, '', 0",
    ],
)
async def test_a_login_cannot_take_what_its_neighbour_needs(
    neighbours: tuple[RealServer, Tenant, Tenant], statement: str
) -> None:
    server, first, second = neighbours
    async with server.session("hostile", first.role) as connection:
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.CheckViolationError)):
            await connection.execute(statement.format(b=second.role))


async def test_a_login_cannot_count_its_neighbours_words(neighbours: tuple[RealServer, Tenant, Tenant]) -> None:
    server, first, second = neighbours
    lexeme = next(iter(Lexer(second.role, INDEX_KEY).count(["zeppelin"])))
    row = f"current_user, 1, gen_random_uuid(), '{{}}', 'a', '', 'null', now(), now(), 1, '{lexeme}', 1"
    insert = f"{INSERT} SELECT {row} FROM generate_series(1, 3000)"
    async with server.session("hostile", second.role) as connection:
        await connection.execute(insert)
    async with server.session("hostile") as connection:
        await connection.execute("ANALYZE engram.memories")
    async with server.session("hostile", first.role) as connection:
        for cap in (-1, 0, 1, 2000, None):
            rows = await connection.fetch("SELECT * FROM engram.count_lexemes($1, $2, 1)", [lexeme], cap)
            assert [row["memories"] for row in rows] == [0]


def test_what_a_login_sets_for_itself_does_not_break_its_sidecar(
    servers: tuple[RealServer, RealServer], tenant: Tenant, http: Http
) -> None:
    async def change(statement: str) -> None:
        async with servers[0].session(tenant.database, tenant.role) as connection:
            await connection.execute(statement)

    asyncio.run(change("ALTER ROLE current_user SET default_transaction_isolation = 'repeatable read'"))
    try:
        for number in range(20):  # more than the open connections: some are new
            assert http("PUT", "/v1/items", {}, key=f"set-{number}").status in {200, 201}
    finally:
        asyncio.run(change("ALTER ROLE current_user RESET default_transaction_isolation"))
