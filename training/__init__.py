"""Data and a recipe become a run, a version and certified variants. torch lives here, and only here."""
