-- What a tenant uses and may use, which sidecars serve it, and what was done: quota, usage, sidecars, audit, idempotency.
--
-- Of these tables only `idempotency` moves with slots: usage is of the rows that lie here, a quota's part belongs to the shard, and
-- the audit trail stays where it was written. Tenants reach them through the functions below alone, each for the calling login.

SET LOCAL client_min_messages = warning;
GRANT SELECT ON engram.identity TO engram_owner;
-- Who may update a table or a view may lock all of it, in any mode (LOCK TABLE), and so keep others waiting.
REVOKE UPDATE ON pg_catalog.pg_settings FROM PUBLIC;
SET LOCAL ROLE engram_owner;

-- The bytes of a memory as quota and usage count them: what the tenant stored, not what the server makes of it, nor the 41 bytes that
-- sealing adds; so a full quota keeps nobody's memories from being sealed.
ALTER TABLE engram.memories ADD COLUMN size_bytes bigint GENERATED ALWAYS AS (
    CASE WHEN sealed IS NULL THEN octet_length(content) + octet_length(value::text) ELSE octet_length(sealed) - 41 END) STORED;
-- Nor may the rest be a way to store without being counted: twice what a sidecar takes. One expression, as each statement reads it anew.
ALTER TABLE engram.memories ADD CONSTRAINT names_are_short CHECK (octet_length(
    concat_ws('', key, type, user_id, agent_id, session_id, array_to_string(namespace, ',', ''))) <= 8192) NOT VALID;
-- Search terms are not counted, so they may be no more than words make of what is: a lexeme takes 17 bytes here, a word two there.
ALTER TABLE engram.memories ADD CONSTRAINT terms_are_short CHECK (octet_length(terms::text) <= 8192 + 32 * size_bytes) NOT VALID;
CREATE INDEX memories_expiring ON engram.memories (tenant, expires) WHERE expires IS NOT NULL;

-- Updates by column, deletes by a function: the right to a whole table is the right to lock it.
REVOKE UPDATE, DELETE ON engram.memories FROM engram_tenant;
GRANT UPDATE (
    namespace, key, type, user_id, agent_id, session_id, content, value, sealed, importance,
    created, updated, expires, archived, version, terms, term_count
) ON engram.memories TO engram_tenant;

-- What the calling tenant may store on this shard: `base` (given by the operator; over all shards it sums up to the quota), more
-- by what it borrowed, less by what it lent. No row: no limit. `total` is the whole quota, for what people are told. `life` tells the
-- tenant from one of the same name that was erased: what was lent to that one is nothing to this one.
CREATE TABLE engram.quota (
    tenant text COLLATE "C" PRIMARY KEY,
    base_memories bigint NOT NULL,
    base_bytes bigint NOT NULL,
    total_memories bigint NOT NULL CHECK (total_memories >= 0),
    total_bytes bigint NOT NULL CHECK (total_bytes >= 0),
    life uuid NOT NULL DEFAULT gen_random_uuid()
);

-- Loans between this shard and `peer` since ever. Totals only grow, and the other side is told the total and not the step: a
-- message that is lost is made good by the next, one that comes twice changes nothing.
CREATE TABLE engram.loans (
    tenant text COLLATE "C" NOT NULL,
    peer text COLLATE "C" NOT NULL,
    lent_memories bigint NOT NULL DEFAULT 0,
    lent_bytes bigint NOT NULL DEFAULT 0,
    borrowed_memories bigint NOT NULL DEFAULT 0,
    borrowed_bytes bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, peer)
);

-- By which shards of one cluster know each other's words: else a tenant could write itself a loan.
CREATE TABLE engram.seal (secret text NOT NULL);

-- What lies here, by type. A writer takes any row of its type that nobody holds, so writers never wait for each other; only the
-- sum over `part` has a meaning. `free_` is what was set aside for who holds the row: it may be added without a look at the rest.
CREATE TABLE engram.usage (
    tenant text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    part bigint NOT NULL,
    memories bigint NOT NULL,
    bytes bigint NOT NULL,
    free_memories bigint NOT NULL DEFAULT 0 CHECK (free_memories >= 0),
    free_bytes bigint NOT NULL DEFAULT 0 CHECK (free_bytes >= 0),
    PRIMARY KEY (tenant, type, part)
) WITH (fillfactor = 50);

-- The sidecars of a tenant and the configuration that each last said it had.
CREATE TABLE engram.sidecars (
    tenant text COLLATE "C" NOT NULL,
    pod text COLLATE "C" NOT NULL CHECK (length(pod) <= 253),
    pod_uid text NOT NULL CHECK (length(pod_uid) <= 64),
    agent text NOT NULL CHECK (length(agent) <= 253),
    epoch bigint NOT NULL,
    policy bigint NOT NULL,
    credentials bigint NOT NULL,
    keys bigint NOT NULL,
    seen timestamptz NOT NULL,
    PRIMARY KEY (tenant, pod)
);

-- Who did what, without contents. `at` is the sidecar's clock, `recorded` this server's: lists go by `at`, retention by `recorded`, so
-- that nobody writes an entry that stays for ever.
CREATE TABLE engram.audit (
    tenant text COLLATE "C" NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    recorded timestamptz NOT NULL DEFAULT clock_timestamp(),
    entry jsonb NOT NULL,
    PRIMARY KEY (tenant, number)
);
CREATE INDEX audit_newest ON engram.audit (tenant, at DESC, number DESC);

-- What the writes to one slot came to that a caller gave an idempotency key, kept beside what they wrote, in its transaction. `key` and
-- `asked` are digests of the key and of the request; `outcomes` has no text of the caller's: of each write to the slot, in order, the
-- status and, if it left a memory, its id, version and creation in us. Null: nothing was done here, nor will it be.
CREATE TABLE engram.idempotency (
    tenant text COLLATE "C" NOT NULL,
    slot int NOT NULL CHECK (slot BETWEEN 0 AND 16383),
    key uuid NOT NULL,
    asked uuid NOT NULL,
    outcomes jsonb,
    expires timestamptz NOT NULL,
    -- As usage counts it, beside the types of memories, which begin with a letter. A row and its index entries take about 272 bytes beside the outcomes.
    type text COLLATE "C" NOT NULL GENERATED ALWAYS AS ('_idempotency') STORED,
    size_bytes bigint NOT NULL GENERATED ALWAYS AS (272 + coalesce(octet_length(outcomes::text), 0)) STORED,
    PRIMARY KEY (tenant, slot, key)
);
CREATE INDEX idempotency_expiring ON engram.idempotency (tenant, expires);
ALTER TABLE engram.idempotency ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON engram.idempotency USING (tenant = current_user::text) WITH CHECK (tenant = current_user::text);

INSERT INTO engram.usage (tenant, type, part, memories, bytes)
SELECT m.tenant, m.type, 0, count(*), sum(m.size_bytes) FROM engram.memories m GROUP BY m.tenant, m.type;

DROP TRIGGER fence ON engram.memories;
DROP FUNCTION engram.check_fence();

CREATE FUNCTION engram.quota_key(tenant text) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN hashtextextended(tenant, 7712);

-- What of a tenant's part is neither used nor set aside, in this statement's snapshot; nulls without a quota. Writers that have not
-- committed change nothing of it: they turn into use what was set aside.
CREATE FUNCTION engram.quota_left(tenant text, OUT memories bigint, OUT bytes bigint)
    LANGUAGE sql VOLATILE STRICT
    BEGIN ATOMIC
        SELECT (q.base_memories + loan.memories - used.memories)::bigint, (q.base_bytes + loan.bytes - used.bytes)::bigint
        FROM engram.quota q,
            LATERAL (SELECT coalesce(sum(l.borrowed_memories - l.lent_memories), 0) AS memories,
                            coalesce(sum(l.borrowed_bytes - l.lent_bytes), 0) AS bytes
                     FROM engram.loans l WHERE l.tenant = q.tenant) loan,
            LATERAL (SELECT coalesce(sum(u.memories + u.free_memories), 0) AS memories,
                            coalesce(sum(u.bytes + u.free_bytes), 0) AS bytes
                     FROM engram.usage u WHERE u.tenant = q.tenant) used
        WHERE q.tenant = quota_left.tenant;
    END;

-- Frees up to `max_rows` expired memories of a tenant and answers how many; those that somebody holds are left.
CREATE FUNCTION engram.sweep_expired(tenant text, max_rows int) RETURNS bigint
    LANGUAGE sql VOLATILE STRICT
    BEGIN ATOMIC
        WITH dead AS (
            SELECT m.slot, m.id FROM engram.memories m
            WHERE m.tenant = sweep_expired.tenant AND m.expires <= now() AND engram.is_owned(m.tenant, m.slot)
            ORDER BY m.expires LIMIT sweep_expired.max_rows FOR UPDATE SKIP LOCKED
        ), swept AS (
            DELETE FROM engram.memories m USING dead
            WHERE m.tenant = sweep_expired.tenant AND m.slot = dead.slot AND m.id = dead.id RETURNING 1
        )
        SELECT count(*) FROM swept;
    END;

-- Frees up to `max_rows` expired idempotency keys of a tenant and answers how many; those that somebody holds are left.
CREATE FUNCTION engram.sweep_keys(tenant text, max_rows int) RETURNS bigint
    LANGUAGE sql VOLATILE STRICT
    BEGIN ATOMIC
        WITH dead AS (
            SELECT i.slot, i.key FROM engram.idempotency i
            WHERE i.tenant = sweep_keys.tenant AND i.expires <= now() AND engram.is_owned(i.tenant, i.slot)
            ORDER BY i.expires LIMIT sweep_keys.max_rows FOR UPDATE SKIP LOCKED
        ), swept AS (
            DELETE FROM engram.idempotency i USING dead
            WHERE i.tenant = sweep_keys.tenant AND i.slot = dead.slot AND i.key = dead.key RETURNING 1
        )
        SELECT count(*) FROM swept;
    END;

-- Takes the tenant's turn, to the end of the transaction, and tells what may be added then; nulls without a quota. Only the
-- statement *after* the one that waited counts, with a snapshot taken after the turn was had. If so much is not there, what is set
-- aside is called back: first where nobody holds the row, last by waiting for who does.
CREATE FUNCTION engram.make_room(tenant text, more_memories bigint, more_bytes bigint, OUT memories bigint, OUT bytes bigint)
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'a quota needs READ COMMITTED: another isolation level would count what was there before the turn'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    PERFORM pg_advisory_xact_lock(engram.quota_key(make_room.tenant));
    FOR attempt IN 1..4 LOOP
        SELECT l.memories, l.bytes INTO make_room.memories, make_room.bytes FROM engram.quota_left(make_room.tenant) l;
        -- What does not grow in a measure is never short of it: over the limit an update still goes.
        EXIT WHEN memories IS NULL
            OR (more_memories <= greatest(memories, 0) AND more_bytes <= greatest(bytes, 0));
        CASE attempt
            WHEN 1 THEN
                UPDATE engram.usage u SET free_memories = 0, free_bytes = 0 FROM (
                    SELECT i.type, i.part FROM engram.usage i
                    WHERE i.tenant = make_room.tenant AND (i.free_memories > 0 OR i.free_bytes > 0)
                    FOR UPDATE SKIP LOCKED) idle
                WHERE u.tenant = make_room.tenant AND u.type = idle.type AND u.part = idle.part;
            WHEN 2 THEN
                PERFORM engram.sweep_expired(make_room.tenant, 1000), engram.sweep_keys(make_room.tenant, 1000);
            WHEN 3 THEN
                UPDATE engram.usage u SET free_memories = 0, free_bytes = 0
                WHERE u.tenant = make_room.tenant AND (u.free_memories > 0 OR u.free_bytes > 0);
            ELSE
        END CASE;
    END LOOP;
END $$;

-- Takes the tenant's turn and refuses what is beyond the quota; answers what is left after it.
CREATE FUNCTION engram.take_room(tenant text, more_memories bigint, more_bytes bigint, OUT memories bigint, OUT bytes bigint)
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    quota engram.quota;
    short_memories bigint;
    short_bytes bigint;
BEGIN
    SELECT r.memories - more_memories, r.bytes - more_bytes INTO take_room.memories, take_room.bytes
    FROM engram.make_room(take_room.tenant, more_memories, more_bytes) r;
    short_memories := CASE WHEN more_memories > 0 THEN greatest(-memories, 0) ELSE 0 END;
    short_bytes := CASE WHEN more_bytes > 0 THEN greatest(-bytes, 0) ELSE 0 END;
    IF short_memories > 0 OR short_bytes > 0 THEN
        SELECT * INTO quota FROM engram.quota q WHERE q.tenant = take_room.tenant;
        RAISE EXCEPTION 'the quota of % is full', CASE WHEN short_memories > 0
            THEN quota.total_memories || ' memories' ELSE quota.total_bytes || ' bytes' END
            USING ERRCODE = 'EG002', DETAIL = jsonb_build_object(
                'what', CASE WHEN short_memories > 0 THEN 'memories' ELSE 'bytes' END,
                'limit', CASE WHEN short_memories > 0 THEN quota.total_memories ELSE quota.total_bytes END,
                'short_memories', short_memories, 'short_bytes', short_bytes, 'life', quota.life);
    END IF;
END $$;

-- Counts what has room, and sets more aside for the next writers.
CREATE FUNCTION engram.add_usage(
    tenant text, type text, more_memories bigint, more_bytes bigint, free_memories bigint, free_bytes bigint
) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    UPDATE engram.usage u SET
        memories = u.memories + more_memories, bytes = u.bytes + more_bytes,
        free_memories = u.free_memories + add_usage.free_memories, free_bytes = u.free_bytes + add_usage.free_bytes
    WHERE u.tenant = add_usage.tenant AND u.type = add_usage.type AND u.part = (
        SELECT i.part FROM engram.usage i WHERE i.tenant = add_usage.tenant AND i.type = add_usage.type
        LIMIT 1 FOR UPDATE SKIP LOCKED);
    IF NOT FOUND THEN
        INSERT INTO engram.usage VALUES (
            add_usage.tenant, add_usage.type, pg_current_xact_id()::text::bigint,
            more_memories, more_bytes, add_usage.free_memories, add_usage.free_bytes);
    END IF;
END $$;

-- Counts a change of one type by what is set aside in a row that nobody holds; false if there is no such row.
CREATE FUNCTION engram.take_free(tenant text, type text, more_memories bigint, more_bytes bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    UPDATE engram.usage u SET
        memories = u.memories + more_memories, bytes = u.bytes + more_bytes,
        free_memories = u.free_memories - greatest(more_memories, 0), free_bytes = u.free_bytes - greatest(more_bytes, 0)
    WHERE u.tenant = take_free.tenant AND u.type = take_free.type AND u.part = (
        SELECT i.part FROM engram.usage i
        WHERE i.tenant = take_free.tenant AND i.type = take_free.type
          AND i.free_memories >= more_memories AND i.free_bytes >= more_bytes
        LIMIT 1 FOR UPDATE SKIP LOCKED);
    RETURN FOUND;
END $$;

-- How much of what is left is set aside for the next writers; where there is no quota so much that nobody asks again.
CREATE FUNCTION engram.set_aside(amount_left bigint, plenty bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN amount_left IS NULL THEN plenty ELSE greatest(amount_left / 32, 0) END;

-- Counts a change of one type for which no row had enough set aside, or refuses it.
CREATE FUNCTION engram.count_change(tenant text, type text, more_memories bigint, more_bytes bigint) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    room record;
BEGIN
    IF more_memories <= 0 AND more_bytes <= 0 THEN
        PERFORM engram.add_usage(tenant, type, more_memories, more_bytes, 0, 0);
        RETURN;
    END IF;
    SELECT * INTO room FROM engram.take_room(tenant, more_memories, more_bytes);
    PERFORM engram.add_usage(
        tenant, type, more_memories, more_bytes,
        engram.set_aside(room.memories, 1::bigint << 40), engram.set_aside(room.bytes, 1::bigint << 50));
END $$;

-- What a statement changed of one type; `slots` of each memory, before and after.
CREATE TYPE engram.change AS (tenant text, type text, slots int[], memories bigint, bytes bigint);

-- Counts a statement that changed memories of several types, of which some may have shrunk: the sum has to have room. Who does not
-- find enough set aside for each of them lets go of those it found before it takes the tenant's turn: else two wait for each other.
CREATE FUNCTION engram.count_changes(changes engram.change[]) RETURNS void
    LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    net record;
    room record;
BEGIN
    BEGIN
        PERFORM FROM unnest(changes) c WHERE NOT engram.take_free(c.tenant, c.type, c.memories, c.bytes);
        IF NOT FOUND THEN
            RETURN;
        END IF;
        RAISE EXCEPTION 'not enough set aside' USING ERRCODE = 'EG003';
    EXCEPTION WHEN SQLSTATE 'EG003' THEN
        NULL;
    END;
    FOR net IN
        SELECT c.tenant, sum(c.memories)::bigint AS memories, sum(c.bytes)::bigint AS bytes, count(*) AS types
        FROM unnest(changes) c GROUP BY c.tenant
    LOOP
        SELECT 0::bigint AS memories, 0::bigint AS bytes INTO room;
        IF net.memories > 0 OR net.bytes > 0 THEN
            SELECT r.memories, r.bytes INTO room FROM engram.take_room(net.tenant, net.memories, net.bytes) r;
        END IF;
        PERFORM engram.add_usage(
            c.tenant, c.type, c.memories, c.bytes,
            engram.set_aside(room.memories, 1::bigint << 40) / net.types, engram.set_aside(room.bytes, 1::bigint << 50) / net.types)
        FROM unnest(changes) c WHERE c.tenant = net.tenant;
    END LOOP;
END $$;

-- The fence and the quota, once for each statement and after it, so that a batch pays once: nobody sees what it wrote before its
-- transaction commits. Replication's apply does not fire this: what moves is counted anew.
--
-- The fence: first the tenant's lock, shared; only the *next* statement looks at the ownership, with a snapshot taken after the lock
-- was had. Looking in the writing statement, or in the one that locks, lets writes land after the fence.
--
-- The quota: most find enough set aside in a row of their type that nobody holds. Who does not takes the tenant's turn and sets aside
-- a part of what is left (count_change). So writers seldom wait for each other, and two never both take the last place.
CREATE FUNCTION engram.check_write() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    changes engram.change[];
    change engram.change;
    moved int;
    weight int := (TG_TABLE_NAME = 'memories')::int;  -- what else moves takes room, and is no memory
BEGIN
    IF TG_OP = 'INSERT' THEN
        changes := ARRAY(
            SELECT ROW(n.tenant, n.type, array_agg(n.slot), weight * count(*), sum(n.size_bytes))::engram.change
            FROM made n GROUP BY n.tenant, n.type);
    ELSIF TG_OP = 'DELETE' THEN
        changes := ARRAY(
            SELECT ROW(o.tenant, o.type, array_agg(o.slot), -weight * count(*), -sum(o.size_bytes))::engram.change
            FROM gone o GROUP BY o.tenant, o.type);
    ELSE
        changes := ARRAY(
            SELECT ROW(c.tenant, c.type, array_agg(c.slot), sum(c.memories), sum(c.bytes))::engram.change FROM (
                SELECT n.tenant, n.type, n.slot, weight AS memories, n.size_bytes AS bytes FROM made n
                UNION ALL SELECT o.tenant, o.type, o.slot, -weight, -o.size_bytes FROM gone o) c
            GROUP BY c.tenant, c.type);
    END IF;
    IF cardinality(changes) = 0 THEN
        RETURN NULL;
    ELSIF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'writes need READ COMMITTED: another isolation level would not see the fence'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    FOREACH change IN ARRAY changes LOOP
        PERFORM pg_advisory_xact_lock_shared(engram.fence_key(change.tenant));
        SELECT s.slot INTO moved FROM unnest(change.slots) s (slot) WHERE NOT EXISTS (
            SELECT FROM engram.ownership o
            WHERE o.tenant = change.tenant AND s.slot BETWEEN o.first_slot AND o.last_slot) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'slot % is not owned by this shard', moved USING ERRCODE = 'EG001';
        END IF;
    END LOOP;
    IF cardinality(changes) > 1 THEN
        PERFORM engram.count_changes(changes);
    ELSIF (change.memories <> 0 OR change.bytes <> 0)
        AND NOT engram.take_free(change.tenant, change.type, change.memories, change.bytes)
    THEN
        PERFORM engram.count_change(change.tenant, change.type, change.memories, change.bytes);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION engram.refuse_place() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.tenant, OLD.slot, OLD.id) IS DISTINCT FROM (NEW.tenant, NEW.slot, NEW.id) THEN
        RAISE EXCEPTION 'tenant, slot and id are fixed at creation' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER place BEFORE UPDATE OF tenant, slot, id ON engram.memories
    FOR EACH ROW EXECUTE FUNCTION engram.refuse_place();
CREATE TRIGGER made AFTER INSERT ON engram.memories
    REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION engram.check_write();
CREATE TRIGGER changed AFTER UPDATE ON engram.memories
    REFERENCING OLD TABLE AS gone NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION engram.check_write();
CREATE TRIGGER gone AFTER DELETE ON engram.memories
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION engram.check_write();

CREATE TRIGGER made AFTER INSERT ON engram.idempotency
    REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION engram.check_write();
CREATE TRIGGER changed AFTER UPDATE ON engram.idempotency
    REFERENCING OLD TABLE AS gone NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION engram.check_write();
CREATE TRIGGER gone AFTER DELETE ON engram.idempotency
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION engram.check_write();

-- The turn of who asks under an idempotency key, to the end of its transaction, and what was done under the key in these slots. A row
-- of nulls: somebody else has the turn, for longer than a write takes. Only the statement *after* the one that waits looks, with a
-- snapshot taken after the turn was had.
CREATE FUNCTION engram.claim_key(key uuid, slots int[]) RETURNS TABLE (slot int, asked uuid, outcomes jsonb)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
#variable_conflict use_column
DECLARE
    moved int;
BEGIN
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended(session_user || '|' || claim_key.key, 7714));
    EXCEPTION WHEN lock_not_available THEN
        RETURN QUERY SELECT NULL::int, NULL::uuid, NULL::jsonb;
        RETURN;
    END;
    SELECT s.slot INTO moved FROM unnest(slots) s (slot) WHERE NOT engram.is_owned(session_user::text, s.slot) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'slot % is not owned by this shard', moved USING ERRCODE = 'EG001';
    END IF;
    RETURN QUERY SELECT i.slot, i.asked, i.outcomes FROM engram.idempotency i
    WHERE i.tenant = session_user::text AND i.slot = ANY (slots) AND i.key = claim_key.key AND i.expires > now();
END $$;

-- Keeps for 24 hours what was done under a key, by slot, for who has its turn. Each that is kept frees two expired ones, so there are
-- never more than are made in a day, whether or not anybody sweeps.
CREATE FUNCTION engram.keep_outcomes(key uuid, asked uuid, slots int[], outcomes text[]) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    kept int;
BEGIN
    INSERT INTO engram.idempotency AS i (tenant, slot, key, asked, outcomes, expires)
    SELECT session_user::text, k.slot, keep_outcomes.key, keep_outcomes.asked, k.outcomes::jsonb, now() + interval '24 hours'
    FROM unnest(keep_outcomes.slots, keep_outcomes.outcomes) k (slot, outcomes)
    ON CONFLICT ON CONSTRAINT idempotency_pkey DO UPDATE SET
        asked = excluded.asked, outcomes = excluded.outcomes, expires = excluded.expires
    WHERE i.expires <= now();
    GET DIAGNOSTICS kept = ROW_COUNT;
    IF kept < cardinality(slots) THEN
        RAISE EXCEPTION 'something was done under this key' USING ERRCODE = 'unique_violation';
    END IF;
    PERFORM engram.sweep_keys(session_user::text, 2 * kept);
END $$;

-- True if a memory's tag is one of the accepted ones (null: any) and none of the refused: `version-created`, created in us since 1970.
CREATE FUNCTION engram.is_accepted(version bigint, created timestamptz, accepted text[], refused text[]) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (accepted IS NULL OR version || '-' || (extract(epoch FROM created) * 1000000)::bigint = ANY (accepted))
        AND version || '-' || (extract(epoch FROM created) * 1000000)::bigint <> ALL (refused);

-- Removes one live memory of the calling tenant if its tag is accepted; answers its version. A function, because who may delete
-- from a table may also lock all of it (LOCK TABLE), and other tenants' rows are in it.
CREATE FUNCTION engram.delete_memory(slot int, id uuid, accepted text[], refused text[]) RETURNS SETOF bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY DELETE FROM engram.memories m
    WHERE m.tenant = session_user::text AND m.slot = $1 AND m.id = $2 AND (m.expires IS NULL OR m.expires > now())
      AND engram.is_accepted(m.version, m.created, accepted, refused)
    RETURNING m.version;
END $$;

-- True if the caller may bring the calling tenant's memories into another form (sealed under another key, or opened) until its
-- transaction ends: one at a time does.
CREATE FUNCTION engram.try_reseal() RETURNS boolean
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        SELECT pg_try_advisory_xact_lock(hashtextextended(session_user::text, 7713));
    END;

-- Removes the rows of types of which nothing is left; what somebody holds stays for the next time. Whatever subset it is, their sum
-- goes on to be counted.
CREATE FUNCTION engram.tidy_usage(tenant text) RETURNS void
    LANGUAGE sql VOLATILE STRICT
    BEGIN ATOMIC
        WITH unused AS (
            SELECT u.type, u.part FROM engram.usage u
            WHERE u.tenant = tidy_usage.tenant AND u.type IN (
                SELECT t.type FROM engram.usage t WHERE t.tenant = tidy_usage.tenant
                GROUP BY t.type HAVING sum(t.memories) = 0 AND sum(t.bytes) = 0)
            FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM engram.usage u USING unused o
            WHERE u.tenant = tidy_usage.tenant AND u.type = o.type AND u.part = o.part
            RETURNING u.type, u.memories, u.bytes
        )
        INSERT INTO engram.usage (tenant, type, part, memories, bytes)
        SELECT tidy_usage.tenant, g.type, pg_current_xact_id()::text::bigint, sum(g.memories), sum(g.bytes) FROM gone g
        GROUP BY g.type HAVING sum(g.memories) <> 0 OR sum(g.bytes) <> 0;
    END;

-- What the calling tenant has here, by type; expired memories count until they are swept.
CREATE FUNCTION engram.tenant_usage() RETURNS TABLE (type text, memories bigint, bytes bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        SELECT u.type, sum(u.memories)::bigint, sum(u.bytes)::bigint FROM engram.usage u
        WHERE u.tenant = session_user::text GROUP BY u.type HAVING sum(u.memories) <> 0 OR sum(u.bytes) <> 0 ORDER BY u.type;
    END;

CREATE FUNCTION engram.signed(word text) RETURNS text
    LANGUAGE sql STABLE STRICT
    BEGIN ATOMIC
        SELECT encode(sha256(convert_to(s.secret || '|' || signed.word || '|' || s.secret, 'UTF8')), 'hex') FROM engram.seal s;
    END;

-- Lends another shard up to so much of what is free here, for one more total; nulls if nothing is free.
CREATE FUNCTION engram.give_loan(tenant text, to_shard text, memories bigint, bytes bigint,
                                 OUT total_memories bigint, OUT total_bytes bigint)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    room record;
BEGIN
    SELECT * INTO room FROM engram.make_room(give_loan.tenant, memories, bytes);
    memories := greatest(least(memories, room.memories), 0);
    bytes := greatest(least(bytes, room.bytes), 0);
    IF room.memories IS NULL OR memories + bytes = 0 THEN
        RETURN;
    END IF;
    INSERT INTO engram.loans AS l (tenant, peer, lent_memories, lent_bytes)
    VALUES (give_loan.tenant, to_shard, give_loan.memories, give_loan.bytes)
    ON CONFLICT ON CONSTRAINT loans_pkey DO UPDATE SET
        lent_memories = l.lent_memories + excluded.lent_memories, lent_bytes = l.lent_bytes + excluded.lent_bytes
    RETURNING l.lent_memories, l.lent_bytes INTO total_memories, total_bytes;
END $$;

-- Lends the calling tenant's other shard what it asks for, or half of what is free here if that is more: so a shard borrows a few
-- times and not with every batch. Answers whether anything was.
CREATE FUNCTION engram.lend_quota(to_shard text, memories bigint, bytes bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    loan record;
    room record;
BEGIN
    IF (to_shard <> (SELECT i.shard FROM engram.identity i) AND memories >= 0 AND bytes >= 0) IS NOT TRUE THEN
        RAISE EXCEPTION 'no such loan' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Without a seal nobody would believe us; who is no shard of the tenant's could never give it back.
    IF NOT EXISTS (SELECT FROM engram.seal) OR NOT EXISTS (
        SELECT FROM engram.shard_map s, jsonb_array_elements(s.map -> 'shards') e
        WHERE s.tenant = session_user::text AND e ->> 'id' = to_shard)
    THEN
        RETURN false;
    END IF;
    SELECT * INTO room FROM engram.quota_left(session_user::text);
    loan := engram.give_loan(
        session_user::text, to_shard, greatest(memories, room.memories / 2), greatest(bytes, room.bytes / 2));
    RETURN loan.total_memories IS NOT NULL;
END $$;

-- A token for what was lent to another shard of the calling tenant since ever, and to the tenant's life there; null if nothing was.
-- Only of what is committed, and in a transaction that has written nothing: else who rolls back after it would have made a loan of
-- nothing.
CREATE FUNCTION engram.loan_token(to_shard text, to_life uuid) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    word text;
BEGIN
    IF pg_current_xact_id_if_assigned() IS NOT NULL OR to_life IS NULL THEN
        RAISE EXCEPTION 'no such loan' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    word := (
        SELECT concat_ws('|', session_user, i.shard, l.peer, to_life, l.lent_memories, l.lent_bytes)
        FROM engram.identity i, engram.loans l WHERE l.tenant = session_user::text AND l.peer = to_shard);
    RETURN word || '|' || engram.signed(word);
END $$;

-- Takes what another shard of the calling tenant lent by this token, and answers how much of it is new here.
CREATE FUNCTION engram.borrow_quota(token text, OUT memories bigint, OUT bytes bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parts text[] := string_to_array(token, '|');
    word text := array_to_string(parts[1:6], '|');
BEGIN
    IF (cardinality(parts) = 7 AND parts[7] = engram.signed(word)
        AND parts[1] = session_user::text AND parts[3] = (SELECT i.shard FROM engram.identity i)
        AND parts[4] = (SELECT q.life::text FROM engram.quota q WHERE q.tenant = session_user::text)) IS NOT TRUE
    THEN
        RAISE EXCEPTION 'no such loan' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(engram.quota_key(session_user::text));
    SELECT taken.memories, taken.bytes INTO borrow_quota.memories, borrow_quota.bytes
    FROM engram.take_loan(session_user::text, parts[2], parts[5]::bigint, parts[6]::bigint) taken;
END $$;

-- The totals that `peer` has lent this shard are at least these; answers how much of them is new.
CREATE FUNCTION engram.take_loan(tenant text, peer text, total_memories bigint, total_bytes bigint,
                                 OUT memories bigint, OUT bytes bigint)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before engram.loans;
BEGIN
    INSERT INTO engram.loans (tenant, peer) VALUES (take_loan.tenant, take_loan.peer) ON CONFLICT DO NOTHING;
    SELECT * INTO before FROM engram.loans l WHERE l.tenant = take_loan.tenant AND l.peer = take_loan.peer FOR UPDATE;
    memories := greatest(total_memories - before.borrowed_memories, 0);
    bytes := greatest(total_bytes - before.borrowed_bytes, 0);
    UPDATE engram.loans l SET borrowed_memories = l.borrowed_memories + take_loan.memories,
                              borrowed_bytes = l.borrowed_bytes + take_loan.bytes
    WHERE l.tenant = take_loan.tenant AND l.peer = take_loan.peer;
END $$;

-- A sidecar of the calling tenant says what it has. Forgotten is who was silent for an hour and, beyond 10000, who said so least
-- lately: whoever makes up sidecars with the tenant's password keeps none that is there from telling.
CREATE FUNCTION engram.report_sidecar(
    pod text, pod_uid text, agent text, epoch bigint, policy bigint, credentials bigint, keys bigint
) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    oldest timestamptz := now() - interval '1 hour';
BEGIN
    IF least(epoch, policy, credentials, keys) < 0 THEN
        RAISE EXCEPTION 'a generation is not negative' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO engram.sidecars VALUES (session_user, $1, $2, $3, $4, $5, $6, $7, now())
    ON CONFLICT ON CONSTRAINT sidecars_pkey DO UPDATE SET
        pod_uid = excluded.pod_uid, agent = excluded.agent, epoch = excluded.epoch, policy = excluded.policy,
        credentials = excluded.credentials, keys = excluded.keys, seen = excluded.seen;
    IF (SELECT count(*) FROM engram.sidecars s WHERE s.tenant = session_user::text) > 10000 THEN
        oldest := (SELECT s.seen FROM engram.sidecars s WHERE s.tenant = session_user::text
            ORDER BY s.seen DESC OFFSET 9999 LIMIT 1);
    END IF;
    -- Two that tell at once forget the same ones: neither waits for the other.
    DELETE FROM engram.sidecars s WHERE s.tenant = session_user::text AND s.pod IN (
        SELECT o.pod FROM engram.sidecars o WHERE o.tenant = session_user::text AND o.seen < oldest FOR UPDATE SKIP LOCKED);
END $$;

-- Adds an array of entries of the calling tenant to the audit trail. `at` of each is RFC 3339. A clock that is more than a day ahead of
-- this server's, or from before 2000, is wrong: the entry is kept with the nearest time that may be right.
CREATE FUNCTION engram.record_audit(entries jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF jsonb_array_length(entries) > 10000 OR EXISTS (
        SELECT FROM jsonb_array_elements(entries) e WHERE jsonb_typeof(e) <> 'object' OR octet_length(e::text) > 16384)
    THEN
        RAISE EXCEPTION 'at most 10000 entries of 16384 bytes' USING ERRCODE = 'program_limit_exceeded';
    END IF;
    INSERT INTO engram.audit (tenant, at, entry)
    SELECT session_user::text,
           CASE WHEN told.at IS NOT NULL THEN least(greatest(told.at, '2000-01-01 UTC'), now() + interval '1 day') END,
           e - 'at'
    FROM jsonb_array_elements(entries) WITH ORDINALITY a (e, place),
        LATERAL (SELECT (e ->> 'at')::timestamptz AS at) told
    ORDER BY place;
END $$;

-- The calling tenant's newest entries, below a place if one is given.
CREATE FUNCTION engram.list_audit(max_rows int, before_at timestamptz, before_number bigint)
    RETURNS TABLE (number bigint, at timestamptz, recorded timestamptz, entry jsonb)
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT a.number, a.at, a.recorded, a.entry FROM engram.audit a
    WHERE a.tenant = session_user::text AND ($2 IS NULL OR (a.at, a.number) < ($2, $3))
    ORDER BY a.at DESC, a.number DESC LIMIT $1;
END $$;

REVOKE ALL ON FUNCTION engram.quota_key, engram.quota_left, engram.sweep_expired, engram.sweep_keys, engram.tidy_usage, engram.make_room, engram.take_room, engram.add_usage,
    engram.set_aside, engram.take_free, engram.count_change, engram.count_changes, engram.check_write, engram.refuse_place,
    engram.claim_key, engram.keep_outcomes, engram.is_accepted, engram.delete_memory, engram.try_reseal, engram.tenant_usage, engram.signed, engram.give_loan, engram.lend_quota, engram.loan_token, engram.borrow_quota, engram.take_loan,
    engram.report_sidecar, engram.record_audit, engram.list_audit FROM PUBLIC;
GRANT EXECUTE ON FUNCTION engram.claim_key, engram.keep_outcomes, engram.is_accepted, engram.delete_memory, engram.try_reseal, engram.tenant_usage, engram.lend_quota, engram.loan_token, engram.borrow_quota, engram.report_sidecar,
    engram.record_audit, engram.list_audit TO engram_tenant;
