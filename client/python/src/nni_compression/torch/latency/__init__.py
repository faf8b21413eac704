"""How long layers and models take, and widths that keep to a budget of time."""
