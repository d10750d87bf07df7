"""A server for people and programs: a page, an HTTP API, and the service that both are made of."""
