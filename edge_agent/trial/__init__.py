"""A trial of sources: what their first samples become, without storing, sending or moving anything."""
