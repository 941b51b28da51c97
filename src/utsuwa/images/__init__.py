"""Images: formats, unpacking, the store."""
