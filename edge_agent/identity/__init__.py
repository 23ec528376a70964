"""Who the device is: its certificate and key."""
