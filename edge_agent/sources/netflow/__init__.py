"""Kind `netflow`: flows that exporters send over UDP."""
