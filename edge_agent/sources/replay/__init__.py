"""Kind `replay`: rows of a recorded file."""
