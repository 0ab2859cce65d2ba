-- Plain pg_notify for comparison: a row trigger that notifies in every commit, without a journal.
CREATE FUNCTION notify_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status IS DISTINCT FROM OLD.status THEN
        PERFORM pg_notify('changes', json_build_object(
            'id', NEW.id, 'player_id', NEW.player_id, 'task_type', NEW.task_type, 'old_status', OLD.status,
            'new_status', NEW.status, 'assigned_ship', NEW.assigned_ship)::text);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER notify_change AFTER UPDATE ON manufacturing_tasks FOR EACH ROW EXECUTE FUNCTION notify_change();
