"""Bridge: MQTT to landing. A message is acknowledged when it is on disk."""
