"""The server's face: REST API, live page, Prometheus text. `api.create_app(service)` is the only way in."""
