"""Objects by name: the Protocols, one backend a module, one wrapper a module."""
