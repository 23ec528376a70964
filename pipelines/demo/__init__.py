"""The demo: the whole loop on generated data, on one machine, in a minute."""
