"""What gateway and consumer agree on: request models, streams, the wire format, the tables."""
