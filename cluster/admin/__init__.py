"""The admin port: API, dashboard, Prometheus, and the series that go through Ray."""
