"""Images become trees in a repository: layers, flattening, farm, wishlists, status."""
