"""REST resources, whose handlers only translate requests and replies."""
