"""Kind `nmea`: fixes of a satellite receiver."""
