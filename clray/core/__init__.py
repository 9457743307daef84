"""The compiled experiment: pure JAX. Knows nothing of files, torch, Ray or the command line."""
