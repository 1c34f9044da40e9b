-- trigger tiered_sessions_event_insert on events
CREATE TRIGGER tiered_sessions_event_insert AFTER INSERT ON events FOR EACH ROW
WHEN NEW.seq IS NULL AND EXISTS (SELECT 1 FROM sessions
  WHERE app_name = NEW.app_name AND user_id = NEW.user_id AND id = NEW.session_id AND nonce IS NOT NULL)
BEGIN
  UPDATE sessions SET revision = revision + 1, nonce = random() & 9223372036854775807
    WHERE app_name = NEW.app_name AND user_id = NEW.user_id AND id = NEW.session_id;
  -- Behind an event that waits for its number this one waits too, or the order would turn.
  UPDATE events SET seq = (SELECT revision FROM sessions
      WHERE app_name = NEW.app_name AND user_id = NEW.user_id AND id = NEW.session_id)
    WHERE rowid = NEW.rowid AND NOT EXISTS (SELECT 1 FROM events o
      WHERE o.app_name = NEW.app_name AND o.user_id = NEW.user_id AND o.session_id = NEW.session_id
      AND o.seq IS NULL AND o.rowid <> NEW.rowid);
  DELETE FROM cache_outbox WHERE kind = 'session' AND app_name = NEW.app_name
    AND user_id = NEW.user_id AND session_id = NEW.session_id;
  INSERT INTO cache_outbox (kind, app_name, user_id, session_id,
      incarnation, revision, nonce, update_time, stamp)
    SELECT 'session', app_name, user_id, id, incarnation, revision, nonce,
      strftime('%s', substr(update_time, 1, 19)) * 1000000
        + CAST(substr(update_time || '000000', 21, 6) AS INTEGER),
      random() & 9223372036854775807
    FROM sessions WHERE app_name = NEW.app_name AND user_id = NEW.user_id AND id = NEW.session_id;
END
-- trigger tiered_sessions_session_update on sessions
CREATE TRIGGER tiered_sessions_session_update AFTER UPDATE ON sessions FOR EACH ROW
WHEN OLD.nonce IS NOT NULL AND NEW.nonce IS OLD.nonce
BEGIN
  UPDATE sessions SET revision = OLD.revision + 1, nonce = random() & 9223372036854775807
    WHERE rowid = NEW.rowid;
  DELETE FROM cache_outbox WHERE kind = 'session' AND app_name = NEW.app_name
    AND user_id = NEW.user_id AND session_id = NEW.id;
  INSERT INTO cache_outbox (kind, app_name, user_id, session_id,
      incarnation, revision, nonce, update_time, stamp)
    SELECT 'session', NEW.app_name, NEW.user_id, NEW.id, incarnation, revision, nonce,
      strftime('%s', substr(update_time, 1, 19)) * 1000000
        + CAST(substr(update_time || '000000', 21, 6) AS INTEGER),
      random() & 9223372036854775807
    FROM sessions WHERE rowid = NEW.rowid;
END
-- trigger tiered_sessions_user_update on user_states
CREATE TRIGGER tiered_sessions_user_update AFTER UPDATE ON user_states FOR EACH ROW
WHEN OLD.nonce IS NOT NULL AND NEW.nonce IS OLD.nonce
BEGIN
  UPDATE user_states SET revision = OLD.revision + 1, nonce = random() & 9223372036854775807
    WHERE rowid = NEW.rowid;
  DELETE FROM cache_outbox WHERE kind = 'user' AND app_name = NEW.app_name
    AND user_id = NEW.user_id AND session_id = '';
  INSERT INTO cache_outbox (kind, app_name, user_id, session_id,
      incarnation, revision, nonce, update_time, stamp)
    SELECT 'user', NEW.app_name, NEW.user_id, '', incarnation, revision, nonce,
      strftime('%s', substr(update_time, 1, 19)) * 1000000
        + CAST(substr(update_time || '000000', 21, 6) AS INTEGER),
      random() & 9223372036854775807
    FROM user_states WHERE rowid = NEW.rowid;
END
-- trigger tiered_sessions_app_update on app_states
CREATE TRIGGER tiered_sessions_app_update AFTER UPDATE ON app_states FOR EACH ROW
WHEN OLD.nonce IS NOT NULL AND NEW.nonce IS OLD.nonce
BEGIN
  UPDATE app_states SET revision = OLD.revision + 1, nonce = random() & 9223372036854775807
    WHERE rowid = NEW.rowid;
  DELETE FROM cache_outbox WHERE kind = 'app' AND app_name = NEW.app_name
    AND user_id = '' AND session_id = '';
  INSERT INTO cache_outbox (kind, app_name, user_id, session_id,
      incarnation, revision, nonce, update_time, stamp)
    SELECT 'app', NEW.app_name, '', '', incarnation, revision, nonce,
      strftime('%s', substr(update_time, 1, 19)) * 1000000
        + CAST(substr(update_time || '000000', 21, 6) AS INTEGER),
      random() & 9223372036854775807
    FROM app_states WHERE rowid = NEW.rowid;
END
-- trigger tiered_sessions_session_delete on sessions
CREATE TRIGGER tiered_sessions_session_delete AFTER DELETE ON sessions FOR EACH ROW
WHEN OLD.nonce IS NOT NULL
BEGIN
  DELETE FROM cache_outbox WHERE kind = 'session' AND app_name = OLD.app_name
    AND user_id = OLD.user_id
    AND session_id = OLD.id;
  INSERT INTO cache_outbox (kind, app_name, user_id, session_id,
      incarnation, revision, nonce, update_time, stamp)
    VALUES ('session', OLD.app_name, OLD.user_id, OLD.id, NULL, NULL, NULL, NULL,
      random() & 9223372036854775807);
END
