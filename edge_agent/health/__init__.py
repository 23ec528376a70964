"""Whether the agent works: figures, health file, health port and heartbeat."""
