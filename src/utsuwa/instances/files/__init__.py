"""Files in instances, running and stopped: over HTTP and SFTP."""
