"""Kafka to ClickHouse: inserts events in batches, each exactly once."""
