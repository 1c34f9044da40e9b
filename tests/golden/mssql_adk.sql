-- create table tiered_sessions_schema
CREATE TABLE tiered_sessions_schema (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);

GO

-- add column sessions.incarnation
ALTER TABLE sessions ADD incarnation BIGINT NULL;

GO

-- add column sessions.revision
ALTER TABLE sessions ADD revision BIGINT NULL;

GO

-- add column sessions.nonce
ALTER TABLE sessions ADD nonce BIGINT NULL;

GO

-- add column sessions.expires_at
ALTER TABLE sessions ADD expires_at DATETIME2(6) NULL;

GO

-- add column sessions.sliding_ttl
ALTER TABLE sessions ADD sliding_ttl BIGINT NULL;

GO

-- add column app_states.incarnation
ALTER TABLE app_states ADD incarnation BIGINT NULL;

GO

-- add column app_states.revision
ALTER TABLE app_states ADD revision BIGINT NULL;

GO

-- add column app_states.nonce
ALTER TABLE app_states ADD nonce BIGINT NULL;

GO

-- add column user_states.incarnation
ALTER TABLE user_states ADD incarnation BIGINT NULL;

GO

-- add column user_states.revision
ALTER TABLE user_states ADD revision BIGINT NULL;

GO

-- add column user_states.nonce
ALTER TABLE user_states ADD nonce BIGINT NULL;

GO

-- add column events.seq
ALTER TABLE events ADD seq BIGINT NULL;

GO

-- create table cache_outbox
CREATE TABLE cache_outbox (
    kind VARCHAR(16) NOT NULL,
    app_name VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    user_id VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    session_id VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    incarnation BIGINT NULL,
    revision BIGINT NULL,
    nonce BIGINT NULL,
    update_time BIGINT NULL,
    stamp BIGINT NOT NULL,
    PRIMARY KEY (kind, app_name, user_id, session_id)
);

GO

-- create index idx_events_app_user_session_ts_id
CREATE INDEX idx_events_app_user_session_ts_id ON events (app_name, user_id, session_id, timestamp DESC, id DESC);

GO

-- create index uq_events_app_user_session_seq
CREATE UNIQUE INDEX uq_events_app_user_session_seq ON events (app_name, user_id, session_id, seq) WHERE seq IS NOT NULL;

GO

-- create index idx_sessions_expires_at
CREATE INDEX idx_sessions_expires_at ON sessions (expires_at) WHERE expires_at IS NOT NULL;

GO

-- insert adk_internal_metadata row tiered_sessions_namespace
INSERT INTO adk_internal_metadata ([key], value) VALUES ('tiered_sessions_namespace', lower(left(replace(convert(varchar(36), newid()), '-', ''), 16)));

GO

-- insert tiered_sessions_schema row 1
INSERT INTO tiered_sessions_schema (version) VALUES (1);

GO
