"""From YAML and overrides to one validated run configuration."""
