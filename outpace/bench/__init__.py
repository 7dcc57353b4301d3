"""Measurements. Each writes one JSON file that names its machine, versions and settings."""
