"""Helpers of setup.py. Not part of the installed package."""
