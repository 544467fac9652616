"""What lies around a server under attack: the networks that a run makes, and canaries in them."""
