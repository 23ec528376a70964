"""Kind `directory`: files that appear in a folder."""
