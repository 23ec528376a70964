"""Kind `mqtt-local`: messages of a broker on the device."""
