"""Inference: image generation, instance features, padding and export."""
