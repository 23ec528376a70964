"""Hand a training set to other tools, in their own formats: payloads byte for byte, and a record of who got it."""
