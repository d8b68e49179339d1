-- Every query that the data plane asks, by name. The tenant is always the login, never a parameter.

-- name: get_memories
-- For each asked (slot, id) in order: whether this shard owns the slot, and the live memory or nulls. One snapshot, and how far
-- the node was in the log when it was taken, or a little further.
SELECT p.is_replica, p.timeline, p.seen_lsn, EXISTS (
           SELECT FROM engram.ownership o
           WHERE o.tenant = current_user::text AND asked.slot BETWEEN o.first_slot AND o.last_slot
       ) AS owned,
       m.slot, m.id, m.namespace, m.key, m.type, m.user_id, m.agent_id, m.session_id, m.content, m.value::text AS value,
       m.sealed, m.importance, m.created, m.updated, m.expires, m.version
FROM engram.node_position() p, unnest($1::int[], $2::uuid[]) WITH ORDINALITY asked (slot, id, place)
LEFT JOIN engram.memories m
    ON m.tenant = current_user::text AND m.slot = asked.slot AND m.id = asked.id
    AND (m.expires IS NULL OR m.expires > now())
ORDER BY asked.place;

-- name: put_memory
-- Stores one memory whole if the conditions hold, and answers its new state; no row if they do not. An expired memory counts as
-- absent. $16 to $19: must exist, must be absent, accepted tags (null for any), refused ones; $20: the
-- envelope of content and value, which are empty then. What must exist is locked first, so
-- that it is not made anew if somebody removes it meanwhile.
INSERT INTO engram.memories AS m (
    tenant, slot, id, namespace, key, type, user_id, agent_id, session_id, content, value, sealed, importance,
    terms, term_count, expires, created, updated, version
)
SELECT current_user::text, $1::int, $2::uuid, $3::text[], $4::text, $5::text, $6::text, $7::text, $8::text, $9::text, $10::jsonb,
       $20::bytea, $11::double precision, $12::tsvector, $13::int,
       stamp.moment + $14::double precision * interval '1 second', stamp.moment, stamp.moment, 1
FROM (SELECT clock_timestamp() AS moment) stamp
WHERE NOT $16::boolean OR EXISTS (
    SELECT FROM engram.memories old WHERE old.tenant = current_user::text AND old.slot = $1::int AND old.id = $2::uuid FOR UPDATE)
ON CONFLICT (tenant, slot, id) DO UPDATE SET
    namespace = excluded.namespace, key = excluded.key, type = excluded.type, user_id = excluded.user_id,
    agent_id = excluded.agent_id, session_id = excluded.session_id, content = excluded.content, value = excluded.value,
    sealed = excluded.sealed, importance = excluded.importance, terms = excluded.terms, term_count = excluded.term_count, updated = excluded.updated,
    archived = NULL,
    expires = CASE WHEN $15::boolean AND (m.expires IS NULL OR m.expires > excluded.created)
                   THEN m.expires ELSE excluded.expires END,
    created = CASE WHEN m.expires IS NULL OR m.expires > excluded.created THEN m.created ELSE excluded.created END,
    version = CASE WHEN m.expires IS NULL OR m.expires > excluded.created THEN m.version + 1 ELSE 1 END
WHERE CASE WHEN m.expires IS NULL OR m.expires > excluded.created
      THEN NOT $17::boolean AND engram.is_accepted(m.version, m.created, $18::text[], $19::text[])
      ELSE NOT $16::boolean END
RETURNING slot, id, created, updated, expires, version;

-- name: put_memories
-- put_memory for many memories in one statement: $1 to $20 are its arguments as arrays, what is an array there as the text of one.
-- A memory may stand once. All are written in the order of their ids, so that two batches never wait for each other, and each is
-- newer than the one before it. A memory's conditions are looked up by its id, as `excluded` has only its columns.
INSERT INTO engram.memories AS m (
    tenant, slot, id, namespace, key, type, user_id, agent_id, session_id, content, value, sealed, importance,
    terms, term_count, expires, created, updated, version
)
SELECT current_user::text, a.slot, a.id, a.namespace::text[], a.key, a.type, a.user_id, a.agent_id, a.session_id, a.content,
       a.value::jsonb, a.sealed, a.importance, a.terms::tsvector, a.term_count,
       a.moment + a.ttl_s * interval '1 second', a.moment, a.moment, 1
FROM (
    SELECT asked.*, stamp.moment + asked.place * interval '1 microsecond' AS moment
    FROM (SELECT clock_timestamp() AS moment OFFSET 0) stamp, unnest(
        $1::int[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[],
        $11::double precision[], $12::text[], $13::int[], $14::double precision[], $16::boolean[], $20::bytea[]
    ) WITH ORDINALITY asked (
        slot, id, namespace, key, type, user_id, agent_id, session_id, content, value,
        importance, terms, term_count, ttl_s, must_exist, sealed, place)
) a
WHERE NOT a.must_exist OR (
    SELECT true FROM engram.memories old
    WHERE old.tenant = current_user::text AND old.slot = a.slot AND old.id = a.id FOR UPDATE)
ORDER BY a.slot, a.id
ON CONFLICT (tenant, slot, id) DO UPDATE SET
    namespace = excluded.namespace, key = excluded.key, type = excluded.type, user_id = excluded.user_id,
    agent_id = excluded.agent_id, session_id = excluded.session_id, content = excluded.content, value = excluded.value,
    sealed = excluded.sealed, importance = excluded.importance, terms = excluded.terms, term_count = excluded.term_count, updated = excluded.updated,
    archived = NULL,
    expires = CASE WHEN ($15::boolean[])[array_position($2::uuid[], excluded.id)]
                        AND (m.expires IS NULL OR m.expires > excluded.created)
                   THEN m.expires ELSE excluded.expires END,
    created = CASE WHEN m.expires IS NULL OR m.expires > excluded.created THEN m.created ELSE excluded.created END,
    version = CASE WHEN m.expires IS NULL OR m.expires > excluded.created THEN m.version + 1 ELSE 1 END
WHERE CASE WHEN m.expires IS NULL OR m.expires > excluded.created
      THEN NOT ($17::boolean[])[array_position($2::uuid[], excluded.id)]
           AND engram.is_accepted(m.version, m.created, ($18::text[])[array_position($2::uuid[], excluded.id)]::text[],
                                  ($19::text[])[array_position($2::uuid[], excluded.id)]::text[])
      ELSE NOT ($16::boolean[])[array_position($2::uuid[], excluded.id)] END
RETURNING slot, id, created, updated, expires, version;

-- name: delete_memory
-- Removes one live memory if its tag is accepted (null: any) and not refused; no row if nothing was removed.
SELECT d AS version FROM engram.delete_memory($1, $2, $3, $4) d;

-- name: lock_memories
-- Locks the existing ones of the asked memories in one order, so that two batches never wait for each other.
SELECT FROM engram.memories m
JOIN unnest($1::int[], $2::uuid[]) asked (slot, id) ON m.slot = asked.slot AND m.id = asked.id
WHERE m.tenant = current_user::text
ORDER BY m.slot, m.id
FOR UPDATE OF m;

-- name: claim_key
-- The turn of an idempotency key, and what was done under it in these slots; a row of nulls if somebody else has the turn.
SELECT c.slot, c.asked, c.outcomes::text AS outcomes FROM engram.claim_key($1, $2) c;

-- name: keep_outcomes
-- Keeps what was done under a key: the digest of the request, slots, and the JSON of what the writes to each came to (null: nothing).
SELECT engram.keep_outcomes($1, $2, $3, $4);

-- name: list_memories
-- The newest memories of a selection, below a cursor, and how far the node was in the log; without any, one row of nulls.
SELECT p.is_replica, p.timeline, p.seen_lsn, f.slot, f.id, f.namespace, f.key, f.type, f.user_id, f.agent_id, f.session_id, f.content, f.value::text AS value,
       f.sealed, f.importance, f.created, f.updated, f.expires, f.version, f.score, f.is_cut
FROM engram.node_position() p LEFT JOIN engram.list_memories(
    $1, $2, $3, $4, $5, $6, $7::text::jsonpath, $8::text::jsonpath, $9, $10::text::tsquery, $11, $12, $13, $14, $15) f ON true;

-- name: search_memories
-- The best memories of a selection for a ranking, and how far the node was in the log; without any, one row of nulls.
SELECT p.is_replica, p.timeline, p.seen_lsn, f.slot, f.id, f.namespace, f.key, f.type, f.user_id, f.agent_id, f.session_id, f.content, f.value::text AS value,
       f.sealed, f.importance, f.created, f.updated, f.expires, f.version, f.score, f.is_cut
FROM engram.node_position() p LEFT JOIN engram.search_memories(
    $1::text::tsquery, $2::text[]::tsquery[], $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::text::jsonpath,
    $13::text::jsonpath, $14, $15::text::tsquery, $16, $17, $18) f ON true;

-- name: count_lexemes
-- In how many memories each lexeme stands: exact below the cap, an estimate above.
SELECT c.lexeme, c.memories FROM engram.count_lexemes($1, $2, $3) c;

-- name: tenant_size
-- How many memories the tenant has on this shard and how long they are: exact up to 10,000.
SELECT t.memories, t.mean_terms FROM engram.tenant_size() t;

-- name: count_memories
-- How many live memories the tenant has on this shard: exact, so it reads an index entry for each.
SELECT count(*) AS memories FROM engram.memories m
WHERE m.tenant = current_user::text AND (m.expires IS NULL OR m.expires > now());

-- name: is_standby
-- Whether this server takes no writes.
SELECT pg_is_in_recovery() AS is_standby;

-- name: get_map
-- The newest map of the tenant that this shard knows.
SELECT s.map::text AS map FROM engram.shard_map s WHERE s.tenant = current_user::text;

-- name: node_position
-- How far the node is in the log of changes: after a commit, at least where that ended.
SELECT p.is_replica, p.timeline, p.lsn FROM engram.node_position() p;

-- name: look_node
-- What a node is, how far it surely is in the log, and the epoch of the tenant's map there; null if it has none.
SELECT p.is_replica, p.timeline, p.lsn, s.epoch
FROM engram.node_position() p LEFT JOIN engram.shard_map s ON s.tenant = current_user::text;

-- name: report_sidecar
-- Keeps which configuration a pod's sidecar has in force: pod, its uid, agent, epoch, generations of policy, credentials and keys.
SELECT engram.report_sidecar($1, $2, $3, $4, $5, $6, $7);

-- name: lend_quota
-- A part of this shard's free allowance goes to another shard; so many memories and bytes at least, if they are free. Whether any is.
SELECT engram.lend_quota($1, $2, $3) AS is_lent;

-- name: loan_token
-- A token for all that was lent to another shard, and to the tenant's life there; null if nothing was. It tells of what is committed.
SELECT engram.loan_token($1, $2::text::uuid) AS token;

-- name: borrow_quota
-- Adds to this shard's allowance what a token of another shard says; what it was.
SELECT b.memories, b.bytes FROM engram.borrow_quota($1) b;

-- name: record_audit
-- Keeps the entries of an array.
SELECT engram.record_audit($1::text::jsonb);

-- name: list_audit
-- The newest entries below (at, number), both null for the first ones.
SELECT a.number, a.at, a.recorded, a.entry::text AS entry FROM engram.list_audit($1, $2, $3) a;

-- name: tenant_usage
-- What the tenant stores on this shard, by type of memory.
SELECT u.type, u.memories, u.bytes FROM engram.tenant_usage() u;

-- name: count_stale
-- How many memories are not under the key $1 (0: not in the clear), by the key that they are under.
SELECT m.key_version, count(*) AS memories FROM engram.memories m
WHERE m.tenant = current_user::text AND (m.key_version < $1::bigint OR m.key_version > $1::bigint)
GROUP BY m.key_version ORDER BY m.key_version;

-- name: try_reseal
-- Whether this transaction may bring memories into another form.
SELECT engram.try_reseal() AS is_mine;

-- name: list_stale
-- Some memories of a key version that this shard owns, without those of the ids $2, and how long they are.
SELECT m.slot, m.id, m.size_bytes FROM engram.memories m
WHERE m.tenant = current_user::text AND m.key_version = $1 AND m.id <> ALL ($2::uuid[])
  AND EXISTS (SELECT FROM engram.ownership o
              WHERE o.tenant = current_user::text AND m.slot BETWEEN o.first_slot AND o.last_slot)
LIMIT $3;

-- name: lock_stale
-- The asked memories that are still under the key version $1, expired ones too, locked; those that somebody holds are left out.
SELECT m.slot, m.id, m.namespace, m.key, m.type, m.user_id, m.agent_id, m.session_id, m.content, m.value::text AS value,
       m.sealed, m.importance, m.created, m.updated, m.expires, m.version
FROM engram.memories m JOIN unnest($2::int[], $3::uuid[]) asked (slot, id) ON m.slot = asked.slot AND m.id = asked.id
WHERE m.tenant = current_user::text AND m.key_version = $1
FOR UPDATE OF m SKIP LOCKED;

-- name: reseal_memories
-- Writes memories in another form; their words too where they are given. Nothing that a caller sees changes: no version, no time.
UPDATE engram.memories m SET content = a.content, value = a.value::jsonb, sealed = a.sealed,
    terms = coalesce(a.terms::tsvector, m.terms), term_count = coalesce(a.term_count, m.term_count)
FROM unnest($1::int[], $2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::int[])
    a (slot, id, content, value, sealed, terms, term_count)
WHERE m.tenant = current_user::text AND m.slot = a.slot AND m.id = a.id;

-- name: count_namespaces
-- In how many memories of this shard each whole namespace stands, the largest $1: it looks at each memory of the tenant, by index
-- unless they are most of the table. Expired ones count until they are swept, as in tenant_usage.
SELECT m.namespace, count(*) AS memories FROM engram.memories m
WHERE m.tenant = current_user::text
GROUP BY m.namespace ORDER BY memories DESC, m.namespace LIMIT $1;
