"""The whole pipeline on one machine with nothing but Python: real Kafka, the real ClickHouse engine."""
