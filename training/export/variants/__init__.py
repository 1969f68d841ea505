"""The variants: one file each, and what two of them share."""
