-- function tiered_sessions_nonce
CREATE OR REPLACE FUNCTION tiered_sessions_nonce() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT ('x' || substr(md5(random()::text || clock_timestamp()::text || random()::text),
    1, 16))::bit(64)::bigint
    & 9223372036854775807
$$
-- function tiered_sessions_record
CREATE OR REPLACE FUNCTION tiered_sessions_record(
  scope text, app text, usr text, ses text, i bigint, r bigint, n bigint, changed timestamp
) RETURNS void LANGUAGE sql VOLATILE SET search_path FROM CURRENT AS $$
  INSERT INTO cache_outbox (kind, app_name, user_id, session_id,
      incarnation, revision, nonce, update_time, stamp)
  VALUES (scope, app, usr, ses, i, r, n, round(extract(epoch FROM changed) * 1000000)::bigint,
    tiered_sessions_nonce())
  ON CONFLICT (kind, app_name, user_id, session_id) DO UPDATE SET incarnation = EXCLUDED.incarnation,
    revision = EXCLUDED.revision, nonce = EXCLUDED.nonce, update_time = EXCLUDED.update_time,
    stamp = EXCLUDED.stamp
$$
-- function tiered_sessions_event_insert
CREATE OR REPLACE FUNCTION tiered_sessions_event_insert() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  s record;
BEGIN
  UPDATE sessions SET revision = revision + 1, nonce = tiered_sessions_nonce()
    WHERE app_name = NEW.app_name AND user_id = NEW.user_id AND id = NEW.session_id AND nonce IS NOT NULL
    RETURNING * INTO s;
  IF FOUND THEN
    -- Behind an event that waits for its number this one waits too, or the order would turn.
    IF NOT EXISTS (SELECT 1 FROM events WHERE app_name = NEW.app_name AND user_id = NEW.user_id
        AND session_id = NEW.session_id AND seq IS NULL) THEN
      NEW.seq := s.revision;
    END IF;
    PERFORM tiered_sessions_record('session', s.app_name, s.user_id, s.id,
      s.incarnation, s.revision, s.nonce, s.update_time);
  END IF;
  RETURN NEW;
END
$$
-- function tiered_sessions_session_update
CREATE OR REPLACE FUNCTION tiered_sessions_session_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  NEW.revision := OLD.revision + 1;
  NEW.nonce := tiered_sessions_nonce();
  PERFORM tiered_sessions_record('session', NEW.app_name, NEW.user_id, NEW.id,
    NEW.incarnation, NEW.revision, NEW.nonce, NEW.update_time);
  RETURN NEW;
END
$$
-- function tiered_sessions_user_update
CREATE OR REPLACE FUNCTION tiered_sessions_user_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  NEW.revision := OLD.revision + 1;
  NEW.nonce := tiered_sessions_nonce();
  PERFORM tiered_sessions_record('user', NEW.app_name, NEW.user_id, '',
    NEW.incarnation, NEW.revision, NEW.nonce, NEW.update_time);
  RETURN NEW;
END
$$
-- function tiered_sessions_app_update
CREATE OR REPLACE FUNCTION tiered_sessions_app_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  NEW.revision := OLD.revision + 1;
  NEW.nonce := tiered_sessions_nonce();
  PERFORM tiered_sessions_record('app', NEW.app_name, '', '',
    NEW.incarnation, NEW.revision, NEW.nonce, NEW.update_time);
  RETURN NEW;
END
$$
-- function tiered_sessions_session_delete
CREATE OR REPLACE FUNCTION tiered_sessions_session_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  PERFORM tiered_sessions_record('session', OLD.app_name, OLD.user_id, OLD.id, NULL, NULL, NULL, NULL);
  RETURN NULL;
END
$$
-- trigger tiered_sessions_event_insert on events
CREATE TRIGGER tiered_sessions_event_insert BEFORE INSERT ON events FOR EACH ROW
WHEN (NEW.seq IS NULL) EXECUTE FUNCTION tiered_sessions_event_insert()
-- trigger tiered_sessions_session_update on sessions
CREATE TRIGGER tiered_sessions_session_update BEFORE UPDATE ON sessions FOR EACH ROW
WHEN (OLD.nonce IS NOT NULL AND NEW.nonce IS NOT DISTINCT FROM OLD.nonce)
EXECUTE FUNCTION tiered_sessions_session_update()
-- trigger tiered_sessions_user_update on user_states
CREATE TRIGGER tiered_sessions_user_update BEFORE UPDATE ON user_states FOR EACH ROW
WHEN (OLD.nonce IS NOT NULL AND NEW.nonce IS NOT DISTINCT FROM OLD.nonce)
EXECUTE FUNCTION tiered_sessions_user_update()
-- trigger tiered_sessions_app_update on app_states
CREATE TRIGGER tiered_sessions_app_update BEFORE UPDATE ON app_states FOR EACH ROW
WHEN (OLD.nonce IS NOT NULL AND NEW.nonce IS NOT DISTINCT FROM OLD.nonce)
EXECUTE FUNCTION tiered_sessions_app_update()
-- trigger tiered_sessions_session_delete on sessions
CREATE TRIGGER tiered_sessions_session_delete AFTER DELETE ON sessions FOR EACH ROW
WHEN (OLD.nonce IS NOT NULL) EXECUTE FUNCTION tiered_sessions_session_delete()
