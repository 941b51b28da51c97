"""Request and response records of the REST API."""
