"""Image grids, validation metrics, the results page and progress bars."""
