"""HTTP gateway: validates search-interaction events and publishes them to Kafka."""
