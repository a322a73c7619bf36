"""A long run of readers under everything that goes wrong; see ``__main__``."""
