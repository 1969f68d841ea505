"""Data that ships with Modelway, and what every DataModule of a recipe is asked for."""
