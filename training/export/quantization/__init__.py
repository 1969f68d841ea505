"""How weights and activations become integers with the least harm, and how it is checked that they did."""
