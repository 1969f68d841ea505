"""The proofs of the promises P17 to P21 and P24 on the real platform, as functions that tests and `make reliability` share."""
