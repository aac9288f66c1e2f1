"""The install matrix: the package in many environments, see ``__main__.py``."""
