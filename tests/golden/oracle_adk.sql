-- create table tiered_sessions_schema
CREATE TABLE tiered_sessions_schema (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
)

/

-- add column sessions.incarnation
ALTER TABLE sessions ADD incarnation NUMBER(19)

/

-- add column sessions.revision
ALTER TABLE sessions ADD revision NUMBER(19)

/

-- add column sessions.nonce
ALTER TABLE sessions ADD nonce NUMBER(19)

/

-- add column sessions.expires_at
ALTER TABLE sessions ADD expires_at TIMESTAMP

/

-- add column sessions.sliding_ttl
ALTER TABLE sessions ADD sliding_ttl NUMBER(19)

/

-- add column app_states.incarnation
ALTER TABLE app_states ADD incarnation NUMBER(19)

/

-- add column app_states.revision
ALTER TABLE app_states ADD revision NUMBER(19)

/

-- add column app_states.nonce
ALTER TABLE app_states ADD nonce NUMBER(19)

/

-- add column user_states.incarnation
ALTER TABLE user_states ADD incarnation NUMBER(19)

/

-- add column user_states.revision
ALTER TABLE user_states ADD revision NUMBER(19)

/

-- add column user_states.nonce
ALTER TABLE user_states ADD nonce NUMBER(19)

/

-- add column events.seq
ALTER TABLE events ADD seq NUMBER(19)

/

-- create table cache_outbox
CREATE TABLE cache_outbox (
    kind VARCHAR2(16 CHAR) NOT NULL,
    app_name VARCHAR2(128 CHAR) NOT NULL,
    user_id VARCHAR2(128 CHAR) NOT NULL,
    session_id VARCHAR2(128 CHAR) NOT NULL,
    incarnation NUMBER(19),
    revision NUMBER(19),
    nonce NUMBER(19),
    update_time NUMBER(19),
    stamp NUMBER(19) NOT NULL,
    PRIMARY KEY (kind, app_name, user_id, session_id)
)

/

-- create index idx_events_app_user_session_ts_id
CREATE INDEX idx_events_app_user_session_ts_id ON events (app_name, user_id, session_id, timestamp DESC, id DESC)

/

-- create index uq_events_app_user_session_seq
CREATE UNIQUE INDEX uq_events_app_user_session_seq ON events (CASE WHEN (seq IS NOT NULL) THEN app_name END, CASE WHEN (seq IS NOT NULL) THEN user_id END, CASE WHEN (seq IS NOT NULL) THEN session_id END, seq)

/

-- create index idx_sessions_expires_at
CREATE INDEX idx_sessions_expires_at ON sessions (expires_at)

/

-- insert adk_internal_metadata row tiered_sessions_namespace
INSERT INTO adk_internal_metadata (key, value) VALUES ('tiered_sessions_namespace', lower(substr(standard_hash(sys_guid(), 'MD5'), 1, 16)))

/

-- insert tiered_sessions_schema row 1
INSERT INTO tiered_sessions_schema (version) VALUES (1)

/
