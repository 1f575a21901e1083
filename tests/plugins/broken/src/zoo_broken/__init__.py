"""Raises on import, as a package does whose compiled extension is missing."""

raise RuntimeError("zoo_broken was built for another machine")
