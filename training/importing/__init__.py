"""Models that were trained elsewhere, made into versions."""
