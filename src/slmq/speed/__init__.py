"""Speed beside the machine's own limits: bench, profile, and published shapes."""
