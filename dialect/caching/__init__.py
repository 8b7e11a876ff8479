"""The forms that a cache can be kept in: transposed, with fewer heads, in int8."""
