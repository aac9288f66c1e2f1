"""Configuration: the schema of options, the parser of YAML files and command lines, and NVIDIA's option names."""
