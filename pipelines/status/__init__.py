"""What the core is doing: heartbeats of its processes, lag per stage and stream, metrics, health."""
