-- The rules of the dedup protocol (base.py), for a wave: entries of a batch in which no record comes
-- twice. Their rows of qworker_dedup_held are locked when this begins (postgres.py: _LOCK), and a
-- record that has no row has got one: of its claim, as if that had been granted already, or else
-- empty (attempts 0). So whatever is read here stays as it is until the transaction ends.
--
-- $1  the entries, 33 bytes each: record 16, token 12, fingerprint 4, kind 1 (packed.py)
-- $2  the owners known to be dead, 8 bytes each
-- $3  claim_ttl    $4  claim_memory    $5  retention: seconds
-- returns hexadecimal: a byte an entry, then the details of those whose byte is 0 (packed.py)
--
-- Answers: 1 fresh, 2 duplicate, 3 busy, 4 conflict, 5 suspect, 6 kept, 7 already done, 8 stale,
-- 10 later; 9 in the reply is a first attempt that is fresh.
WITH clock AS MATERIALIZED (
    SELECT date_part('epoch', clock_timestamp()) AS now
),
entry AS (
    SELECT at,
        substring($1 FROM at FOR 16) AS record,
        substring($1 FROM at + 16 FOR 12) AS token,
        substring($1 FROM at + 28 FOR 4) AS fingerprint,
        chr(get_byte($1, at + 31)) AS kind
    FROM generate_series(1, length($1), 33) AS at
),
looked AS MATERIALIZED (
    SELECT entry.*, now, held.ctid AS place, held.token AS owner, span, memory, attempts, crashes,
        -- As Held.seen in base.py: the clock may have been set back.
        least(deadline, now + span) AS deadline,
        deadline > now + span AS is_far,
        least(deadline, now + span) + memory <= now AS is_forgotten,
        held.token = entry.token AND held.xmin = pg_current_xact_id()::xid AS is_just_claimed,
        -- A record that somebody holds is not done, so what its owner completes is not looked for.
        CASE
            WHEN kind IN ('R', 'F', 'W', 'N') THEN NULL
            WHEN kind IN ('C', 'A') AND held.token = entry.token THEN NULL
            ELSE (
                SELECT done.fingerprint FROM qworker_dedup_done AS done
                WHERE done.record = entry.record
                    AND done.expires > floor(date_part('epoch', now()))::bigint
                LIMIT 1
            )
        END AS done
    FROM entry JOIN qworker_dedup_held AS held ON held.record = entry.record CROSS JOIN clock
),
judged AS MATERIALIZED (
    SELECT *,
        CASE
            WHEN kind IN ('C', 'A') THEN CASE
                WHEN done IS NOT NULL THEN 7
                WHEN owner = token THEN 6
                WHEN kind = 'C' AND (owner IS NULL OR owner = '\x000000000000000000000000') THEN 6
                ELSE 8
            END
            WHEN kind IN ('R', 'F', 'W', 'N') THEN CASE WHEN owner = token THEN 6 ELSE 8 END
            WHEN done IS NOT NULL THEN CASE WHEN done = fingerprint THEN 2 ELSE 4 END
            WHEN is_forgotten OR owner IS NULL OR owner = token THEN 1
            WHEN owner = '\x000000000000000000000000' THEN
                CASE WHEN deadline > now THEN 10 ELSE 1 END
            WHEN deadline > now AND substring(owner FOR 8) <> ALL (
                ARRAY(SELECT substring($2 FROM at FOR 8) FROM generate_series(1, length($2), 8) AS at)
            ) THEN 3
            WHEN kind = 'S' THEN 1
            ELSE 5
        END AS answer
    FROM looked
),
counted AS MATERIALIZED (
    SELECT at, record, token, fingerprint, kind, now, place, owner, answer, deadline, span, memory,
        CASE
            WHEN kind = 'F' AND answer = 6 THEN attempts - 1
            WHEN answer <> 1 THEN attempts
            WHEN is_forgotten THEN 1
            WHEN owner = token THEN attempts
            ELSE attempts + 1
        END AS attempts,
        CASE
            WHEN answer <> 1 THEN crashes
            WHEN is_forgotten THEN 0
            WHEN owner IS NULL OR owner IN (token, '\x000000000000000000000000') THEN crashes
            ELSE crashes + 1
        END AS crashes,
        CASE WHEN kind IN ('C', 'A') THEN answer <> 8 OR attempts = 0
            ELSE attempts = 0 OR done IS NOT NULL OR (kind = 'F' AND answer = 6 AND attempts = 1)
        END AS is_over,
        CASE WHEN kind IN ('K', 'S') THEN (answer = 1 AND is_just_claimed IS NOT TRUE) OR is_far
            ELSE answer = 6
        END AS is_changed,
        CASE WHEN kind = 'W' THEN ('x' || encode(fingerprint, 'hex'))::bit(32)::bigint / 1000.0::float8
        END AS wait
    FROM judged
),
let_go AS (
    DELETE FROM qworker_dedup_held AS held USING counted
    WHERE held.ctid = counted.place AND counted.is_over
),
marked AS (
    INSERT INTO qworker_dedup_done (expires, fingerprint, record)
    SELECT ceil(now + $5)::bigint, fingerprint, record FROM counted
    WHERE kind IN ('C', 'A') AND answer = 6
),
changed AS (
    UPDATE qworker_dedup_held AS held SET
        token = CASE
            WHEN kind IN ('R', 'F') THEN NULL
            WHEN kind = 'W' THEN '\x000000000000000000000000'
            WHEN answer = 1 THEN counted.token
            ELSE owner
        END,
        deadline = CASE
            WHEN kind IN ('R', 'F') THEN now
            WHEN kind = 'W' THEN now + wait
            WHEN kind = 'N' OR answer = 1 THEN now + $3
            ELSE counted.deadline
        END,
        span = CASE
            WHEN kind IN ('R', 'F') THEN 0
            WHEN kind = 'W' THEN wait
            WHEN kind = 'N' OR answer = 1 THEN $3
            ELSE counted.span
        END,
        memory = CASE WHEN answer IN (1, 6) THEN $4 ELSE counted.memory END,
        attempts = counted.attempts,
        crashes = counted.crashes
    FROM counted
    WHERE held.ctid = counted.place AND is_changed AND NOT is_over
),
told AS (
    SELECT at, kind, answer, attempts, crashes,
        CASE
            WHEN answer = 1 AND attempts = 1 AND crashes = 0 THEN 9
            WHEN answer IN (1, 3, 5, 10) THEN 0
            ELSE answer
        END AS code,
        CASE WHEN answer IN (3, 10) THEN ceil((deadline - now) * 1000)::bigint ELSE 0 END AS wait
    FROM counted
)
SELECT encode(coalesce(string_agg(set_byte('\x00', 0, code), '' ORDER BY at), '')
    || coalesce(string_agg(
        set_byte('\x00', 0, answer) || int4send(attempts) || int4send(crashes) || int8send(wait),
        '' ORDER BY at) FILTER (WHERE code = 0), ''), 'hex')
FROM told
