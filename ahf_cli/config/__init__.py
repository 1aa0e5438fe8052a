"""Configurations: presets, YAML files and overrides, checked as a whole."""
