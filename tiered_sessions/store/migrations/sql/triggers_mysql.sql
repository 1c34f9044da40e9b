-- trigger tiered_sessions_event_insert on events
CREATE TRIGGER tiered_sessions_event_insert BEFORE INSERT ON events FOR EACH ROW
BEGIN
  DECLARE reached BIGINT;
  IF NEW.seq IS NULL THEN
    UPDATE sessions SET revision = revision + 1,
      nonce = CAST(CONV(SUBSTRING(MD5(CONCAT(UUID(), RAND())), 1, 15), 16, 10) AS SIGNED)
      WHERE app_name = NEW.app_name AND user_id = NEW.user_id AND id = NEW.session_id AND nonce IS NOT NULL;
    SET reached = (SELECT revision FROM sessions
      WHERE app_name = NEW.app_name AND user_id = NEW.user_id AND id = NEW.session_id AND nonce IS NOT NULL);
    IF reached IS NOT NULL THEN
      -- Behind an event that waits for its number this one waits too, or the order would turn.
      IF NOT EXISTS (SELECT 1 FROM events WHERE app_name = NEW.app_name AND user_id = NEW.user_id
          AND session_id = NEW.session_id AND seq IS NULL) THEN
        SET NEW.seq = reached;
      END IF;
      INSERT INTO cache_outbox (kind, app_name, user_id, session_id,
          incarnation, revision, nonce, update_time, stamp)
      SELECT 'session', s.app_name, s.user_id, s.id, s.incarnation, s.revision, s.nonce,
        TIMESTAMPDIFF(MICROSECOND, '1970-01-01', s.update_time),
        CAST(CONV(SUBSTRING(MD5(CONCAT(UUID(), RAND())), 1, 15), 16, 10) AS SIGNED)
      FROM sessions s WHERE s.app_name = NEW.app_name AND s.user_id = NEW.user_id AND s.id = NEW.session_id
      ON DUPLICATE KEY UPDATE incarnation = VALUES(incarnation), revision = VALUES(revision),
      nonce = VALUES(nonce), update_time = VALUES(update_time), stamp = VALUES(stamp);
    END IF;
  END IF;
END
-- trigger tiered_sessions_session_update on sessions
CREATE TRIGGER tiered_sessions_session_update BEFORE UPDATE ON sessions FOR EACH ROW
BEGIN
  IF OLD.nonce IS NOT NULL AND NEW.nonce <=> OLD.nonce THEN
    SET NEW.revision = OLD.revision + 1;
    SET NEW.nonce = CAST(CONV(SUBSTRING(MD5(CONCAT(UUID(), RAND())), 1, 15), 16, 10) AS SIGNED);
    INSERT INTO cache_outbox (kind, app_name, user_id, session_id,
        incarnation, revision, nonce, update_time, stamp)
    VALUES ('session', NEW.app_name, NEW.user_id, NEW.id, NEW.incarnation, NEW.revision, NEW.nonce,
      TIMESTAMPDIFF(MICROSECOND, '1970-01-01', NEW.update_time),
      CAST(CONV(SUBSTRING(MD5(CONCAT(UUID(), RAND())), 1, 15), 16, 10) AS SIGNED))
    ON DUPLICATE KEY UPDATE incarnation = VALUES(incarnation), revision = VALUES(revision),
      nonce = VALUES(nonce), update_time = VALUES(update_time), stamp = VALUES(stamp);
  END IF;
END
-- trigger tiered_sessions_user_update on user_states
CREATE TRIGGER tiered_sessions_user_update BEFORE UPDATE ON user_states FOR EACH ROW
BEGIN
  IF OLD.nonce IS NOT NULL AND NEW.nonce <=> OLD.nonce THEN
    SET NEW.revision = OLD.revision + 1;
    SET NEW.nonce = CAST(CONV(SUBSTRING(MD5(CONCAT(UUID(), RAND())), 1, 15), 16, 10) AS SIGNED);
    INSERT INTO cache_outbox (kind, app_name, user_id, session_id,
        incarnation, revision, nonce, update_time, stamp)
    VALUES ('user', NEW.app_name, NEW.user_id, '', NEW.incarnation, NEW.revision, NEW.nonce,
      TIMESTAMPDIFF(MICROSECOND, '1970-01-01', NEW.update_time),
      CAST(CONV(SUBSTRING(MD5(CONCAT(UUID(), RAND())), 1, 15), 16, 10) AS SIGNED))
    ON DUPLICATE KEY UPDATE incarnation = VALUES(incarnation), revision = VALUES(revision),
      nonce = VALUES(nonce), update_time = VALUES(update_time), stamp = VALUES(stamp);
  END IF;
END
-- trigger tiered_sessions_app_update on app_states
CREATE TRIGGER tiered_sessions_app_update BEFORE UPDATE ON app_states FOR EACH ROW
BEGIN
  IF OLD.nonce IS NOT NULL AND NEW.nonce <=> OLD.nonce THEN
    SET NEW.revision = OLD.revision + 1;
    SET NEW.nonce = CAST(CONV(SUBSTRING(MD5(CONCAT(UUID(), RAND())), 1, 15), 16, 10) AS SIGNED);
    INSERT INTO cache_outbox (kind, app_name, user_id, session_id,
        incarnation, revision, nonce, update_time, stamp)
    VALUES ('app', NEW.app_name, '', '', NEW.incarnation, NEW.revision, NEW.nonce,
      TIMESTAMPDIFF(MICROSECOND, '1970-01-01', NEW.update_time),
      CAST(CONV(SUBSTRING(MD5(CONCAT(UUID(), RAND())), 1, 15), 16, 10) AS SIGNED))
    ON DUPLICATE KEY UPDATE incarnation = VALUES(incarnation), revision = VALUES(revision),
      nonce = VALUES(nonce), update_time = VALUES(update_time), stamp = VALUES(stamp);
  END IF;
END
-- trigger tiered_sessions_session_delete on sessions
CREATE TRIGGER tiered_sessions_session_delete AFTER DELETE ON sessions FOR EACH ROW
BEGIN
  IF OLD.nonce IS NOT NULL THEN
    INSERT INTO cache_outbox (kind, app_name, user_id, session_id,
        incarnation, revision, nonce, update_time, stamp)
    VALUES ('session', OLD.app_name, OLD.user_id, OLD.id, NULL, NULL, NULL, NULL,
      CAST(CONV(SUBSTRING(MD5(CONCAT(UUID(), RAND())), 1, 15), 16, 10) AS SIGNED))
    ON DUPLICATE KEY UPDATE incarnation = VALUES(incarnation), revision = VALUES(revision),
      nonce = VALUES(nonce), update_time = VALUES(update_time), stamp = VALUES(stamp);
  END IF;
END
