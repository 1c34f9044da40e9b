-- create table tiered_sessions_schema
CREATE TABLE tiered_sessions_schema (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);

GO

-- create table adk_internal_metadata
CREATE TABLE adk_internal_metadata (
    [key] VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    value VARCHAR(256) NOT NULL,
    PRIMARY KEY ([key])
);

GO

-- insert adk_internal_metadata row schema_version
INSERT INTO adk_internal_metadata ([key], value) VALUES ('schema_version', '1');

GO

-- create table sessions
CREATE TABLE sessions (
    app_name VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    user_id VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    id VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    state NVARCHAR(max) NOT NULL,
    create_time DATETIME2(6) NOT NULL,
    update_time DATETIME2(6) NOT NULL,
    incarnation BIGINT NULL,
    revision BIGINT NULL,
    nonce BIGINT NULL,
    expires_at DATETIME2(6) NULL,
    sliding_ttl BIGINT NULL,
    PRIMARY KEY (app_name, user_id, id)
);

GO

-- create table events
CREATE TABLE events (
    id VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    app_name VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    user_id VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    session_id VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    invocation_id VARCHAR(256) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    timestamp DATETIME2(6) NOT NULL,
    event_data NVARCHAR(max) NULL,
    seq BIGINT NULL,
    PRIMARY KEY (id, app_name, user_id, session_id),
    FOREIGN KEY(app_name, user_id, session_id) REFERENCES sessions (app_name, user_id, id) ON DELETE CASCADE
);

GO

-- create table app_states
CREATE TABLE app_states (
    app_name VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    state NVARCHAR(max) NOT NULL,
    update_time DATETIME2(6) NOT NULL,
    incarnation BIGINT NULL,
    revision BIGINT NULL,
    nonce BIGINT NULL,
    PRIMARY KEY (app_name)
);

GO

-- create table user_states
CREATE TABLE user_states (
    app_name VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    user_id VARCHAR(128) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL,
    state NVARCHAR(max) NOT NULL,
    update_time DATETIME2(6) NOT NULL,
    incarnation BIGINT NULL,
    revision BIGINT NULL,
    nonce BIGINT NULL,
    PRIMARY KEY (app_name, user_id)
);

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
