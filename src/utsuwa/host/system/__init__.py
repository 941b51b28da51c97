"""What the host is, what it can do, and the limits that all of its containers share."""
