"""The core: bridge -> landing -> Beam run -> lake -> training sets, and models back. Never imports `edge_agent`."""
