"""What becomes of the dims of arrays in a user's own code, watched operation by operation."""
