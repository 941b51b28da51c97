"""Images of other servers: finding and downloading them."""
