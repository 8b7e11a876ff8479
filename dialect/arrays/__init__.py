"""JAX's arrays as the engine sees them: element types, attributes, constants, evaluation."""
