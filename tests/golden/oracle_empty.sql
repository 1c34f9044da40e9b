-- create table tiered_sessions_schema
CREATE TABLE tiered_sessions_schema (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
)

/

-- create table adk_internal_metadata
CREATE TABLE adk_internal_metadata (
    key VARCHAR2(128 CHAR) NOT NULL,
    value VARCHAR2(256 CHAR) NOT NULL,
    PRIMARY KEY (key)
)

/

-- insert adk_internal_metadata row schema_version
INSERT INTO adk_internal_metadata (key, value) VALUES ('schema_version', '1')

/

-- create table sessions
CREATE TABLE sessions (
    app_name VARCHAR2(128 CHAR) NOT NULL,
    user_id VARCHAR2(128 CHAR) NOT NULL,
    id VARCHAR2(128 CHAR) NOT NULL,
    state CLOB NOT NULL,
    create_time TIMESTAMP NOT NULL,
    update_time TIMESTAMP NOT NULL,
    incarnation NUMBER(19),
    revision NUMBER(19),
    nonce NUMBER(19),
    expires_at TIMESTAMP,
    sliding_ttl NUMBER(19),
    PRIMARY KEY (app_name, user_id, id)
)

/

-- create table events
CREATE TABLE events (
    id VARCHAR2(128 CHAR) NOT NULL,
    app_name VARCHAR2(128 CHAR) NOT NULL,
    user_id VARCHAR2(128 CHAR) NOT NULL,
    session_id VARCHAR2(128 CHAR) NOT NULL,
    invocation_id VARCHAR2(256 CHAR) NOT NULL,
    timestamp TIMESTAMP NOT NULL,
    event_data CLOB,
    seq NUMBER(19),
    PRIMARY KEY (id, app_name, user_id, session_id),
    FOREIGN KEY(app_name, user_id, session_id) REFERENCES sessions (app_name, user_id, id) ON DELETE CASCADE
)

/

-- create table app_states
CREATE TABLE app_states (
    app_name VARCHAR2(128 CHAR) NOT NULL,
    state CLOB NOT NULL,
    update_time TIMESTAMP NOT NULL,
    incarnation NUMBER(19),
    revision NUMBER(19),
    nonce NUMBER(19),
    PRIMARY KEY (app_name)
)

/

-- create table user_states
CREATE TABLE user_states (
    app_name VARCHAR2(128 CHAR) NOT NULL,
    user_id VARCHAR2(128 CHAR) NOT NULL,
    state CLOB NOT NULL,
    update_time TIMESTAMP NOT NULL,
    incarnation NUMBER(19),
    revision NUMBER(19),
    nonce NUMBER(19),
    PRIMARY KEY (app_name, user_id)
)

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
