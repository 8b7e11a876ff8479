"""The report: one HTML page without scripts, fonts or anything else from elsewhere."""
