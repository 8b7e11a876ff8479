"""Products of quantised weights: their forms, who is quantised, what it costs."""
