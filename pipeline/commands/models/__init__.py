"""Commands on exported models: to write them, and to use them."""
