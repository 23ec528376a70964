"""The state of the core: heartbeats of its processes, lag per stage and stream, metrics, health."""
