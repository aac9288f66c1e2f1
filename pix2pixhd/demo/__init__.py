"""The demo: trains on photographs shipped with scikit-image."""
