"""What a running role tells of itself: metrics, traces, logs."""
