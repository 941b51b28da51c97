"""REST resources: handlers only translate."""
