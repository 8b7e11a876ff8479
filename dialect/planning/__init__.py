"""Who lives where on the mesh: plans, their cost, the search, and the audit of what came out."""
