"""Arrays: aliases of types, dtypes of computation, and row ranges. Imports nothing of the package."""
