"""Kind `camera`: frames of a camera or a video file."""
