"""The only place that knows NATS: the port, its JetStream adapter, and its in-memory double."""
