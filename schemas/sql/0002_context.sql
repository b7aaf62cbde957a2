-- What the gateway knows of an event beside the contract's fields. The contract's own columns stay as they are.
--
-- client_timestamp is the caller's own time, occurred_at the same corrected by the skew of its clock (sent_at against
-- our arrival); both are null where the caller sent no time. time_flag says that occurred_at was beyond reason.
-- client_address and user_agent hold what the owner's privacy policy keeps: by default nothing.

ALTER TABLE app_interactions
    ADD COLUMN IF NOT EXISTS client_timestamp Nullable(DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS occurred_at Nullable(DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS time_flag LowCardinality(Nullable(String)) COMMENT 'clamped_future, clamped_past',
    ADD COLUMN IF NOT EXISTS client_address Nullable(String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS user_agent LowCardinality(Nullable(String)),
    ADD COLUMN IF NOT EXISTS is_bot Bool DEFAULT false,
    ADD COLUMN IF NOT EXISTS bot_reason LowCardinality(Nullable(String));

ALTER TABLE retriever_interactions
    ADD COLUMN IF NOT EXISTS client_timestamp Nullable(DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS occurred_at Nullable(DateTime64(3, 'UTC')) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS time_flag LowCardinality(Nullable(String)) COMMENT 'clamped_future, clamped_past',
    ADD COLUMN IF NOT EXISTS client_address Nullable(String) CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS user_agent LowCardinality(Nullable(String)),
    ADD COLUMN IF NOT EXISTS is_bot Bool DEFAULT false,
    ADD COLUMN IF NOT EXISTS bot_reason LowCardinality(Nullable(String));
