"""Live transcription: recorded or live speech becomes text, in order, through JetStream."""
