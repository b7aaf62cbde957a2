-- The two tables, one a contract. Column names and types are what the gateway's records carry; a record's
-- own coordinates in Kafka make duplicates and gaps one query away.
--
-- non_replicated_deduplication_window is how many inserted blocks the table remembers by their token: a batch
-- that is sent again after a crash is dropped while its token is among them.
-- inserted_at has an index because the consumer asks "what came since" when it recovers, and so do you.

CREATE TABLE IF NOT EXISTS app_interactions
(
    event_id String CODEC(ZSTD(1)),
    app LowCardinality(String),
    received_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    event_type LowCardinality(String),
    document_id Nullable(String) CODEC(ZSTD(1)),
    position Nullable(Int64) CODEC(T64, ZSTD(1)),
    query Nullable(String) CODEC(ZSTD(1)),
    result_count Nullable(Int64) CODEC(T64, ZSTD(1)),
    latency_ms Nullable(Int64) CODEC(T64, ZSTD(1)),
    dwell_ms Nullable(Int64) CODEC(T64, ZSTD(1)),
    session_id Nullable(String) CODEC(ZSTD(1)),
    metadata Nullable(String) CODEC(ZSTD(3)) COMMENT 'JSON object as sent',
    extra String DEFAULT '{}' CODEC(ZSTD(3)) COMMENT 'JSON object: top-level fields that the contract does not name',
    kafka_partition UInt32 CODEC(T64, ZSTD(1)),
    kafka_offset UInt64 CODEC(DoubleDelta, ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(DoubleDelta, ZSTD(1)),
    INDEX inserted_at_minmax inserted_at TYPE minmax GRANULARITY 1,
    INDEX kafka_offset_minmax kafka_offset TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (app, event_type, received_at)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE TABLE IF NOT EXISTS retriever_interactions
(
    event_id String CODEC(ZSTD(1)),
    retriever LowCardinality(String),
    received_at DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    interaction_type Array(LowCardinality(String)),
    document_id String CODEC(ZSTD(1)),
    position Int64 CODEC(T64, ZSTD(1)),
    execution_id Nullable(String) CODEC(ZSTD(1)),
    query_snapshot Nullable(String) CODEC(ZSTD(3)) COMMENT 'JSON object as sent',
    document_score Nullable(Float64) CODEC(ZSTD(1)),
    result_set_size Nullable(Int64) CODEC(T64, ZSTD(1)),
    session_id Nullable(String) CODEC(ZSTD(1)),
    metadata Nullable(String) CODEC(ZSTD(3)) COMMENT 'JSON object as sent',
    extra String DEFAULT '{}' CODEC(ZSTD(3)) COMMENT 'JSON object: top-level fields that the contract does not name',
    kafka_partition UInt32 CODEC(T64, ZSTD(1)),
    kafka_offset UInt64 CODEC(DoubleDelta, ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(DoubleDelta, ZSTD(1)),
    INDEX inserted_at_minmax inserted_at TYPE minmax GRANULARITY 1,
    INDEX kafka_offset_minmax kafka_offset TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (retriever, received_at)
SETTINGS non_replicated_deduplication_window = 10000;
