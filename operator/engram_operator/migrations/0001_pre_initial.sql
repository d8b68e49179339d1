-- The first schema of a shard database: roles, the fence, memories, and what tenants may do.
--
-- Run by an administrator inside one transaction; everything belongs to engram_owner, who cannot log in.
-- Row-level security is not FORCEd: it would bind the owner, as whom logical replication applies, and the apply would stop.

SET LOCAL client_min_messages = warning;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'engram_owner') THEN
        CREATE ROLE engram_owner NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'engram_tenant') THEN
        CREATE ROLE engram_tenant NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
    END IF;
    -- An administrator who is no superuser may only give what it made itself; it is to act as the owner.
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        EXECUTE format('GRANT engram_owner TO %I WITH INHERIT TRUE, SET TRUE', current_user);
    END IF;
    -- The timeline that a replica receives is told to few (engram.node_position). Where this may not be given no replica is read.
    BEGIN
        GRANT pg_read_all_stats TO engram_owner;
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;
    END;
END $$;

-- A tenant's role connects to the databases that it was granted, sees no other schema and makes nothing.
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CREATE ON DATABASE %I TO engram_owner', current_database());
END $$;
REVOKE ALL ON SCHEMA public FROM PUBLIC;

-- Who may take advisory locks could hold another tenant's fence; who may make large objects could fill the disk. On a server
-- whose administrator may not revoke them this is a warning, and the tenants of one shard have to trust each other so far.
DO $$
DECLARE
    callable record;
BEGIN
    FOR callable IN
        SELECT p.oid::regprocedure AS signature, p.proname LIKE 'pg%' AS is_lock FROM pg_proc p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace
          AND (p.proname ~ '^pg_(try_)?advisory_' OR p.proname ~ '^(lo_|loread$|lowrite$)')
          AND has_function_privilege('public', p.oid, 'EXECUTE')  -- others may not be named by who has no right to them
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', callable.signature);
        IF callable.is_lock THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO engram_owner', callable.signature);
        END IF;
    END LOOP;
END $$;

ALTER SCHEMA engram OWNER TO engram_owner;
GRANT USAGE ON SCHEMA engram TO engram_tenant;

SET LOCAL ROLE engram_owner;

-- Which slots of which tenant this database owns, and since which epoch. Written by the operator alone.
CREATE TABLE engram.ownership (
    tenant text COLLATE "C" NOT NULL,
    first_slot int NOT NULL CHECK (first_slot BETWEEN 0 AND 16383),
    last_slot int NOT NULL CHECK (last_slot BETWEEN first_slot AND 16383),
    epoch bigint NOT NULL CHECK (epoch >= 1),
    PRIMARY KEY (tenant, first_slot)
);

-- The newest map of each tenant as this shard knows it: a sidecar that met the fence reads it here.
CREATE TABLE engram.shard_map (
    tenant text COLLATE "C" PRIMARY KEY,
    epoch bigint NOT NULL CHECK (epoch >= 1),
    map jsonb NOT NULL
);

CREATE TABLE engram.memories (
    tenant text COLLATE "C" NOT NULL,
    slot int NOT NULL CHECK (slot BETWEEN 0 AND 16383),
    id uuid NOT NULL,
    namespace text[] COLLATE "C" NOT NULL,
    key text COLLATE "C",
    type text COLLATE "C" NOT NULL,
    user_id text COLLATE "C",
    agent_id text COLLATE "C",
    session_id text COLLATE "C",
    content text NOT NULL,
    value jsonb NOT NULL,
    -- Instead of both, the envelope that the sidecar made of them: scheme, key version, nonce, ciphertext. 41 bytes of it are not text.
    sealed bytea CHECK (octet_length(sealed) >= 41 AND get_byte(sealed, 0) = 1
                        AND substring(sealed, 2, 8) BETWEEN '\x0000000000000001' AND '\x7fffffffffffffff'),
    -- Under which key; 0 for what is in the clear.
    key_version bigint NOT NULL GENERATED ALWAYS AS (
        CASE WHEN sealed IS NULL THEN 0 ELSE ('x' || encode(substring(sealed, 2, 8), 'hex'))::bit(64)::bigint END) STORED,
    importance double precision CHECK (importance BETWEEN 0 AND 1),
    created timestamptz NOT NULL CHECK (created BETWEEN '2000-01-01 UTC' AND '9000-01-01 UTC'),
    updated timestamptz NOT NULL CHECK (updated BETWEEN '2000-01-01 UTC' AND '9000-01-01 UTC'),
    expires timestamptz CHECK (expires BETWEEN '2000-01-01 UTC' AND '9500-01-01 UTC'),
    archived timestamptz CHECK (archived BETWEEN '2000-01-01 UTC' AND '9000-01-01 UTC'),
    version bigint NOT NULL CHECK (version >= 1),
    -- Hashed stems, made by the sidecar: Postgres need not see the words. The weight label is the class of the frequency.
    terms tsvector NOT NULL,
    term_count int NOT NULL CHECK (term_count >= 0),
    PRIMARY KEY (tenant, slot, id),
    CONSTRAINT clear_or_sealed CHECK (sealed IS NULL OR (content = '' AND value = 'null'))
);
CREATE INDEX memories_newest ON engram.memories (tenant, created DESC, id DESC);
CREATE INDEX memories_user_newest ON engram.memories (tenant, user_id, created DESC, id DESC) WHERE user_id IS NOT NULL;
CREATE INDEX memories_agent_newest ON engram.memories (tenant, agent_id, created DESC, id DESC) WHERE agent_id IS NOT NULL;
CREATE INDEX memories_session_newest ON engram.memories (tenant, session_id, created DESC, id DESC)
    WHERE session_id IS NOT NULL;
CREATE INDEX memories_type_newest ON engram.memories (tenant, type, created DESC, id DESC);
-- Arrays compare part by part, so a prefix is a range of this index: whole parts only, never `LIKE`.
CREATE INDEX memories_namespace ON engram.memories (tenant, namespace, created DESC, id DESC);
-- What still lies under an older key, or in the clear. Nearly all rows have one version, so it is a small index.
CREATE INDEX memories_key_version ON engram.memories (tenant, key_version);
-- A long pending list is read by every search: keep it short.
CREATE INDEX memories_terms ON engram.memories USING gin (terms) WITH (gin_pending_list_limit = 512);

ALTER TABLE engram.ownership ENABLE ROW LEVEL SECURITY;
ALTER TABLE engram.shard_map ENABLE ROW LEVEL SECURITY;
ALTER TABLE engram.memories ENABLE ROW LEVEL SECURITY;
-- COLLATE "C" on the columns: with the default collation no index serves `current_user`, whose type is `name`.
CREATE POLICY own ON engram.ownership FOR SELECT USING (tenant = current_user::text);
CREATE POLICY own ON engram.shard_map FOR SELECT USING (tenant = current_user::text);
CREATE POLICY own ON engram.memories USING (tenant = current_user::text) WITH CHECK (tenant = current_user::text);
GRANT SELECT ON engram.ownership, engram.shard_map TO engram_tenant;
GRANT SELECT, INSERT, UPDATE, DELETE ON engram.memories TO engram_tenant;

CREATE FUNCTION engram.fence_key(tenant text) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN hashtextextended(tenant, 7711);

-- True if this database owns the tenant's slot, in the snapshot of the statement that asks. No lock.
CREATE FUNCTION engram.is_owned(tenant text, slot int) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN EXISTS (
        SELECT FROM engram.ownership o
        WHERE o.tenant = is_owned.tenant AND is_owned.slot BETWEEN o.first_slot AND o.last_slot
    );

-- The fence. First the tenant's lock, shared; only the *next* statement looks at the ownership, with a snapshot taken after
-- the lock was had. Looking in the writing statement, or in the one that locks, let writes land after the fence.
CREATE FUNCTION engram.check_fence() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    moved record;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'writes need READ COMMITTED: another isolation level would not see the fence'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    IF TG_OP = 'DELETE' THEN
        moved := OLD;
    ELSE
        moved := NEW;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(engram.fence_key(moved.tenant));
    IF NOT engram.is_owned(moved.tenant, moved.slot) THEN
        RAISE EXCEPTION 'slot % is not owned by this shard', moved.slot USING ERRCODE = 'EG001';
    END IF;
    IF TG_OP = 'UPDATE' AND (OLD.tenant, OLD.slot, OLD.id) IS DISTINCT FROM (NEW.tenant, NEW.slot, NEW.id) THEN
        RAISE EXCEPTION 'tenant, slot and id are fixed at creation' USING ERRCODE = 'check_violation';
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON engram.memories
    FOR EACH ROW EXECUTE FUNCTION engram.check_fence();

-- What is found and how well it matches. Everything a sidecar shows of a memory, but its tenant. `is_cut`: more was found, and
-- left out because the answer has `max_bytes`.
CREATE TYPE engram.found AS (
    slot int, id uuid, namespace text[], key text, type text, user_id text, agent_id text, session_id text,
    content text, value jsonb, sealed bytea, importance double precision, created timestamptz, updated timestamptz,
    expires timestamptz, version bigint, score double precision, is_cut boolean
);

-- The slots of the calling tenant that this database owns; empty if none.
CREATE FUNCTION engram.owned_slots() RETURNS int4multirange
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        SELECT coalesce(range_agg(int4range(o.first_slot, o.last_slot, '[]')), '{}'::int4multirange)
        FROM engram.ownership o WHERE o.tenant = session_user::text;
    END;

-- What a filter sees of a memory: names as in the interface, times as RFC 3339 text, which compares like time.
CREATE FUNCTION engram.filterable(
    key text, type text, user_id text, agent_id text, session_id text, value jsonb, importance double precision,
    created timestamptz, updated timestamptz, expires timestamptz
) RETURNS jsonb
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN jsonb_build_object(
        'key', key, 'type', type, 'user', user_id, 'agent', agent_id, 'session', session_id, 'value', value,
        'importance', importance,
        'created', to_char(created AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'updated', to_char(updated AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'expires', to_char(expires AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    );

-- The functions below run as the owner, because under a policy only leakproof operators reach an index: `@@`, array ranges and
-- jsonpath do not. Their first predicate is the tenant, taken from the login. Plans are made anew for each call: an absent
-- argument then leaves the plan instead of hiding the index. Every predicate has an index of the tenant's, so a scan of the whole
-- table, which other tenants share, is never taken. The CASE around the owned slots keeps the planner from its default of .005
-- for ranges: an owner owns most of what it holds.

-- How many memories the calling tenant has here, and the mean number of terms in the newest thousand.
-- Exact up to 10,000 memories, beyond that the planner's estimate.
CREATE FUNCTION engram.tenant_size(OUT memories bigint, OUT mean_terms double precision)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan SET enable_seqscan = off AS $$
BEGIN
    memories := (SELECT count(*) FROM (
        SELECT FROM engram.memories m WHERE m.tenant = session_user::text LIMIT 10000) few);
    IF memories = 10000 THEN
        memories := greatest(memories, (
            SELECT (c.reltuples * coalesce(common.frequency, 0))::bigint
            FROM pg_catalog.pg_class c
            LEFT JOIN LATERAL (
                SELECT v.frequency FROM pg_catalog.pg_stats s,
                    unnest(s.most_common_vals::text::text[], s.most_common_freqs) v (tenant, frequency)
                WHERE s.schemaname = 'engram' AND s.tablename = 'memories' AND s.attname = 'tenant'
                  AND v.tenant = session_user::text
            ) common ON true
            WHERE c.oid = 'engram.memories'::regclass));
    END IF;
    mean_terms := (SELECT coalesce(avg(n.term_count), 0) FROM (
        SELECT m.term_count FROM engram.memories m
        WHERE m.tenant = session_user::text ORDER BY m.created DESC, m.id DESC LIMIT 1000) n);
END $$;

-- How far this server is in the log of changes. `lsn`: all that was committed before it is visible to whoever asks next. `seen_lsn`:
-- nothing is visible to who asks now that was committed behind it; so it is for the statement whose snapshot was taken before the call.
-- Of a replica that replays, the record after `lsn` may be visible already: a server that is one byte further has all of that record.
-- `timeline` is null of a replica that receives nothing at the moment.
CREATE FUNCTION engram.node_position(OUT is_replica boolean, OUT timeline bigint, OUT lsn bigint, OUT seen_lsn bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    is_replica := pg_is_in_recovery();
    IF is_replica THEN
        lsn := pg_last_wal_replay_lsn() - '0/0';
        seen_lsn := lsn + (pg_last_wal_receive_lsn() - '0/0' IS DISTINCT FROM lsn)::int;
        timeline := (SELECT r.received_tli FROM pg_stat_wal_receiver r WHERE r.status = 'streaming');
    ELSE
        lsn := pg_current_wal_flush_lsn() - '0/0';
        seen_lsn := lsn;
        timeline := ('x' || lpad(left(pg_walfile_name('0/0'::pg_lsn + lsn), 8), 16, '0'))::bit(64)::bigint;
    END IF;
END $$;
REVOKE ALL ON FUNCTION engram.node_position FROM PUBLIC;
GRANT EXECUTE ON FUNCTION engram.node_position TO engram_tenant;

-- Refuses a list or a search by a map that is older than this shard's: slots may have moved to a shard that it lacks.
CREATE FUNCTION engram.check_epoch(known_epoch bigint) RETURNS void
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM engram.shard_map s WHERE s.tenant = session_user::text AND s.epoch > known_epoch) THEN
        RAISE EXCEPTION 'the map of epoch % is old', known_epoch USING ERRCODE = 'EG001';
    END IF;
END $$;

-- In how many of the calling tenant's memories each lexeme stands. Lexemes are the tenant's own (hashed with its name), so the
-- index gives no foreign rows. Exact below `cap`, which is at least 1,000; from there the planner's estimate, at least `cap`.
CREATE FUNCTION engram.count_lexemes(lexemes text[], cap int, known_epoch bigint) RETURNS TABLE (lexeme text, memories bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    PERFORM engram.check_epoch(known_epoch);
    FOREACH lexeme IN ARRAY lexemes LOOP
        memories := (SELECT count(*) FROM (
            SELECT FROM engram.memories m
            WHERE m.tenant = session_user::text AND m.terms @@ quote_literal(count_lexemes.lexeme)::tsquery
            LIMIT greatest(cap, 1000)) few);
        -- Only who has so many itself is told an estimate, which is over all tenants' rows.
        IF memories = greatest(cap, 1000) THEN
            memories := greatest(memories, (
                SELECT (c.reltuples * v.frequency)::bigint
                FROM pg_catalog.pg_class c, pg_catalog.pg_stats s,
                    unnest(s.most_common_elems::text::text[], s.most_common_elem_freqs) v (element, frequency)
                WHERE c.oid = 'engram.memories'::regclass AND s.schemaname = 'engram' AND s.tablename = 'memories'
                  AND s.attname = 'terms' AND v.element = count_lexemes.lexeme));
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- The calling tenant's memories, newest first. Every argument may be absent. `namespace` to `namespace_end` is the range of
-- a prefix; `filter` is a jsonpath predicate over `filterable` with the variables `vars`, `fields_filter` the part of it that is not
-- about the value: of a sealed memory only that part is judged here, the sidecar judges the rest. `tokens` is a query that the tokens
-- of a sealed memory match if it may meet the filter. The page goes on after (after_created, after_id).
CREATE FUNCTION engram.list_memories(
    user_id text, agent_id text, session_id text, type text, namespace text[], namespace_end text[],
    filter jsonpath, fields_filter jsonpath, vars jsonb, tokens tsquery, after_created timestamptz, after_id uuid, max_rows int, max_bytes bigint, known_epoch bigint
) RETURNS SETOF engram.found
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan SET enable_seqscan = off AS $$
DECLARE
    owned int4multirange := engram.owned_slots();
BEGIN
    PERFORM engram.check_epoch(known_epoch);
    RETURN QUERY
    WITH page AS (
        SELECT m.*, octet_length(m.content) + octet_length(m.value::text) + coalesce(octet_length(m.sealed), 0) AS bytes
        FROM engram.memories m
        WHERE m.tenant = session_user::text
          AND ($1 IS NULL OR m.user_id = $1)
          AND ($2 IS NULL OR m.agent_id = $2)
          AND ($3 IS NULL OR m.session_id = $3)
          AND ($4 IS NULL OR m.type = $4)
          AND ($5 IS NULL OR (m.namespace >= $5 AND m.namespace < $6))
          AND ($11 IS NULL OR (m.created, m.id) < ($11, $12))
          AND (m.expires IS NULL OR m.expires > now())
          AND m.archived IS NULL
          AND CASE WHEN m.slot <@ owned THEN true ELSE false END
          AND ($10 IS NULL OR m.terms @@ $10 OR m.key_version = 0)
          AND ($7 IS NULL OR coalesce(
                  jsonb_path_match(
                      engram.filterable(m.key, m.type, m.user_id, m.agent_id, m.session_id, m.value, m.importance,
                                        m.created, m.updated, m.expires),
                      CASE WHEN m.sealed IS NULL THEN $7 ELSE $8 END, $9, true),
                  m.sealed IS NOT NULL AND $8 IS NULL))
        ORDER BY m.created DESC, m.id DESC
        LIMIT $13
    ), sized AS (
        SELECT p.*, sum(p.bytes) OVER newest AS bytes_so_far, lead(p.id) OVER newest IS NOT NULL AS is_followed
        FROM page p WINDOW newest AS (ORDER BY p.created DESC, p.id DESC)
    )
    SELECT f.slot, f.id, f.namespace, f.key, f.type, f.user_id, f.agent_id, f.session_id, f.content, f.value, f.sealed,
           f.importance, f.created, f.updated, f.expires, f.version, NULL::double precision,
           f.is_followed AND f.bytes_so_far >= $14
    FROM sized f
    WHERE f.bytes_so_far - f.bytes < $14
    ORDER BY f.created DESC, f.id DESC;
END $$;

-- The calling tenant's memories that hold one of the lexemes of `finders`, best first. A memory scores the sum of `weights` of
-- the `scorers` it holds, each times tf / (tf + k1 * (1 - b + b * terms / mean_terms)): BM25 with k1 = 1.2 and b = .75
-- (Robertson and Zaragoza 2009), its tf kept in four classes as the weight label of the lexeme (D 1, C 2, B 3 to 4, A 5 and
-- more), which ts_rank reads in C. ts_rank divides one term's weight by pi^2 / 6. Beyond `max_candidates` only the newest
-- candidates are scored. Filters as in list_memories.
CREATE FUNCTION engram.search_memories(
    finders tsquery, scorers tsquery[], weights double precision[], mean_terms double precision, max_candidates int,
    user_id text, agent_id text, session_id text, type text, namespace text[], namespace_end text[],
    filter jsonpath, fields_filter jsonpath, vars jsonb, tokens tsquery, max_rows int, max_bytes bigint, known_epoch bigint
) RETURNS SETOF engram.found
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET work_mem = '16MB' AS $$
DECLARE
    owned int4multirange := engram.owned_slots();
BEGIN
    PERFORM engram.check_epoch(known_epoch);
    RETURN QUERY
    WITH candidates AS (
        SELECT m.slot, m.id, m.created, m.terms,
               1.2 * (0.25 + 0.75 * m.term_count / greatest($4, 1)) AS damping
        FROM engram.memories m
        WHERE m.tenant = session_user::text
          AND m.terms @@ $1
          AND ($6 IS NULL OR m.user_id = $6)
          AND ($7 IS NULL OR m.agent_id = $7)
          AND ($8 IS NULL OR m.session_id = $8)
          AND ($9 IS NULL OR m.type = $9)
          AND ($10 IS NULL OR (m.namespace >= $10 AND m.namespace < $11))
          AND (m.expires IS NULL OR m.expires > now())
          AND m.archived IS NULL
          AND CASE WHEN m.slot <@ owned THEN true ELSE false END
          AND ($15 IS NULL OR m.terms @@ $15 OR m.key_version = 0)
          AND ($12 IS NULL OR coalesce(
                  jsonb_path_match(
                      engram.filterable(m.key, m.type, m.user_id, m.agent_id, m.session_id, m.value, m.importance,
                                        m.created, m.updated, m.expires),
                      CASE WHEN m.sealed IS NULL THEN $12 ELSE $13 END, $14, true),
                  m.sealed IS NOT NULL AND $13 IS NULL))
        ORDER BY m.created DESC, m.id DESC
        LIMIT $5
    ), best AS (
        SELECT c.slot, c.id, c.created, (
            SELECT sum(s.weight * ts_rank(
                ARRAY[1 / (1 + c.damping), 2 / (2 + c.damping), 3.5 / (3.5 + c.damping), 6 / (6 + c.damping)]::real[],
                c.terms, s.query)) * 1.64493406685
            FROM unnest($2, $3) s (query, weight)) AS score
        FROM candidates c
        ORDER BY score DESC, c.created DESC, c.id DESC
        LIMIT $16
    ), weighed AS (
        SELECT m.*, b.score, octet_length(m.content) + octet_length(m.value::text) + coalesce(octet_length(m.sealed), 0) AS bytes
        FROM best b JOIN engram.memories m ON m.tenant = session_user::text AND m.slot = b.slot AND m.id = b.id
    ), sized AS (
        SELECT w.*, sum(w.bytes) OVER ranked AS bytes_so_far, lead(w.id) OVER ranked IS NOT NULL AS is_followed
        FROM weighed w WINDOW ranked AS (ORDER BY w.score DESC, w.created DESC, w.id DESC)
    )
    SELECT f.slot, f.id, f.namespace, f.key, f.type, f.user_id, f.agent_id, f.session_id, f.content, f.value, f.sealed,
           f.importance, f.created, f.updated, f.expires, f.version, f.score,
           f.is_followed AND f.bytes_so_far >= $17
    FROM sized f
    WHERE f.bytes_so_far - f.bytes < $17
    ORDER BY f.score DESC, f.created DESC, f.id DESC;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA engram FROM PUBLIC;
GRANT EXECUTE ON FUNCTION engram.is_owned, engram.owned_slots, engram.tenant_size, engram.count_lexemes,
    engram.list_memories, engram.search_memories TO engram_tenant;
