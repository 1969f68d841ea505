"""Models that ship with Modelway."""
