"""Models that a user writes in JAX: parameters and a log joint density; all derivatives are automatic."""
