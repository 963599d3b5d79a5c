"""gRPC: calling module servers and being one. The only place that knows gRPC."""
