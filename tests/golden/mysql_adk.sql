-- create table tiered_sessions_schema
CREATE TABLE tiered_sessions_schema (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

-- add column sessions.incarnation
ALTER TABLE sessions ADD COLUMN incarnation BIGINT;

-- add column sessions.revision
ALTER TABLE sessions ADD COLUMN revision BIGINT;

-- add column sessions.nonce
ALTER TABLE sessions ADD COLUMN nonce BIGINT;

-- add column sessions.expires_at
ALTER TABLE sessions ADD COLUMN expires_at DATETIME(6);

-- add column sessions.sliding_ttl
ALTER TABLE sessions ADD COLUMN sliding_ttl BIGINT;

-- add column app_states.incarnation
ALTER TABLE app_states ADD COLUMN incarnation BIGINT;

-- add column app_states.revision
ALTER TABLE app_states ADD COLUMN revision BIGINT;

-- add column app_states.nonce
ALTER TABLE app_states ADD COLUMN nonce BIGINT;

-- add column user_states.incarnation
ALTER TABLE user_states ADD COLUMN incarnation BIGINT;

-- add column user_states.revision
ALTER TABLE user_states ADD COLUMN revision BIGINT;

-- add column user_states.nonce
ALTER TABLE user_states ADD COLUMN nonce BIGINT;

-- add column events.seq
ALTER TABLE events ADD COLUMN seq BIGINT;

-- create table cache_outbox
CREATE TABLE cache_outbox (
    kind VARCHAR(16) NOT NULL,
    app_name VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    user_id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    session_id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    incarnation BIGINT,
    revision BIGINT,
    nonce BIGINT,
    update_time BIGINT,
    stamp BIGINT NOT NULL,
    PRIMARY KEY (kind, app_name, user_id, session_id)
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

-- create index idx_events_app_user_session_ts_id
CREATE INDEX idx_events_app_user_session_ts_id ON events (app_name, user_id, session_id, timestamp DESC, id DESC);

-- create index uq_events_app_user_session_seq
CREATE UNIQUE INDEX uq_events_app_user_session_seq ON events (app_name, user_id, session_id, seq);

-- create index idx_sessions_expires_at
CREATE INDEX idx_sessions_expires_at ON sessions (expires_at);

-- insert adk_internal_metadata row tiered_sessions_namespace
INSERT INTO adk_internal_metadata (`key`, value) VALUES ('tiered_sessions_namespace', substring(md5(concat(uuid(), rand())), 1, 16));

-- insert tiered_sessions_schema row 1
INSERT INTO tiered_sessions_schema (version) VALUES (1);
