"""The servers that are measured, one file each. See `benchmarks.servers.rival`."""
