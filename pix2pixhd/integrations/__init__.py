"""The losses inside other people's training code."""
