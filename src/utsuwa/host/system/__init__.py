"""Properties and capabilities of the host, and the limits that all its containers share."""
