"""What the build needs beside setuptools; no part of the installed package."""
