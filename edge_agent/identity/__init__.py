"""The device's identity: its certificate and key."""
