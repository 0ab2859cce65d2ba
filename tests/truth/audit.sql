-- The audit: what the game did to its three manufacturing tables, written by the game's own transactions.
--
-- Row-level triggers on purpose: the exporter's are statement-level with transition tables, so a mistake
-- in either way of seeing a change shows as a difference. Running this file again starts from nothing.

DROP SCHEMA IF EXISTS audit CASCADE;
CREATE SCHEMA audit;

CREATE TABLE audit.change (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid    xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text NOT NULL CHECK (source IN ('pipeline', 'task', 'factory')),
    op     text NOT NULL CHECK (op IN ('I', 'U', 'D')),
    old    jsonb,
    new    jsonb,
    is_current boolean  -- factory rows only: the newest live row of its factory when it changed?
);

-- The id of the current row of a factory: the highest whose pipeline is PLANNING or EXECUTING, or null.
-- Volatile (the default), so that it sees what the statement that fired the trigger has written.
-- OFFSET 0 keeps the walk on the live pipelines (the rows of finished ones would grow without bound) and the
-- player out of the choice of index: without statistics, the index on player_id looks as good as the unique one.
CREATE FUNCTION audit.speaking_row(player integer, symbol text, good text) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp
AS $$
    SELECT max(candidate.id)
    FROM (
        SELECT f.id, f.player_id
        FROM (SELECT p.id FROM public.manufacturing_pipelines AS p
              WHERE p.status IN ('PLANNING', 'EXECUTING') OFFSET 0) AS live
        CROSS JOIN LATERAL (
            SELECT f.id, f.player_id FROM public.manufacturing_factory_states AS f
            WHERE f.factory_symbol = symbol AND f.output_good = good AND f.pipeline_id = live.id
            OFFSET 0) AS f
        UNION ALL
        (SELECT f.id, f.player_id FROM public.manufacturing_factory_states AS f
         WHERE f.factory_symbol = symbol AND f.output_good = good AND f.pipeline_id IS NULL
         OFFSET 0)
    ) AS candidate
    WHERE candidate.player_id = player
$$;

-- Images are read as jsonb, never as OLD.column: PL/pgSQL keeps the type of such a column, and the game's
-- own ALTER TABLE would then make its next write in the same session fail.
CREATE FUNCTION audit.record_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    was    jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    became jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
    is_current boolean;
BEGIN
    -- The game saves every column of a row, mostly unchanged.
    IF was = became THEN
        RETURN NULL;
    END IF;
    IF TG_ARGV[0] = 'factory' AND became IS NOT NULL THEN
        -- A row AFTER trigger fires when its statement is complete: the tables are as the statement left them.
        is_current := coalesce((became->>'id')::bigint = audit.speaking_row(
            (became->>'player_id')::integer, became->>'factory_symbol', became->>'output_good'), false);
    END IF;
    INSERT INTO audit.change (source, op, old, new, is_current)
    VALUES (TG_ARGV[0], left(TG_OP, 1), was, became, is_current);
    RETURN NULL;
END
$$;

CREATE TRIGGER audit_change AFTER INSERT OR UPDATE OR DELETE ON public.manufacturing_pipelines
    FOR EACH ROW EXECUTE FUNCTION audit.record_change('pipeline');
CREATE TRIGGER audit_change AFTER INSERT OR UPDATE OR DELETE ON public.manufacturing_tasks
    FOR EACH ROW EXECUTE FUNCTION audit.record_change('task');
CREATE TRIGGER audit_change AFTER INSERT OR UPDATE OR DELETE ON public.manufacturing_factory_states
    FOR EACH ROW EXECUTE FUNCTION audit.record_change('factory');

-- Also under session_replication_role = replica.
ALTER TABLE public.manufacturing_pipelines ENABLE ALWAYS TRIGGER audit_change;
ALTER TABLE public.manufacturing_tasks ENABLE ALWAYS TRIGGER audit_change;
ALTER TABLE public.manufacturing_factory_states ENABLE ALWAYS TRIGGER audit_change;
