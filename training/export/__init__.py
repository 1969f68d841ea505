"""From a registered version to certified variants in a bundle."""
