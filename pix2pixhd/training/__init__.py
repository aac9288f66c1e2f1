"""The training package. Submodules are imported where they are used: Lightning takes seconds to load."""
