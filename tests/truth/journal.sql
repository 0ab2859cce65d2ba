-- What reached the journal, for tests in which events are given up: each row of mfg_notify.event is copied in the same
-- transaction, so that it is known afterwards which transactions of the game lost something. Runs after truth.sql and
-- after the migrations, as a superuser, before the game begins.

CREATE TABLE audit.event (
    id   bigint NOT NULL,
    xid  xid8 NOT NULL,
    gone boolean NOT NULL DEFAULT false  -- thrown away with the journal by somebody else than a trigger
);

CREATE FUNCTION audit.copy_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO audit.event (id, xid) VALUES (NEW.id, NEW.xid);
    RETURN NULL;
END
$$;
CREATE TRIGGER audit_copy AFTER INSERT ON mfg_notify.event FOR EACH ROW EXECUTE FUNCTION audit.copy_event();

-- A journal that is made anew is copied from its first row on.
CREATE FUNCTION audit.copy_new_journal() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity = 'mfg_notify.event') THEN
        CREATE TRIGGER audit_copy AFTER INSERT ON mfg_notify.event FOR EACH ROW EXECUTE FUNCTION audit.copy_event();
    END IF;
END
$$;
CREATE EVENT TRIGGER audit_copy ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
    EXECUTE FUNCTION audit.copy_new_journal();

-- What of a row is watched: another change of it is none.
CREATE FUNCTION audit.watched(source text, image jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_agg(image -> name ORDER BY name) FROM unnest(CASE source
        WHEN 'pipeline' THEN ARRAY['player_id', 'product_good', 'status', 'total_cost', 'total_revenue', 'net_profit',
                                   'started_at', 'completed_at', 'pipeline_type', 'construction_site', 'materials']
        WHEN 'task' THEN ARRAY['player_id', 'task_type', 'status', 'assigned_ship', 'retry_count', 'total_cost',
                               'total_revenue', 'ready_at', 'started_at', 'completed_at', 'actual_quantity']
        ELSE ARRAY['player_id', 'factory_symbol', 'output_good', 'pipeline_id', 'current_supply',
                   'ready_for_collection', 'required_inputs', 'delivered_inputs'] END) AS name
$$;

-- Transactions that must be in the journal and are not there as a whole. Each has lost a statement or more, by a
-- trigger that gave up or, where `gone`, because somebody threw its events away before they were folded.
CREATE VIEW audit.missed AS
SELECT xid, changes.n > coalesce(events.n, 0) AS given_up, coalesce(events.gone, false) AS gone
FROM (SELECT xid, count(*) AS n FROM audit.change
      WHERE CASE op WHEN 'I' THEN true
                    WHEN 'U' THEN audit.watched(source, old) <> audit.watched(source, new)
                    -- The end of a finished row changes no number.
                    ELSE source = 'factory' OR old->>'status' IN ('PLANNING', 'PENDING', 'READY', 'ASSIGNED', 'EXECUTING')
               END
      GROUP BY xid) AS changes
LEFT JOIN (SELECT xid, count(*) AS n, bool_or(gone) AS gone FROM audit.event GROUP BY xid) AS events USING (xid)
WHERE changes.n > coalesce(events.n, 0) OR events.gone;

-- Between which two numbers each settled total must lie: everything of the transactions that lost nothing, and as
-- much as you like of those that did.
CREATE VIEW audit.bound AS
SELECT i.metric, i.labels,
       sum(i.n) FILTER (WHERE missed.xid IS NULL OR i.n < 0)::bigint AS least,
       sum(i.n) FILTER (WHERE missed.xid IS NULL OR i.n > 0)::bigint AS most
FROM audit.increment AS i JOIN audit.change AS c ON c.id = i.change_id LEFT JOIN audit.missed USING (xid)
WHERE NOT starts_with(i.metric, 'manufacturing_task_wait_seconds')
GROUP BY i.metric, i.labels;
