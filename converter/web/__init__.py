"""The farm's face: status page, API, hooks for registries, figures. An ASGI application."""
