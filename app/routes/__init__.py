"""One file a family of routes. A route validates, asks the service, and answers; it opens no file and touches no torch."""
