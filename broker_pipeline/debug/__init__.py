"""What happened, and how to run it again: histories, recordings, replays."""
