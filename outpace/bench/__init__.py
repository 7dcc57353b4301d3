"""Level 6: measurements. Each writes one JSON file with machine, versions and settings inside."""
