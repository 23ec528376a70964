"""Models on the device: what may be trusted, how it is installed, how it runs."""
