"""Catchment: carries what devices see into training sets, and carries models back to the devices."""
