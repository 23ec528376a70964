"""Foreign pictures on the device: decoded for inspectors and redaction in a limited process, never in the agent's own."""
