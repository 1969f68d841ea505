"""What is measured of a variant, and what it must meet."""
