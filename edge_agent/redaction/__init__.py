"""Redaction: what a contract says must not leave the device is made harmless before anything is stored. Fails closed."""
