"""Tables, plots and pages of finished results. Runs without JAX."""
