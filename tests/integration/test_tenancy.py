"""One MemoryTenant's whole life, reconciled against real servers; only the API server is a store in memory."""

import base64
import json

import pytest

from engram_contract.caching import Caching
from engram_contract.names import (
    CREDENTIALS_FILE,
    ERASE_FINALIZER,
    MAP_FILE,
    POLICY_FILE,
    ROTATE_ANNOTATION,
    ROTATE_KEY_ANNOTATION,
    SHARED_DATABASE,
    TENANT_LABEL,
    tenant_objects,
)
from engram_contract.policy import Policy
from engram_operator.clients.kube import (
    MEMORY_CLUSTERS,
    OWNED,
    SECRETS,
    Manifest,
)
from engram_operator.manifests.tenant import key_secret
from tests.tenant_stage import Servers, Stage, own_session


async def test_a_tenant_is_made_and_then_nothing_is_written(servers: Servers) -> None:
    stage = Stage(servers)
    outcome = await stage.settle()
    assert (outcome.result, outcome.again_s) == ("settled", 60.0)
    assert stage.api.writes == []
    assert stage.ready() == ("True", "Ready")
    published = stage.status()["published"]
    assert published.pop("time")
    assert published == {"policy": 1, "credentials": 1, "keys": 1}
    assert stage.status()["usage"]["memories"] == 0
    config = stage.api.get(OWNED["ConfigMap"], stage.namespace, tenant_objects(stage.name))
    policy = json.loads(config["data"][POLICY_FILE])
    assert policy["quota"] == {"memories": 7, "storage_bytes": 5_000, "requests_per_second": 1}
    assert await stage.can_login(stage.credentials.passwords[0])
    stage.apply(quota={"memories": 9})
    assert [step for step in (await stage.run()).done if step.startswith("quota")] != []
    stage.now_s += 60
    assert (await stage.settle()).result == "settled"


async def test_the_caches_of_the_cluster_are_in_the_policy_and_follow_a_change(servers: Servers) -> None:
    stage = Stage(servers)
    await stage.settle()
    assert caching_of(stage) == Caching()
    stage.set_cluster(cache={"provider": "None", "ttl": "2h", "local": {"entries": 9, "capacity": "2Mi", "ttl": "1m"}})
    await stage.settle()
    assert caching_of(stage) == Caching(9, 2 << 20, 60, 7_200)


def caching_of(stage: Stage) -> Caching:
    config = stage.api.get(OWNED["ConfigMap"], stage.namespace, tenant_objects(stage.name))
    return Policy.from_json(config["data"][POLICY_FILE]).cache


async def test_usage_is_measured_and_what_has_expired_is_swept(servers: Servers) -> None:
    stage = Stage(servers)
    await stage.settle()
    database = stage.status()["database"]
    async with servers[0].session(database) as connection:
        insert = (
            "INSERT INTO engram.memories (tenant, slot, id, namespace, type, content, value, created, updated, version,"
            " terms, term_count, expires) VALUES ($1, 0, gen_random_uuid(), '{}', $2, 'x', 'null', now(), now(), 1, '',"
            " 0, now() + $3 * interval '1 second')"
        )
        for kind, left_s in (("episodic", 900.0), ("semantic", 900.0), ("semantic", 900.0), ("gone", -5.0)):
            await connection.execute(insert, stage.role, kind, left_s)
    assert (await stage.run()).again_s == 60.0
    await stage.settle()
    told = stage.status()["usage"]
    assert [(each["type"], each["memories"]) for each in told["byType"]] == [("semantic", 2), ("episodic", 1)]
    assert (told["memories"], told["storageBytes"]) == (3, 15)
    stage.now_s += 600
    await stage.run()
    assert stage.status()["usage"] == told, "the same count is the same status, its time included"


async def test_a_password_rotates_by_way_of_both(servers: Servers) -> None:
    stage = Stage(servers)
    await stage.settle()
    old = stage.credentials.passwords[0]
    stage.annotations = {ROTATE_ANNOTATION: "one"}
    stage.apply()
    outcome = await stage.settle()
    assert outcome.again_s == 60.0
    assert stage.credentials.passwords[0] == old
    new = stage.credentials.passwords[1]
    assert (await stage.can_login(old), await stage.can_login(new)) == (True, False)
    stage.now_s += 299
    assert (await stage.run()).again_s == 1.0
    assert await stage.can_login(old)
    stage.now_s += 1
    await stage.run()
    assert (await stage.can_login(old), await stage.can_login(new)) == (False, True)
    await stage.settle()
    assert (stage.credentials.passwords, stage.credentials.generation) == ((new,), 3)
    assert stage.status()["published"]["credentials"] == 3
    await stage.settle()
    assert stage.credentials.generation == 3


async def test_a_data_key_is_added_and_a_lost_secret_brings_the_same_keys_back(servers: Servers) -> None:
    stage = Stage(servers)
    await stage.settle()
    first = stage.keyring
    stage.annotations = {ROTATE_KEY_ANNOTATION: "one"}
    stage.apply()
    await stage.settle()
    both = stage.keyring
    assert (both.current, both.keys[0], both.index) == (2, first.keys[0], first.index)
    password = stage.credentials.passwords[0]
    del stage.api.objects[SECRETS.path(stage.namespace, tenant_objects(stage.name))]
    await stage.settle()
    assert stage.keyring == both
    assert stage.credentials.passwords[0] != password
    assert await stage.can_login(stage.credentials.passwords[0])


async def test_keys_that_do_not_open_are_never_made_anew(servers: Servers) -> None:
    stage = Stage(servers)
    await stage.settle()
    before = stage.keyring
    secret = stage.api.get(SECRETS, stage.namespace, key_secret("mem", stage.role))
    kept = dict(secret["data"])
    for damage in ({"index": kept["key-1"]}, {"key-1": "!"}, {"current": ""}):
        secret["data"] = kept | damage
        await stage.run()
        assert stage.ready() == ("False", "KeyUnreadable")
        assert stage.keyring == before
    secret["data"] = kept
    await stage.settle()
    assert stage.ready() == ("True", "Ready")


async def test_a_cluster_from_before_there_were_keys_gets_one(servers: Servers) -> None:
    stage = Stage(servers)
    secret = stage.api.get(SECRETS, stage.namespace, "mem-credentials")
    del secret["data"]["key"]
    await stage.run()
    assert "key" in stage.api.get(SECRETS, stage.namespace, "mem-credentials")["data"]
    await stage.settle()
    assert stage.ready() == ("True", "Ready")


async def test_a_forged_map_gives_nobody_anything(servers: Servers) -> None:
    """Who may write ConfigMaps in a namespace names another tenant there, or other shards for the own one."""
    victim, thief = Stage(servers), Stage(servers)
    await victim.settle()
    config = victim.api.get(OWNED["ConfigMap"], victim.namespace, tenant_objects(victim.name))
    theirs = json.loads(config["data"][MAP_FILE]) | {"epoch": 99}
    for settles_first in (False, True):
        if settles_first:
            await thief.settle()
        for forged in (theirs, theirs | {"tenant": thief.role, "epoch": 2**63 - 1}):
            metadata: Manifest = {"name": tenant_objects(thief.name), "namespace": thief.namespace}
            metadata["labels"] = {TENANT_LABEL: thief.name}
            thief.api.put(OWNED["ConfigMap"], {"metadata": metadata, "data": {MAP_FILE: json.dumps(forged)}})
            await thief.settle()
    assert thief.status()["mapEpoch"] == 1
    assert thief.ready() == ("True", "Ready")
    assert await victim.can_login(victim.credentials.passwords[0])
    assert thief.credentials.role == thief.role
    await victim.settle()
    assert victim.status()["mapEpoch"] == 1


async def test_a_damaged_secret_is_mended_before_a_role_changes(servers: Servers) -> None:
    """Else, while a shard is away, a healthy one would get passwords that nobody wrote down."""
    stage = Stage(servers)
    await stage.settle()
    secret = stage.api.get(SECRETS, stage.namespace, tenant_objects(stage.name))
    secret["data"][CREDENTIALS_FILE] = base64.b64encode(b"{").decode()
    away = base64.b64encode(b"postgresql://a:b@127.0.0.1:1/?sslmode=disable").decode()
    stage.api.get(SECRETS, stage.namespace, "dsn-1")["data"] = {"dsn": away}
    for _ in range(2):
        await stage.run()
        assert await stage.can_login(stage.credentials.passwords[0])


async def test_the_lasting_keys_come_back_from_the_tenants_own_secret(servers: Servers) -> None:
    stage = Stage(servers)
    await stage.settle()
    before = stage.keyring
    del stage.api.objects[SECRETS.path(stage.namespace, key_secret("mem", stage.role))]
    await stage.settle()
    assert stage.keyring == before
    del stage.api.objects[SECRETS.path(stage.namespace, tenant_objects(stage.name))]
    await stage.settle()
    assert stage.keyring == before


@pytest.mark.parametrize("isolation", ["Strict", "Moderate"])
async def test_a_tenant_to_be_erased_leaves_nothing(servers: Servers, isolation: str) -> None:
    stage = Stage(servers, isolation=isolation, reclaimPolicy="Delete")
    await stage.settle()
    assert stage.tenant()["metadata"]["finalizers"] == [ERASE_FINALIZER]
    for server in servers:  # what only that tenant can take back, and what would keep its role
        async with own_session(server, stage) as connection:
            await connection.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")
    stage.apply(is_deleted=True)
    assert (await stage.run()).result == "acted"
    assert stage.tenant()["metadata"]["finalizers"] == []
    assert [each.split(":")[0] for each in stage.events()][-1] == "Erased"
    assert SECRETS.path(stage.namespace, key_secret("mem", stage.role)) not in stage.api.objects
    tables: dict[str, tuple[str, ...]] = {"postgres": ("pg_roles WHERE rolname", "pg_database WHERE datname")}
    if isolation == "Moderate":
        tables[SHARED_DATABASE] = tuple(f"engram.{each} WHERE tenant" for each in ("ownership", "quota", "usage"))
    for server in servers:
        for database, places in tables.items():
            async with server.session(database) as connection:
                for place in places:
                    assert await connection.fetch(f"SELECT FROM {place} = $1", stage.role) == [], place


async def test_what_an_earlier_try_erased_is_not_counted_as_nothing(servers: Servers) -> None:
    stage = Stage(servers, reclaimPolicy="Delete")
    await stage.settle()
    dsn = stage.api.get(SECRETS, stage.namespace, "dsn-1")
    kept = dsn["data"]
    dsn["data"] = {"dsn": base64.b64encode(b"postgresql://a:b@127.0.0.1:1/?sslmode=disable").decode()}
    stage.apply(is_deleted=True)
    assert (await stage.run()).result == "waiting"
    dsn["data"] = kept
    assert (await stage.run()).result == "acted"
    assert "what was left of the memories" in stage.events()[-1]


async def test_a_finalizer_follows_the_wish_and_never_holds_what_cannot_be_erased(servers: Servers) -> None:
    stage = Stage(servers, reclaimPolicy="Delete")
    await stage.settle()
    stage.tenant()["metadata"]["finalizers"].insert(0, "example.com/mine")
    stage.apply(reclaimPolicy="Retain")
    await stage.settle()
    assert stage.tenant()["metadata"]["finalizers"] == ["example.com/mine"]
    stage.tenant()["metadata"]["finalizers"].clear()
    stage.apply(reclaimPolicy="Delete")
    await stage.settle()
    dsn = stage.api.get(SECRETS, stage.namespace, "dsn-1")
    kept = dsn["data"]
    dsn["data"] = {"dsn": base64.b64encode(b"postgresql://a:b@127.0.0.1:1/?sslmode=disable").decode()}
    stage.apply(is_deleted=True)
    outcome = await stage.run()
    assert outcome.result == "waiting"
    assert "reclaimPolicy" in outcome.waits[0]
    assert stage.tenant()["metadata"]["finalizers"] == [ERASE_FINALIZER]
    dsn["data"] = kept
    del stage.api.objects[MEMORY_CLUSTERS.path(stage.namespace, "mem")]
    await stage.run()
    assert stage.tenant()["metadata"]["finalizers"] == []
    assert "nothing was erased" in stage.events()[-1]


async def test_nothing_is_published_before_the_quota_is(servers: Servers) -> None:
    stage = Stage(servers)
    done = (await stage.run()).done
    first_map = next(index for index, line in enumerate(done) if line.startswith("publish"))
    assert sum(line.startswith("quota on") for line in done[:first_map]) == 2


async def test_a_tenant_that_keeps_its_role_changing_is_erased_all_the_same(servers: Servers) -> None:
    stage = Stage(servers, reclaimPolicy="Delete")
    await stage.settle()
    async with own_session(servers[0], stage) as holder:
        await holder.execute(f"BEGIN; ALTER ROLE {stage.role} PASSWORD 'mine'")
        stage.apply(is_deleted=True)
        await stage.run()
    assert not await stage.can_login(stage.credentials.passwords[0])
    async with servers[0].session("postgres") as connection:
        assert await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", stage.role) == 0
