"""Kind `syslog`: messages over UDP, TCP or TLS."""
