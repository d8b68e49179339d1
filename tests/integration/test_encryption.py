"""Encrypted memories on real shards: nothing in the clear, nothing opened that was moved, keys that change."""

import asyncio
import base64
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from engram_contract.credentials import DataKey, Keyring
from engram_contract.names import KEYS_FILE, POLICY_FILE
from engram_sidecar.config import read_config
from engram_sidecar.settings import Settings
from tests.harness import KEYRING, Answer, Http, RealServer, SidecarThread, Tenant, create_tenant

PATIENCE_S = 30.0
WORDS = ("zeppelin", "marzipan", "quicksilver")
OTHER_KEY = base64.b64encode(bytes(range(64, 96))).decode()
BOTH_KEYS = Keyring(2, (*KEYRING.keys, DataKey(2, OTHER_KEY)), KEYRING.index)
NEW_KEY = replace(BOTH_KEYS, keys=BOTH_KEYS.keys[1:])


@dataclass(frozen=True)
class Stage:
    """A tenant with its sidecar."""

    tenant: Tenant
    sidecar: SidecarThread
    http: Http

    def write(self, file: str, text: str) -> None:
        """The file of the tenant's folder, replaced whole."""
        (self.tenant.config_dir / "later").write_text(text)
        (self.tenant.config_dir / "later").replace(self.tenant.config_dir / file)

    def take_keys(self, keyring: Keyring) -> None:
        """The keyring is in force."""
        self.write(KEYS_FILE, keyring.to_json())
        versions = {str(each.version) for each in keyring.keys}
        self.until(lambda: f"keys={keyring.current}" in self.http("GET", "/v1/shards").headers["engram-config"])
        assert str(keyring.current) in versions
        time.sleep(1.5)  # a keyring that lost a key has the same generation: nothing tells when it is read

    def encrypt(self, generation: int, *, on: bool) -> None:
        """The policy says so, and is in force."""
        policy = replace(read_config(self.tenant.config_dir).policy, encryption=on, generation=generation)
        self.write(POLICY_FILE, policy.to_json())
        self.until(lambda: f"policy={generation}" in self.http("GET", "/v1/shards").headers["engram-config"])

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def metric(self, name: str) -> float:
        """One series; 0 where it is not there."""
        admin = Http(self.sidecar.ports.admin_port)
        lines = admin("GET", "/metrics").body.decode().splitlines()
        admin.close()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    def sql(self, statement: str, *arguments: object) -> list[Any]:
        """The rows of a statement that an administrator runs on every shard."""

        async def run() -> list[Any]:
            found: list[Any] = []
            for server in self.tenant.servers:
                async with server.session(self.tenant.database) as connection:
                    found += await connection.fetch(statement, self.tenant.role, *arguments)
            return found

        return asyncio.run(run())

    def key_versions(self) -> dict[int, int]:
        """Key version -> rows."""
        rows = self.sql("SELECT key_version, count(*) FROM engram.memories WHERE tenant = $1 GROUP BY 1")
        found: dict[int, int] = {}
        for version, count in rows:
            found[version] = found.get(version, 0) + count
        return found

    def stale(self) -> Any:  # noqa: ANN401
        return self.http("GET", "/v1/usage").json["encryption"]["stale"]


@pytest.fixture
def stage(servers: tuple[RealServer, RealServer], tmp_path: Path) -> Iterator[Stage]:
    name = f"e{abs(hash(str(tmp_path)))}"
    tenant = asyncio.run(create_tenant(name, servers, tmp_path / "config", database="sealed"))
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        yield Stage(tenant, thread, http)
        http.close()


def store(stage: Stage, count: int, **members: object) -> list[Any]:
    """Memories of one user, which so lie on one shard."""
    made = [
        stage.http("POST", "/v1/memories", {"content": f"note {n}", "value": {"n": n}, "user": "ada", **members})
        for n in range(count)
    ]
    assert {answer.status for answer in made} == {201}
    return [answer.json for answer in made]


# ------------------------------------------------------------------------------------------------- nothing in the clear


def test_no_word_of_a_memory_is_in_the_table_or_in_the_servers_log(stage: Stage) -> None:
    first, second, third = WORDS
    asyncio.run(log_everything(stage.tenant))
    with SidecarThread(Settings(stage.tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        made = http("POST", "/v1/memories", {"content": f"a {first}", "value": {second: [third, 271828.5]}}).json
        http("PUT", "/v1/items", {"content": first, "value": third}, key="k")
        http("PATCH", f"/v1/memories/{made['id']}", {"value": {"of": second}})
        http("POST", "/v1/batch", {"operations": [{"op": "create", "memory": {"content": third}}]})
        asked = {"query": first, "filter": {"value": {"of": second}}}
        assert len(http("POST", "/v1/search", asked).json["results"]) == 1
        http.close()
    dumps = [row[0].encode() for row in stage.sql("SELECT m::text FROM engram.memories m WHERE tenant = $1")]
    assert len(dumps) == 3
    logs = [server.server.log.read_bytes() for server in stage.tenant.servers]
    assert any(b"INSERT INTO engram.memories" in log for log in logs), "the log has the statements"
    assert any(made["id"][5:].encode() in log for log in logs), "and their parameters"
    for word in (*WORDS, "271828"):
        for text in (*dumps, *logs):
            assert word.encode() not in text.lower()
            assert word.encode().hex().encode() not in text.lower()
            assert base64.b64encode(word.encode())[:-2] not in text
    assert any(b"episodic" in dump for dump in dumps), "metadata is in the clear"


LOG_SETTINGS = {"log_statement": "all", "log_parameter_max_length": "-1", "log_error_verbosity": "default"}


async def log_everything(tenant: Tenant) -> None:
    for server in tenant.servers:
        async with server.session(tenant.database) as connection:
            for name, value in LOG_SETTINGS.items():
                await connection.execute(f"ALTER ROLE {tenant.role} SET {name} = '{value}'")


def test_without_a_keyring_nothing_is_stored(servers: tuple[RealServer, RealServer], tmp_path: Path) -> None:
    tenant = asyncio.run(create_tenant("keyless", servers[:1], tmp_path / "config", database="sealed"))
    (tenant.config_dir / KEYS_FILE).unlink()
    with SidecarThread(Settings(tenant.config_dir, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        answers = [
            http("POST", "/v1/memories", {"content": "x"}),
            http("PUT", "/v1/items", {"content": "x"}, key="k"),
        ]
        for answer in answers:
            assert answer.status == 503
            assert answer.json["type"].endswith("key-missing")
            assert "retry-after" in answer.headers
        batch = http("POST", "/v1/batch", {"operations": [{"op": "create", "memory": {"content": "x"}}]}).json
        assert [each["status"] for each in batch["results"]] == [503]
        assert http("GET", "/v1/usage").json["memories"]["used"] == 0
        http.close()


def test_sealing_adds_nothing_to_what_the_quota_counts(stage: Stage) -> None:
    store(stage, 1, content="12345", value={"a": "b"})
    assert stage.http("GET", "/v1/usage").json["bytes"]["used"] == len("12345") + len('{"a":"b"}')


# ------------------------------------------------------------------------------------------------------ what is refused

SWAP = (
    "UPDATE engram.memories m SET sealed = o.sealed FROM engram.memories o"
    " WHERE m.tenant = $1 AND o.tenant = $1 AND (m.id, o.id) IN (($2, $3), ($3, $2))"
)
TAMPER = "UPDATE engram.memories SET sealed = {} WHERE tenant = $1 AND id = $2"


def uuid_of(memory: Any) -> UUID:  # noqa: ANN401
    return UUID(memory["id"][5:])


def test_swapped_memories_are_refused_named_counted_and_audited(stage: Stage) -> None:
    one, other, third = store(stage, 3)
    stage.sql(SWAP, uuid_of(one), uuid_of(other))
    answer = stage.http("GET", f"/v1/memories/{one['id']}")
    assert answer.status == 500
    assert answer.json["type"].endswith("seal-broken")
    assert answer.json["reason"] == "authentication"
    assert b"note" not in answer.body
    assert stage.metric('engram_sealed_refused_total{reason="authentication"}') >= 1
    page = stage.http("GET", "/v1/memories", user="ada").json
    assert [each["id"] for each in page["memories"]] == [third["id"]]
    assert {each["id"] for each in page["refused"]} == {one["id"], other["id"]}
    assert page["complete"] is False
    for filters in ({}, {"value": {"n": {"gte": 0}}}):
        found = stage.http("POST", "/v1/search", {"query": "note", "user": "ada", "filter": filters}).json
        assert [each["id"] for each in found["results"]] == [third["id"]]
        assert {each["id"] for each in found["refused"]} == {one["id"], other["id"]}
    operations = [{"op": "get", "id": each["id"]} for each in (one, third)]
    batch = stage.http("POST", "/v1/batch", {"operations": operations}).json["results"]
    assert [each["status"] for each in batch] == [500, 200]
    patched = stage.http("PATCH", f"/v1/memories/{one['id']}", {"value": {}})
    assert patched.status == 500
    stage.until(lambda: bool(unsealed(stage)))
    assert {entry["memory"] for entry in unsealed(stage)} == {one["id"], other["id"]}
    assert all(entry["outcome"] == "error" and entry["status"] == 500 for entry in unsealed(stage))
    # What is broken can be stored anew and removed.
    assert stage.http("PUT", f"/v1/memories/{one['id']}", {"content": "anew", "user": "ada"}).status == 200
    assert stage.http("GET", f"/v1/memories/{one['id']}").json["content"] == "anew"
    assert stage.http("DELETE", f"/v1/memories/{other['id']}").status == 204


def unsealed(stage: Stage) -> list[Any]:
    entries = stage.http("GET", "/v1/audit", limit=1000).json["entries"]
    return [entry for entry in entries if entry["operation"] == "unseal"]


def test_another_tenants_memory_under_ones_own_id_is_refused(
    stage: Stage, servers: tuple[RealServer, RealServer], tmp_path: Path
) -> None:
    [mine] = store(stage, 1)
    theirs = asyncio.run(create_tenant("lender", servers, tmp_path / "lender", database="sealed"))
    moved = (
        "UPDATE engram.memories m SET sealed = o.sealed FROM engram.memories o WHERE m.tenant = $1 AND o.tenant = $2"
    )
    with SidecarThread(Settings(theirs.config_dir, http_port=0, admin_port=0)).running() as thread:
        http = Http(thread.ports.http_port)
        for number in range(8):  # on both shards; even with the same key, as here, it does not open
            http("POST", "/v1/memories", {"content": "theirs", "user": f"u{number}"})
        http.close()
    stage.sql(moved, theirs.role)
    answer = stage.http("GET", f"/v1/memories/{mine['id']}")
    assert (answer.status, answer.json["reason"]) == (500, "authentication")
    everything = stage.http("GET", "/v1/memories")  # nothing can be shown: an error, and no empty page
    assert everything.status == 500


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        (
            "set_byte(sealed, octet_length(sealed) - 1, get_byte(sealed, octet_length(sealed) - 1) # 1)",
            "authentication",
        ),
        ("set_byte(sealed, 25, get_byte(sealed, 25) # 128)", "authentication"),
        ("substring(sealed, 1, octet_length(sealed) - 1)", "authentication"),
        ("sealed || '\\x00'::bytea", "authentication"),
    ],
)
def test_a_changed_ciphertext_is_refused(stage: Stage, expression: str, reason: str) -> None:
    [memory] = store(stage, 1)
    stage.sql(TAMPER.format(expression), uuid_of(memory))
    answer = stage.http("GET", f"/v1/memories/{memory['id']}")
    assert (answer.status, answer.json["reason"]) == (500, reason)


def test_a_key_that_is_gone_is_named_and_nothing_is_hidden(stage: Stage) -> None:
    [old] = store(stage, 1)
    stage.take_keys(NEW_KEY)
    answer = stage.http("GET", f"/v1/memories/{old['id']}")
    assert (answer.status, answer.json["key_version"]) == (503, 1)
    assert answer.json["type"].endswith("key-missing")
    assert "retry-after" in answer.headers
    assert stage.http("GET", "/v1/memories").status == 503
    [new] = store(stage, 1)
    page = stage.http("GET", "/v1/memories", user="ada").json
    assert [each["id"] for each in page["memories"]] == [new["id"]]
    assert [each["id"] for each in page["refused"]] == [old["id"]]
    assert stage.stale() == [{"key_version": 1, "memories": 1}]
    stage.take_keys(BOTH_KEYS)
    assert stage.http("GET", f"/v1/memories/{old['id']}").json["content"] == "note 0"


# ----------------------------------------------------------------------------------------------------- the present form


def test_keys_rotate_under_requests_and_the_old_one_can_go(stage: Stage) -> None:
    made = store(stage, 300)
    written: dict[int, int] = {}
    failures: list[Answer] = []
    stopped = threading.Event()

    def work(number: int) -> None:
        http, turn = Http(stage.sidecar.ports.http_port), 0
        while not stopped.is_set():
            turn += 1
            memory = made[(turn * 7 + number) % 300]
            key = f"k{number}"
            put = http("PUT", "/v1/items", {"content": f"turn {turn}", "value": {"turn": turn}}, key=key)
            answers = [put, http("GET", f"/v1/memories/{memory['id']}"), http("GET", "/v1/items", key=key)]
            written[number] = turn
            failures.extend(answer for answer in answers if answer.status not in {200, 201})
            if answers[1].json.get("etag") != memory["etag"] or answers[2].json.get("value") != {"turn": turn}:
                failures.append(answers[2])
        http.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    stage.write(KEYS_FILE, BOTH_KEYS.to_json())
    stage.until(lambda: stage.key_versions() == {2: 303})
    stopped.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert failures == []
    stage.until(lambda: stage.stale() == [])
    stage.until(lambda: stage.metric("engram_resealed_total") >= 295)
    stage.take_keys(NEW_KEY)
    for memory in made:
        assert stage.http("GET", f"/v1/memories/{memory['id']}").json == memory
    for number, turn in written.items():
        assert stage.http("GET", "/v1/items", key=f"k{number}").json["content"] == f"turn {turn}"


def test_encryption_is_turned_off_and_on_again_and_nobody_notices(stage: Stage) -> None:
    made = store(stage, 120, content="a zeppelin over town")
    tags = {each["id"]: each["etag"] for each in made}

    def check() -> None:
        found = stage.http("POST", "/v1/search", {"query": "zeppelin", "user": "ada", "limit": 100,
                                                  "filter": {"value": {"n": {"gte": 40}}}})  # fmt: skip
        assert len(found.json["results"]) == 80
        page = stage.http("GET", "/v1/memories", user="ada", limit=1000).json
        assert {each["id"]: each["etag"] for each in page["memories"]} == tags
        assert {each["content"] for each in page["memories"]} == {"a zeppelin over town"}
        only = stage.http("POST", "/v1/search", {"user": "ada", "filter": {"value": {"n": 7}}}).json["results"]
        assert [each["value"] for each in only] == [{"n": 7}]

    size = stage.http("GET", "/v1/usage").json["bytes"]["used"]
    check()
    stage.encrypt(1, on=False)
    check()
    stage.until(lambda: stage.key_versions() == {0: 120})
    check()
    assert {row[0] for row in stage.sql("SELECT content FROM engram.memories WHERE tenant = $1")} == {
        made[0]["content"]
    }
    stage.encrypt(2, on=True)
    check()
    stage.until(lambda: stage.key_versions() == {1: 120})
    check()
    assert stage.stale() == []
    assert stage.http("GET", "/v1/usage").json["bytes"]["used"] - size == 120 * len(" ")  # jsonb prints `{"n": 0}`


def test_what_cannot_be_opened_keeps_no_other_memory_from_the_new_key(stage: Stage) -> None:
    made = store(stage, 100)
    stage.sql(SWAP, uuid_of(made[0]), uuid_of(made[1]))
    stage.write(KEYS_FILE, BOTH_KEYS.to_json())
    stage.until(lambda: stage.key_versions() == {1: 2, 2: 98})
    assert stage.stale() == [{"key_version": 1, "memories": 2}]
    stage.until(lambda: stage.metric('engram_sealed_rows{key_version="1"}') == 2)


def test_two_sidecars_share_the_sweep_and_write_no_memory_twice(stage: Stage) -> None:
    store(stage, 200)
    with SidecarThread(Settings(stage.tenant.config_dir, http_port=0, admin_port=0)).running() as other:
        second = replace(stage, sidecar=other)
        stage.write(KEYS_FILE, BOTH_KEYS.to_json())
        stage.until(lambda: stage.key_versions() == {2: 200})
        written = "engram_resealed_total"
        stage.until(lambda: stage.metric(written) + second.metric(written) >= 200)
        assert stage.metric(written) + second.metric(written) == 200


def test_what_a_shard_does_not_own_is_left_as_it_is(stage: Stage) -> None:
    """The rest of a move: the fence would refuse the write, and somebody else may be copying it."""
    store(stage, 20)
    owned = stage.sql("SELECT tenant, first_slot, last_slot, epoch FROM engram.ownership WHERE tenant = $1")
    stage.sql("UPDATE engram.ownership SET tenant = 'nobody' WHERE tenant = $1")
    stage.write(KEYS_FILE, BOTH_KEYS.to_json())
    stage.until(lambda: stage.metric('engram_sealed_rows{key_version="1"}') == 20)
    assert owned
    assert stage.key_versions() == {1: 20}
    assert stage.stale() == [{"key_version": 1, "memories": 20}]


# -------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize("conditions", [{"n": {"gte": 100}}, {"odd": True}, {"n": {"in": [3, 250]}}, {"n": {"ne": 5}}])
def test_pages_of_a_filtered_list_miss_nothing_and_repeat_nothing(stage: Stage, conditions: dict[str, Any]) -> None:
    operations = [
        {"op": "create", "memory": {"content": f"note {n}", "value": {"n": n, "odd": n % 2 == 1}, "user": f"u{n % 9}"}}
        for n in range(300)
    ]
    assert stage.http("POST", "/v1/batch", {"operations": operations}).status == 200
    wanted = {n for n in range(300) if meets(conditions, n)}
    found = stage.http("POST", "/v1/search", {"query": "", "filter": {"value": conditions}, "limit": 100}).json
    newest = [each["value"]["n"] for each in found["results"]]
    assert len(newest) == len(set(newest)) == min(len(wanted), 100)
    assert set(newest) <= wanted
    scored = stage.http("POST", "/v1/search", {"query": "note", "filter": {"value": conditions}, "limit": 100}).json
    assert {each["value"]["n"] for each in scored["results"]} <= wanted
    assert len(scored["results"]) == min(len(wanted), 100)
    assert (scored["truncated"], scored["complete"]) == (False, True)


def meets(conditions: dict[str, Any], n: int) -> bool:
    condition = conditions.get("n", {})
    match condition:
        case {"gte": least}:
            return bool(n >= least)
        case {"in": choices}:
            return n in choices
        case {"ne": other}:
            return bool(n != other)
        case _:
            return n % 2 == 1


def test_a_rare_value_is_found_by_its_token_and_not_by_opening_everything(stage: Stage) -> None:
    operations = [{"op": "create", "memory": {"content": "note", "value": {"n": n}, "user": "ada"}} for n in range(500)]
    made = stage.http("POST", "/v1/batch", {"operations": operations}).json["results"]
    broken = "sealed = set_byte(sealed, 30, 1 # get_byte(sealed, 30))"
    stage.sql(f"UPDATE engram.memories SET {broken} WHERE tenant = $1 AND id <> $2", uuid_of(made[250]["memory"]))
    found = stage.http("POST", "/v1/search", {"user": "ada", "filter": {"value": {"n": 250}}}).json
    assert [each["value"] for each in found["results"]] == [{"n": 250}]
    assert found["refused"] == []  # none of the broken ones was even opened


def test_the_log_of_the_sidecar_names_the_memory_and_nothing_of_it(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = store(stage, 2, content=WORDS[0])
    stage.sql(SWAP, uuid_of(one), uuid_of(other))
    stage.http("GET", f"/v1/memories/{one['id']}")
    told = [record for record in caplog.records if record.message == "an encrypted memory was not opened"]
    assert [record.__dict__["memory"] for record in told] == [one["id"]]
    assert not any(re.search(WORDS[0], str(record.__dict__)) for record in caplog.records)
