"""Integrations of the losses into third-party training code."""
