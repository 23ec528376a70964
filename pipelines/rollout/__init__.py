"""Rollout: models signed, offered and followed on their way to the devices."""
