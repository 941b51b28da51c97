"""Records of the REST API as they travel: requests and responses."""
