-- Every query that the data plane asks, by name. The tenant is always the login, never a parameter.

-- name: get_memories
-- For each asked (slot, id) in order: whether this shard owns the slot, and the live memory or nulls. One snapshot.
SELECT EXISTS (
           SELECT FROM engram.ownership o
           WHERE o.tenant = current_user::text AND asked.slot BETWEEN o.first_slot AND o.last_slot
       ) AS owned,
       m.slot, m.id, m.namespace, m.key, m.type, m.user_id, m.agent_id, m.session_id, m.content, m.value::text AS value,
       m.importance, m.created, m.updated, m.expires, m.version
FROM unnest($1::int[], $2::uuid[]) WITH ORDINALITY asked (slot, id, place)
LEFT JOIN engram.memories m
    ON m.tenant = current_user::text AND m.slot = asked.slot AND m.id = asked.id
    AND (m.expires IS NULL OR m.expires > now())
ORDER BY asked.place;

-- name: put_memory
-- Stores one memory whole if the conditions hold, and answers its new state; no row if they do not. An expired memory counts as
-- absent. The fence is a trigger. $16 to $20: must exist, must be absent, accepted tags (versions, creations; null for any).
INSERT INTO engram.memories AS m (
    tenant, slot, id, namespace, key, type, user_id, agent_id, session_id, content, value, importance,
    terms, term_count, expires, created, updated, version
)
SELECT current_user::text, $1::int, $2::uuid, $3::text[], $4::text, $5::text, $6::text, $7::text, $8::text, $9::text, $10::jsonb,
       $11::double precision, $12::tsvector, $13::int,
       stamp.moment + $14::double precision * interval '1 second', stamp.moment, stamp.moment, 1
FROM (SELECT clock_timestamp() AS moment) stamp
WHERE NOT $16::boolean OR EXISTS (
    SELECT FROM engram.memories old WHERE old.tenant = current_user::text AND old.slot = $1::int AND old.id = $2::uuid)
ON CONFLICT (tenant, slot, id) DO UPDATE SET
    namespace = excluded.namespace, key = excluded.key, type = excluded.type, user_id = excluded.user_id,
    agent_id = excluded.agent_id, session_id = excluded.session_id, content = excluded.content, value = excluded.value,
    importance = excluded.importance, terms = excluded.terms, term_count = excluded.term_count, updated = excluded.updated,
    archived = NULL,
    expires = CASE WHEN $15::boolean AND (m.expires IS NULL OR m.expires > excluded.created)
                   THEN m.expires ELSE excluded.expires END,
    created = CASE WHEN m.expires IS NULL OR m.expires > excluded.created THEN m.created ELSE excluded.created END,
    version = CASE WHEN m.expires IS NULL OR m.expires > excluded.created THEN m.version + 1 ELSE 1 END
WHERE CASE WHEN m.expires IS NULL OR m.expires > excluded.created
      THEN NOT $17::boolean
           AND ($18::bigint[] IS NULL OR EXISTS (
                   SELECT FROM unnest($18::bigint[], $19::timestamptz[]) accepted (version, created)
                   WHERE accepted.version = m.version AND accepted.created = m.created))
           AND NOT EXISTS (
                   SELECT FROM unnest($20::bigint[], $21::timestamptz[]) refused (version, created)
                   WHERE refused.version = m.version AND refused.created = m.created)
      ELSE NOT $16::boolean END
RETURNING slot, id, created, updated, expires, version;

-- name: delete_memory
-- Removes one live memory if its tag is accepted (null: any) and not refused; no row if nothing was removed.
DELETE FROM engram.memories m
WHERE m.tenant = current_user::text AND m.slot = $1::int AND m.id = $2::uuid AND (m.expires IS NULL OR m.expires > now())
  AND ($3::bigint[] IS NULL OR EXISTS (
          SELECT FROM unnest($3::bigint[], $4::timestamptz[]) accepted (version, created)
          WHERE accepted.version = m.version AND accepted.created = m.created))
  AND NOT EXISTS (
          SELECT FROM unnest($5::bigint[], $6::timestamptz[]) refused (version, created)
          WHERE refused.version = m.version AND refused.created = m.created)
RETURNING m.version;

-- name: lock_memories
-- Locks the existing ones of the asked memories in one order, so that two batches never wait for each other.
SELECT FROM engram.memories m
JOIN unnest($1::int[], $2::uuid[]) asked (slot, id) ON m.slot = asked.slot AND m.id = asked.id
WHERE m.tenant = current_user::text
ORDER BY m.slot, m.id
FOR UPDATE OF m;

-- name: list_memories
-- The newest memories of a selection, below a cursor.
SELECT f.slot, f.id, f.namespace, f.key, f.type, f.user_id, f.agent_id, f.session_id, f.content, f.value::text AS value,
       f.importance, f.created, f.updated, f.expires, f.version, f.score, f.is_cut
FROM engram.list_memories($1, $2, $3, $4, $5, $6, $7::text::jsonpath, $8, $9, $10, $11, $12, $13) f;

-- name: search_memories
-- The best memories of a selection for a ranking.
SELECT f.slot, f.id, f.namespace, f.key, f.type, f.user_id, f.agent_id, f.session_id, f.content, f.value::text AS value,
       f.importance, f.created, f.updated, f.expires, f.version, f.score, f.is_cut
FROM engram.search_memories(
    $1::text::tsquery, $2::text[]::tsquery[], $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::text::jsonpath, $13, $14, $15, $16) f;

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

-- name: get_map
-- The newest map of the tenant that this shard knows.
SELECT s.map::text AS map FROM engram.shard_map s WHERE s.tenant = current_user::text;
