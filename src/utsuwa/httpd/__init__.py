"""What servers of web pages and of the API share: HTTP itself, and the page's files."""
