-- create table tiered_sessions_schema
CREATE TABLE tiered_sessions_schema (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

-- create table adk_internal_metadata
CREATE TABLE adk_internal_metadata (
    `key` VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    value VARCHAR(256) NOT NULL,
    PRIMARY KEY (`key`)
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

-- insert adk_internal_metadata row schema_version
INSERT INTO adk_internal_metadata (`key`, value) VALUES ('schema_version', '1');

-- create table sessions
CREATE TABLE sessions (
    app_name VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    user_id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    state LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    create_time DATETIME(6) NOT NULL,
    update_time DATETIME(6) NOT NULL,
    incarnation BIGINT,
    revision BIGINT,
    nonce BIGINT,
    expires_at DATETIME(6),
    sliding_ttl BIGINT,
    PRIMARY KEY (app_name, user_id, id)
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

-- create table events
CREATE TABLE events (
    id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    app_name VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    user_id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    session_id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    invocation_id VARCHAR(256) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    timestamp DATETIME(6) NOT NULL,
    event_data LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    seq BIGINT,
    PRIMARY KEY (id, app_name, user_id, session_id),
    FOREIGN KEY(app_name, user_id, session_id) REFERENCES sessions (app_name, user_id, id) ON DELETE CASCADE
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

-- create table app_states
CREATE TABLE app_states (
    app_name VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    state LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    update_time DATETIME(6) NOT NULL,
    incarnation BIGINT,
    revision BIGINT,
    nonce BIGINT,
    PRIMARY KEY (app_name)
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

-- create table user_states
CREATE TABLE user_states (
    app_name VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    user_id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    state LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    update_time DATETIME(6) NOT NULL,
    incarnation BIGINT,
    revision BIGINT,
    nonce BIGINT,
    PRIMARY KEY (app_name, user_id)
)ENGINE=InnoDB CHARSET=utf8mb4 COLLATE utf8mb4_bin;

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
