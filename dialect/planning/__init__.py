"""Who lives where on the mesh: plans, their cost, and the search for the best."""
