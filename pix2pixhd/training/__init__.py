"""Training. Import the submodules only where they are used, because Lightning takes seconds to load."""
